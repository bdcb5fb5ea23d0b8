"""Outages of a server that a cache with ``ignore_exceptions`` covers up."""

import logging

from redis.exceptions import (
    ConnectionError,
    OutOfMemoryError,
    ReadOnlyError,
    TimeoutError,
)

logger = logging.getLogger(__name__)

#: Errors of a server that is down, full or failing over. Anything else, a refused
#: command or a value that can't be pickled, is a mistake that must be seen.
OUTAGE_ERRORS = (ConnectionError, TimeoutError, OutOfMemoryError, ReadOnlyError)


class Outage:
    """Whether a server is down: the beginning and the end of an outage are logged."""

    down = False

    def begin(self, error: Exception) -> None:
        """Note that the server is down."""
        if not self.down:
            logger.warning(
                "The cache is down and answers like an empty one "
                "(OPTIONS['ignore_exceptions']): %s",
                error,
            )
        self.down = True

    def end(self) -> None:
        """Note that the server is up."""
        if self.down:
            logger.info("The cache is back.")
        self.down = False
