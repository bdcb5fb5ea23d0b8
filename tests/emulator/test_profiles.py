"""The emulator's profiles: that each refuses what that service of Azure refuses."""

import random
import socket
import ssl
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import redis
import requests
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from redis.crc import key_slot

from emulator import PROFILES, Emulator, __main__
from emulator.commands import Command
from emulator.directory import REDIS
from emulator.managed_identity import IMDS_PATH
from emulator.profiles import find_profile
from emulator.refusals import Refusals


@contextmanager
def client(emulator: Emulator) -> Iterator[redis.Redis]:
    """Give a client of the application's, in plain text."""
    with redis.Redis.from_url(
        emulator.plaintext_url,
        username=emulator.application.object_id,
        password=emulator.issue_token(),
    ) as made:
        yield made
        made.connection_pool.disconnect()


def refused(client: redis.Redis, *command: Any) -> str | None:
    """Return what the server says against a command."""
    try:
        client.execute_command(*command)
    except redis.ResponseError as error:
        return str(error)
    return None


#: Keys of two slots, and of one.
APART = ("a", "b")
TOGETHER = ("{a}1", "{a}2")
TRANSACTIONS = {b"MULTI", b"EXEC", b"DISCARD", b"RESET"}


@pytest.mark.parametrize(
    ("name", "geo_replication", "takes", "refuses"),
    [
        (
            "amr-enterprise",
            False,
            [
                ("DEL", *APART),
                ("UNLINK", *APART),
                ("MSET", "a", 1, "b", 2),
                ("MGET", *APART),
                ("SUNION", *TOGETHER),
                ("FLUSHDB",),
                ("EVAL", "return 1", 0),
                ("SELECT", 0),
            ],
            [
                ("SUNION", *APART),
                ("RENAME", *APART),
                ("MSETNX", "a", 1, "b", 2),
                ("SMOVE", *APART, "x"),
                ("BLPOP", *APART, 1),
                ("EVAL", "return 1", 2, *APART),
                ("CLUSTER", "SLOTS"),
                ("SELECT", 1),
                ("SAVE",),
            ],
        ),
        (
            "amr-enterprise",
            True,
            [("MGET", *APART), ("EXISTS", *APART), ("DEL", *TOGETHER), ("UNLINK", "a")],
            [
                ("DEL", *APART),
                ("UNLINK", *APART),
                ("MSET", "a", 1, "b", 2),
                ("FLUSHDB",),
                ("FLUSHALL",),
            ],
        ),
        (
            "amr-nocluster",
            False,
            [("SUNION", *APART), ("DEL", *APART), ("FLUSHDB",)],
            [("CLUSTER", "SLOTS"), ("SELECT", 1), ("SELECT", "x"), ("SELECT",)],
        ),
        (
            "acr",
            False,
            [("SUNION", *APART), ("SELECT", 1)],
            [("CONFIG", "GET", "maxmemory"), ("DEBUG", "SLEEP", 0)],
        ),
    ],
)
def test_refusals(
    redis_server: str,
    name: str,
    geo_replication: bool,
    takes: list[tuple[Any, ...]],
    refuses: list[tuple[Any, ...]],
) -> None:
    """Each takes what it should, and refuses what it should, and goes on."""
    with (
        Emulator(
            redis_server=redis_server, profile=name, geo_replication=geo_replication
        ) as emulator,
        client(emulator) as user,
    ):
        assert emulator.description()["profile"] == name
        for command in takes:
            assert refused(user, *command) is None, command
        for command in refuses:
            assert refused(user, *command) is not None, command
        # In its place among others.
        pipeline = user.pipeline(transaction=False)
        for command in (("PING",), refuses[0], ("PING",), refuses[-1], ("ECHO", "x")):
            pipeline.execute_command(*command)
        replies = pipeline.execute(raise_on_error=False)
        kinds = [isinstance(reply, redis.ResponseError) for reply in replies]
        assert kinds == [False, True, False, True, False]
        assert replies[-1] == b"x"


@pytest.mark.parametrize("geo_replication", [False, True])
def test_transactions(redis_server: str, geo_replication: bool) -> None:
    """The Enterprise policy takes a transaction whose keys are in one slot alone."""
    with (
        Emulator(
            redis_server=redis_server,
            profile="amr-enterprise",
            geo_replication=geo_replication,
        ) as emulator,
        client(emulator) as user,
    ):
        for keys in (APART, TOGETHER, ("a", "a"), ("b", "{b}2", "a")):
            slots = {key_slot(key.encode()) for key in keys}
            with user.pipeline(transaction=True) as pipeline:
                for key in keys:
                    pipeline.set(key, "x" * 100_000)
                    pipeline.ping()
                if len(slots) == 1:
                    assert pipeline.execute() == [True, True] * len(keys)
                    continue
                with pytest.raises(redis.ResponseError, match="same slot"):
                    pipeline.execute()
            # Nothing of it was done, and the connection goes on.
            assert not user.exists("{b}2")
        # Outside of one, and where there is no such policy, keys may be anywhere.
        with user.pipeline(transaction=False) as pipeline:
            for key in APART:
                pipeline.set(key, 1)
            assert pipeline.execute() == [True, True]
        user.execute_command("MULTI")
        assert refused(user, "SET", "a", 1) is None
        assert refused(user, "DISCARD") is None
        assert refused(user, "SET", "b", 1) is None


def ask_imds(emulator: Emulator) -> requests.Response:
    """Ask for a token."""
    return requests.get(
        emulator.imds_url + IMDS_PATH,
        params={"api-version": "2018-02-01", "resource": REDIS},
        headers={"Metadata": "true"},
        timeout=30,
    )


def test_imds_serves_some_at_a_time(emulator: Emulator) -> None:
    """Whoever comes while as many as the limit are served is refused, at once."""
    emulator.imds_at_a_time, emulator.imds_latency = 5, 2.0
    with ThreadPoolExecutor(8) as executor:
        answers = list(executor.map(ask_imds, [emulator] * 8))
    statuses = sorted(answer.status_code for answer in answers)
    assert statuses == [200] * 5 + [429] * 3
    assert all("Date" in answer.headers for answer in answers)
    assert ask_imds(emulator).status_code == 200


def test_imds(redis_server: str) -> None:
    """With a profile it repeats tokens, and serves so many requests in a second."""

    def ask() -> requests.Response:
        return ask_imds(emulator)

    with Emulator(redis_server=redis_server, profile="amr-nocluster") as emulator:
        assert (emulator.repeat_tokens, emulator.imds_limit) == (True, 20)
        assert emulator.imds_at_a_time == 5
        emulator.imds_limit = 3
        clock = emulator._clock
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(clock, "monotonic", lambda: 1000.0)
            answers = [ask() for _ in range(5)]
            patch.setattr(clock, "monotonic", lambda: 1001.0)
            answers.append(ask())
        statuses = [answer.status_code for answer in answers]
        assert statuses == [200, 200, 200, 429, 429, 200]
        assert answers[3].json()["error_description"] == "Too many requests"
        assert [one.outcome for one in emulator.requests][2:4] == ["ok", "429"]
        tokens = {answer.json().get("access_token") for answer in answers}
        assert len(tokens - {None}) == 1
        # For most of its life.
        emulator.imds_limit = None
        emulator.set_clock(0.75 * emulator.token_lifetime)
        tokens.add(ask().json()["access_token"])
        emulator.set_clock(0.85 * emulator.token_lifetime)
        tokens.add(ask().json()["access_token"])
        assert len(tokens - {None}) == 2


@pytest.mark.parametrize(
    ("name", "host", "foreign"),
    [
        ("acr", "contoso.redis.cache.windows.net", "a.b.redis.cache.windows.net"),
        (
            "amr-enterprise",
            "contoso.westeurope.redis.azure.net",
            "contoso.northeurope.redis.azure.net",
        ),
    ],
)
@pytest.mark.parametrize("newest", [True, False])
def test_certificate(
    redis_server: str, name: str, host: str, foreign: str, newest: bool
) -> None:
    """It is for any name in the service's domain, and its key is an RSA key."""
    with Emulator(redis_server=redis_server, profile=name) as emulator:
        context = ssl.create_default_context(cafile=str(emulator.ca_file))
        if not newest:
            context.maximum_version = ssl.TLSVersion.TLSv1_2
        port = int(emulator.redis_url.rpartition(":")[2])

        def greet(server_name: str) -> ssl.SSLSocket:
            sock = socket.create_connection(("127.0.0.1", port), 30)
            try:
                return context.wrap_socket(sock, server_hostname=server_name)
            except BaseException:
                sock.close()
                raise

        for right in (host, "localhost"):
            with greet(right) as sock:
                cipher = sock.cipher()
                assert cipher
                assert newest or "RSA" in cipher[0]
                # Azure Managed Redis has no other suites of TLS 1.2.
                assert newest or name == "acr" or "GCM" not in cipher[0]
                found = sock.getpeercert(binary_form=True)
                assert found
                key = x509.load_der_x509_certificate(found).public_key()
                assert isinstance(key, rsa.RSAPublicKey)
        with pytest.raises(ssl.SSLCertVerificationError):
            greet(foreign)


def test_oss_cluster(cluster_server: str) -> None:
    """The OSS policy is a cluster, under active geo-replication, too."""
    with Emulator(
        redis_server=cluster_server, profile="amr-oss", geo_replication=True
    ) as emulator:
        assert len(emulator.nodes()) == 6
        with client(emulator) as user:
            for command in (("SELECT", 1), ("DEL", *APART), ("FLUSHDB",), ("SAVE",)):
                assert refused(user, *command) is not None, command
            assert refused(user, "CLUSTER", "SLOTS") is None


def test_nobody_in_particular(redis_server: str) -> None:
    """Whoever is not authenticated is told so, and nothing of the profile."""
    with (
        Emulator(redis_server=redis_server, profile="acr") as emulator,
        redis.Redis.from_url(emulator.plaintext_url, protocol=2) as user,
    ):
        with pytest.raises(redis.AuthenticationError):
            user.execute_command("CONFIG", "GET", "x")
        user.connection_pool.disconnect()


def test_what_there_is_not() -> None:
    """A profile that is none, or none that is replicated, is an error."""
    with pytest.raises(ValueError, match="profile is one of amr-enterprise"):
        Emulator(profile="elasticache")
    with pytest.raises(ValueError, match="is for a profile"):
        Emulator(geo_replication=True)
    for name in ("amr-nocluster", "acr"):
        with pytest.raises(ValueError, match="active geo-replication"):
            Emulator(profile=name, geo_replication=True)


def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    """The command line has them, and says which it is."""
    options = __main__.parser().parse_args(["--profile", "acr"])
    assert options.profile == "acr"
    assert __main__.main(["--profile", "acr", "--geo-replication"]) == 1
    assert "cannot start" in capsys.readouterr().err
    with Emulator(profile="acr") as emulator:
        __main__.introduce(emulator)
    assert "profile           acr" in capsys.readouterr().out


def test_keys_are_found() -> None:
    """Whatever it looks at, a command of one slot alone is taken, however formed."""
    for profile in PROFILES.values():
        for name in profile.looked_at - profile.blocked - {b"SELECT"} - TRANSACTIONS:
            for arguments in ([], [b"a"], [b"x", b"nine"], [b"{a}1", b"1", b"{a}2"]):
                command = Command((name, *arguments))
                refusal = profile.refuses(command)
                slots = {key_slot(argument) for argument in arguments}
                assert refusal is None or len(slots) > 1


def test_replies_cut_anywhere() -> None:
    """Errors get their words wherever the server's replies are cut."""
    for quote in (b"'", b"`"):
        refusals = Refusals()
        names = []
        for error in (b"ONE", b"TWO"):
            asked = refusals.ask(error)
            names.append(asked.split(b"\r\n")[2])
        sent = b"+OK\r\n$22\r\n-ERR unknown command '\r\n"
        sent += b"-ERR unknown command %b%b%b, with args\r\n" % (quote, names[0], quote)
        sent += b":1\r\n-ERR unknown command %b%b\r\n+END\r\n" % (quote, names[1])
        want = b"+OK\r\n$22\r\n-ERR unknown command '\r\n-ONE\r\n:1\r\n-TWO\r\n+END\r\n"
        for _ in range(200):
            cuts = sorted(random.choices(range(len(sent)), k=random.randint(0, 9)))
            again = Refusals()
            again._pending.extend(refusals._pending)
            parts = [
                sent[begin:end]
                for begin, end in zip([0, *cuts], [*cuts, None], strict=True)
            ]
            assert b"".join(map(again.put_into, parts)) == want


def test_profile_of_a_name() -> None:
    """Each has the name that it is found by."""
    for name, profile in PROFILES.items():
        assert find_profile(name, geo_replicated=False) is profile
        assert profile.name == name


def test_access_policy(redis_server: str) -> None:
    """Data Contributor, the policy of Azure Cache for Redis, is not for FLUSHDB."""
    with (
        Emulator(redis_server=redis_server, profile="acr") as emulator,
        client(emulator) as user,
    ):
        assert refused(user, "SET", "key", "value") is None
        assert "FLUSHDB" in str(refused(user, "FLUSHDB")).upper()


@pytest.mark.parametrize(("name", "says"), [("acr", "ERR WRONGPASS"), ("amr-oss", "")])
def test_refused_token(cluster_server: str, name: str, says: str) -> None:
    """Each refuses an AUTH in its own words."""
    with Emulator(redis_server=cluster_server, profile=name) as emulator:
        assert (emulator.refusal or "").startswith(says)
        assert bool(emulator.refusal) == bool(says)


def test_idle_connections(redis_server: str) -> None:
    """Who says nothing for long is disconnected; who has said something is not."""
    with Emulator(
        redis_server=redis_server, profile="amr-nocluster", idle_timeout=0.5
    ) as emulator:
        assert Emulator(profile="acr").idle_timeout == 600.0
        opened = emulator.stats.connections_opened
        with client(emulator) as user:
            for _ in range(8):
                user.ping()
                time.sleep(0.1)
            assert emulator.stats.connections_opened == opened + 1
            deadline = time.monotonic() + 30
            while emulator.stats.connections_open:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert user.ping()
