"""Signals for renewed tokens, and for failed token requests.

Both are sent from a background thread, with the identity's alias as ``sender``.
Neither ever carries the token. ``types`` has their keyword arguments for type checkers.
"""

from django.dispatch import Signal

#: A new token has arrived (the first one included).
#: Keyword arguments: ``identity`` (str), ``status`` (``status.Status``).
token_renewed = Signal()

#: A request for a token has failed; it is retried.
#: Keyword arguments: ``identity`` (str), ``status`` (``status.Status``),
#: ``error`` (str).
token_renewal_failed = Signal()
