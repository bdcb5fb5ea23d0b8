"""What has been found out about a server, by whichever client."""

import logging

from redis.exceptions import ResponseError

logger = logging.getLogger(__name__)


class Server:
    """A server that is written to, or a cluster."""

    runs_scripts = True
    down = False

    def refuse_scripts(self, error: ResponseError) -> None:
        """Take note that it lets no scripts run."""
        self.runs_scripts = False
        logger.warning(
            "Redis lets no scripts run here (%s): incr() takes two round trips from "
            "now on, as Django's own does.",
            error,
        )

    def fail(self, error: Exception) -> None:
        """Take note that it is down, once for an outage."""
        if not self.down:
            logger.warning(
                "The cache is down and answers like an empty one "
                "(OPTIONS['ignore_exceptions']): %s",
                error,
            )
        self.down = True

    def succeed(self) -> None:
        """Take note that it is up."""
        if self.down:
            logger.info("The cache is back.")
        self.down = False


def refuses_scripts(error: ResponseError) -> bool:
    """Whether an error reply tells that no scripts may run."""
    text = str(error).lower()
    return "eval" in text and ("no permissions" in text or "unknown command" in text)
