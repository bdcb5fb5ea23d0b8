"""fakeredis as a process of its own, where there is no redis-server."""

import importlib
import sys
from typing import Any

import redis


def main() -> None:
    """Serve on the port given."""
    # Not an ordinary import: what is optional is not there for every type checker.
    fakeredis: Any = importlib.import_module("fakeredis")
    server = fakeredis.TcpFakeServer(("127.0.0.1", int(sys.argv[1])))
    server.daemon_threads = True
    server.RequestHandlerClass = _patient(server.RequestHandlerClass)
    server.serve_forever()


def _patient(base: Any) -> Any:
    """Return a handler that outlives error replies.

    fakeredis closes the connection after each of them, Redis does not.
    """

    class PatientHandler(base):  # type: ignore[misc]
        def setup(self) -> None:
            super().setup()
            read_response = self.current_client.read_response

            def read(*args: Any, **kwargs: Any) -> Any:
                try:
                    return read_response(*args, **kwargs)
                except (redis.ResponseError, redis.AuthenticationError) as error:
                    return error

            self.current_client.read_response = read

    return PatientHandler


if __name__ == "__main__":
    main()
