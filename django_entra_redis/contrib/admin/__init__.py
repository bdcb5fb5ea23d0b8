"""A page in Django's admin: identities, caches, and a check of them."""
