"""What a new TLS connection costs."""

import socket
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import certifi
import redis
from django.core.cache import caches
from django.test import override_settings

from .identity import environment, identity_settings, with_and_without
from .report import Report, Target, show, show_ratio
from .rounds import Sample, cpu_of, duel
from .servers import EmulatorProcess

TARGET = Target(5.0)


def measure_connects(emulator: EmulatorProcess, report: Report) -> None:
    """Measure connecting anew, with a whole store of trusted certificates."""
    report.line(
        "Client CPU time of get() on a new TLS connection, in ms: median "
        "(minimum-maximum). The machine trusts the public authorities, as usual."
    )
    report.line()
    report.table("", "django-entra-redis", "redis.Redis", "ratio", "target")
    description = emulator.description
    # In place of the system's store: its certificates and the emulator's.
    store = emulator.directory / "store.pem"
    own = Path(description["ca_file"])
    store.write_bytes(Path(certifi.where()).read_bytes() + own.read_bytes())
    caches_settings = with_and_without(emulator, description["redis_url"], {})
    fixed = caches_settings["without"]["OPTIONS"]
    client = redis.Redis.from_url(
        description["redis_url"],
        username=fixed["username"],
        password=fixed["password"],
        socket_timeout=fixed["socket_timeout"],
    )
    with (
        environment(
            {"SSL_CERT_FILE": str(store), "REQUESTS_CA_BUNDLE": description["ca_file"]}
        ),
        override_settings(
            CACHES=caches_settings, ENTRA_REDIS=identity_settings(description)
        ),
        client,
    ):

        def bare() -> None:
            client.connection_pool.disconnect()
            client.get("key")

        for what, alias in {"no identity": "without", "Entra": "with"}.items():
            cache: Any = caches[alias]

            def ours(cache: Any = cache) -> None:
                cache.get_pool().disconnect()
                cache.get("key")

            result = report.settle(
                f"new TLS connection, {what}",
                duel(cpu_of(ours), cpu_of(bare), report.rounds),
            )
            report.row(
                f"new connection, {what}",
                show(result.ours, 1e-3),
                show(result.theirs, 1e-3),
                show_ratio(result.ratio, 1),
                report.verdict(f"new connection, {what}", result.ratio, TARGET),
            )
    report.line()
    _measure_resumption(description["redis_url"], own, report)


def _measure_resumption(url: str, ca_file: Path, report: Report) -> None:
    report.line(
        "The handshake alone, in µs of client CPU time, with Python's ssl and one "
        "context: what resuming a session saves."
    )
    report.line()
    report.table("TLS", "resumed", "full", "ratio")
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context = ssl.create_default_context(cafile=str(ca_file))
        context.minimum_version = context.maximum_version = version
        result = report.settle(
            f"handshake, {version.name}",
            duel(
                _handshakes(url, context, resume=True),
                _handshakes(url, context, resume=False),
                report.rounds,
            ),
        )
        report.row(
            version.name.removeprefix("TLSv").replace("_", "."),
            show(result.ours),
            show(result.theirs),
            show_ratio(result.ratio),
        )
    report.line()


def _handshakes(url: str, context: ssl.SSLContext, *, resume: bool) -> Sample:
    host, port = urlsplit(url).hostname, urlsplit(url).port
    last: list[ssl.SSLSession | None] = [None]

    def handshake() -> None:
        with (
            socket.create_connection((host, port)) as plain,
            context.wrap_socket(plain, server_hostname=host, session=last[0]) as tls,
        ):
            # In TLS 1.3 the ticket comes after the handshake, with the first answer.
            tls.sendall(b"PING\r\n")
            tls.recv(100)
            if resume:
                assert last[0] is None or tls.session_reused
                # One for all: to take each new ticket costs more than it saves.
                last[0] = last[0] or tls.session

    handshake()
    return cpu_of(handshake)
