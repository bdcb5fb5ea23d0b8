"""The tests of django-entra-redis."""
