"""What is known of a server's outage: decided from times that a test makes up."""

from typing import Any

import pytest
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ConnectionError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TimeoutError,
)

from django_entra_redis.connections.outage import (
    COSTLY,
    LONGEST_PAUSE,
    PROBE_INTERVAL,
    RELAPSE,
    Outages,
    Verdict,
    judge,
)
from django_entra_redis.connections.protocol import (
    ConnectionClosedError,
    ReplyTimeoutError,
)
from django_entra_redis.exceptions import (
    ConnectionPoolTimeout,
    ServerDownError,
    TokenError,
    UncertainResultError,
)


@pytest.mark.parametrize(
    ("error", "tries", "took", "silent", "verdict"),
    [
        (TimeoutError(), 1, 5.0, 5.0, Verdict.ASK),
        (ReplyTimeoutError(), 1, 5.0, 9.0, Verdict.ASK),
        (TimeoutError(), 4, 5.0, 5.0, Verdict.DOWN),
        (ConnectionError(), 4, 0.15, 0.15, Verdict.DOWN),
        (BusyLoadingError(), 4, 0.15, 60.0, Verdict.DOWN),
        (UncertainResultError(), 1, 5.0, 5.0, Verdict.ASK),
        # It cost nobody anything.
        (ConnectionError(), 1, COSTLY / 2, 5.0, Verdict.UP),
        (UncertainResultError(), 1, 0.001, 5.0, Verdict.UP),
        # Others have got answers meanwhile.
        (TimeoutError(), 4, 5.0, 2.4, Verdict.UP),
        (TimeoutError(), 1, 5.0, 0.0, Verdict.UP),
        # It is not that nobody gets an answer.
        (AuthenticationError(), 4, 5.0, 5.0, Verdict.UP),
        (TokenError("no token"), 1, 5.0, 5.0, Verdict.UP),
        (ConnectionPoolTimeout(), 1, 5.0, 5.0, Verdict.UP),
        # Retries cost time though the server answers; a single try costs none.
        (ReadOnlyError(), 4, 0.15, 0.0, Verdict.DOWN),
        (OutOfMemoryError(), 4, 0.15, 0.0, Verdict.DOWN),
        (ReadOnlyError(), 1, 5.0, 5.0, Verdict.UP),
        (OutOfMemoryError(), 1, 5.0, 5.0, Verdict.UP),
        (ResponseError(), 1, 5.0, 5.0, Verdict.UP),
        (ConnectionClosedError("closed", sent=False), 4, 5.0, 5.0, Verdict.UP),
    ],
)
def test_what_a_failure_tells(
    error: Exception, tries: int, took: float, silent: float, verdict: Verdict
) -> None:
    """A server is down that gives nobody an answer, on new connections either."""
    assert judge(error, tries=tries, took=took, silent=silent) is verdict


class Server:
    """The outages of a server, and the time."""

    def __init__(self) -> None:
        self.now = 100.0
        self.outages = Outages("host:1", lambda: self.now)

    def fail(self, error: Exception, took: float = 5.0, **options: Any) -> bool:
        """Have a request begin and fail; return whether to ask once more."""
        began = self.outages.enter()
        self.now += took
        given = {"tries": 1, "command": "GET", "covered": False, **options}
        return self.outages.failed(error, began=began, **given)

    def refused(self, *, write: bool = False, command: str = "GET") -> bool:
        """Return whether a request may not even begin."""
        try:
            self.outages.enter(write=write, command=command)
        except ServerDownError:
            return True
        return False


def test_words_of_a_server(caplog: pytest.LogCaptureFixture) -> None:
    """They are bounded and printable where they are told, and name no token."""
    server = Server()
    words = f"eyJhbGciOiJSUzI1NiJ9.eyJ9.c2ln \x1b[2J\u202e{'x y ' * 25000}"
    server.fail(BusyLoadingError(words), tries=4, covered=True)
    with pytest.raises(ServerDownError) as raised:
        server.outages.enter()
    (record,) = caplog.records
    for told in (str(raised.value), record.getMessage()):
        assert "***  [2J x y" in told
        assert told.isprintable()
        assert len(told) < 1000


def test_a_second_opinion() -> None:
    """Until it is there all fail; after it all try, or one at a time."""
    server = Server()
    assert server.fail(TimeoutError("silence"))
    assert server.refused()
    server.outages.well()
    assert not server.refused()
    assert not server.outages.any
    assert server.fail(TimeoutError("silence"))
    server.outages.down(server.now - 5.0)
    assert server.refused()
    server.now += LONGEST_PAUSE
    assert not server.refused()  # This one asks,
    assert server.refused()  # and no other one.
    server.now += PROBE_INTERVAL  # Its connection may be the trouble.
    assert (server.refused(), server.refused()) == (False, True)
    server.outages.answered(write=False)
    assert (server.refused(), server.refused()) == (False, False)


def test_pauses_are_as_short_as_failures() -> None:
    """What failed at once is soon asked again."""
    server = Server()
    assert not server.fail(ConnectionError("refused"), 0.2, tries=4)
    assert server.refused()
    server.now += 0.11
    assert not server.refused()
    server.now += 0.01
    server.outages.answered(write=True)
    # That it failed late, when it was well before, is not known after an answer.
    began = server.outages.enter()
    server.now += 5.0
    server.outages.answered(write=False)
    given: dict[str, Any] = {"tries": 4, "command": "GET", "covered": False}
    assert not server.outages.failed(TimeoutError(), began=began, **given)
    assert not server.outages.any


@pytest.mark.parametrize(
    ("error", "fails", "works"),
    [
        (ReadOnlyError("replica"), (True, "SET"), (False, "SCAN")),
        (OutOfMemoryError("full"), (True, "SET"), (True, "DEL")),
    ],
)
def test_only_what_fails_waits(
    error: Exception, fails: tuple[bool, str], works: tuple[bool, str]
) -> None:
    """One at a time asks whether that is over; all else goes on, and is no answer."""
    server = Server()
    blocked: dict[str, Any] = {"write": fails[0], "command": fails[1]}
    free: dict[str, Any] = {"write": works[0], "command": works[1]}
    assert not server.fail(error, 0.2, tries=4, command="SET")
    assert server.refused(**blocked)
    assert not server.refused(**free)
    server.outages.answered(**free)
    assert server.refused(**blocked)
    server.now += 0.11
    assert (server.refused(**blocked), server.refused(**blocked)) == (False, True)
    # The reply to what asked said nothing of it: such as that a script is not known.
    server.outages.refused(**blocked)
    assert (server.refused(**blocked), server.refused(**blocked)) == (False, True)
    server.outages.answered(**blocked)
    assert (server.refused(**blocked), server.refused(**blocked)) == (False, False)


def test_two_outages_at_once() -> None:
    """A request that neither is about is not refused; another needs the end of both."""
    server = Server()
    server.fail(ReadOnlyError("replica"), 0.2, tries=4, command="SET")
    server.fail(TimeoutError("silence"), 0.4, tries=4)
    assert server.refused(write=True, command="SET")
    server.now += LONGEST_PAUSE
    assert not server.refused()
    assert server.refused(write=True, command="SET")
    server.outages.answered(write=False)
    assert not server.refused(write=True, command="SET")
    assert server.refused(write=True, command="SET")
    server.outages.refused(write=False, command="GET")
    assert server.refused(write=True, command="SET")


def test_many_that_fail_together() -> None:
    """One asks for a second opinion; the others do not decide before it is there."""
    server = Server()
    began = [server.outages.enter() for _ in range(3)]
    server.now += 5.0
    given: dict[str, Any] = {"tries": 1, "command": "GET", "covered": False}
    asks = [server.outages.failed(TimeoutError(), began=at, **given) for at in began]
    assert asks == [True, False, False]
    server.outages.well()
    assert not server.refused()
    # What comes too late is about nothing any more.
    server.outages.down(server.now)
    assert not server.refused()


def test_what_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """An outage of a cache that covers it up, or of all clients of the server."""
    server = Server()
    with caplog.at_level("INFO", "django_entra_redis"):
        assert not server.fail(AuthenticationError("refused"), covered=False)
        assert server.fail(TimeoutError("silence"), covered=False)
        server.outages.well()
        assert caplog.records == []
        server.fail(AuthenticationError("refused"), covered=True)
        server.fail(AuthenticationError("refused"), covered=True)
        server.now += 30.0
        server.outages.answered(write=False)
    begin, end = (record.getMessage() for record in caplog.records)
    assert begin.startswith("Redis at host:1 can't be used. ")
    assert begin.endswith("answers like an empty one: refused")
    assert end == (
        "The cache is back. That Redis at host:1 can't be used has cost 2 operations "
        "within 40.0 s."
    )


def test_a_timeout_that_is_covered_up(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody sees it, so that it is logged, also of a server that is well."""
    server = Server()
    with caplog.at_level("INFO", "django_entra_redis"):
        assert server.fail(TimeoutError("silence"), covered=True)
        server.outages.well()
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


@pytest.mark.parametrize(
    ("error", "command", "no_end", "end"),
    [
        (ReadOnlyError("replica"), "SET", (False, "SET"), (True, "DEL")),
        (OutOfMemoryError("full"), "SET", (True, "DEL"), (True, "SET")),
        (ConnectionPoolTimeout("busy"), "SET", None, (False, "GET")),
    ],
)
def test_what_ends_an_outage(
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    command: str,
    no_end: tuple[bool, str] | None,
    end: tuple[bool, str],
) -> None:
    """The success of what failed; if it comes again soon, it is the same outage."""
    server = Server()
    with caplog.at_level("INFO", "django_entra_redis"):
        for _ in range(5):
            server.fail(error, 0.0, command=command, covered=True)
            if no_end is not None:
                server.outages.answered(write=no_end[0], command=no_end[1])
            assert server.outages.any
            server.outages.answered(write=end[0], command=end[1])
        assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
        assert server.outages.any
        server.now += RELAPSE
        server.outages.answered(write=end[0], command=end[1])
        assert not server.outages.any
        (*_, record) = caplog.records
        assert "has cost 5 operations" in record.getMessage()
        # Long after, it is another one.
        server.now += 2 * RELAPSE
        server.fail(error, 0.0, command=command, covered=True)
        server.outages.answered(write=end[0], command=end[1])
        (*_, record) = caplog.records
    assert "has cost 1 operations within 0.0 s" in record.getMessage()
