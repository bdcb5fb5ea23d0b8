"""What the cache on a cluster costs, and what more primaries bring."""

import pickle
import subprocess
import sys
import time
from contextlib import ExitStack

from django.core.cache import caches
from django.test import override_settings
from redis.cluster import RedisCluster

from .contenders import CLUSTER, OURS, cache_settings, cluster_settings, one_kilobyte
from .operations import VALUES, Operation, operations
from .report import Report, Target, show, show_ratio
from .rounds import cpu_of, duel
from .servers import ClusterServers, RedisServer

#: What an operation may cost on a cluster, of what it costs on one server.
SINGLE = {"get": Target(1.3, at_most=True), "set": Target(1.3, at_most=True)}
#: How much faster it is to be than redis-py's client, driven per command.
PER_COMMAND = {"get_many(100)": Target(1.5), "set_many(100)": Target(1.5)}
#: The same, of so many keys at once.
NUMBERS, MANY = 1000, Target(2, at_most=True)
BARE_CLUSTER = "RedisCluster, per command"
CLIENTS = 4
#: Seconds for which clients work, and how often that is repeated.
SPELL = 3.0


def measure_cluster(server: RedisServer, report: Report) -> None:
    """Measure the cluster's backend against the other one, and redis-py's client."""
    report.line("Client CPU time for each operation, in µs: median (minimum-maximum).")
    report.line()
    report.table("operation", "3 primaries", "against", "takes", "ratio", "target")
    value = VALUES["1 KB dict"]
    with ExitStack() as stack:
        servers = stack.enter_context(ClusterServers(server.executable, server.cpus))
        settings = cache_settings(server.url) | cluster_settings(servers.url)
        stack.enter_context(override_settings(CACHES=settings))
        clustered, single = operations(CLUSTER, value), operations(OURS, value)
        for name in (*SINGLE, "incr", *PER_COMMAND):
            what = f"{name}, 1 KB dict"
            report_costs(report, what, single[name], clustered[name], SINGLE.get(name))
        what = f"get_many({NUMBERS:,}), small int"
        numbers = {f"number:{number}": number for number in range(NUMBERS)}
        for cache in (caches[CLUSTER], caches[OURS]):
            cache.set_many(numbers)
        report_costs(
            report,
            what,
            lambda: caches[OURS].get_many(numbers),
            lambda: caches[CLUSTER].get_many(numbers),
            MANY,
        )
        client = stack.enter_context(RedisCluster.from_url(servers.url))
        bare = per_command(client)
        for name, target in PER_COMMAND.items():
            report.versus(
                f"{name}, 1 KB dict",
                BARE_CLUSTER,
                cpu_of(clustered[name]),
                cpu_of(bare[name]),
                target,
            )
    report.line()
    measure_growth(server, report)


def report_costs(
    report: Report,
    what: str,
    single: Operation,
    clustered: Operation,
    target: Target | None,
) -> None:
    """Measure an operation on a cluster against the same on one server."""
    result = report.settle(
        f"{what}, on one server",
        duel(cpu_of(single), cpu_of(clustered), report.rounds),
    )
    report.row(
        what,
        show(result.theirs),
        "one server",
        show(result.ours),
        f"{show_ratio(result.ratio)} of the cost",
        report.verdict(f"{what}, on a cluster", result.ratio, target),
    )


def per_command(client: RedisCluster) -> dict[str, Operation]:
    """Return what redis-py's client does, a command for each key."""
    data = {
        f"many:{number}": pickle.dumps(one_kilobyte(number)) for number in range(100)
    }
    return {
        "get_many(100)": lambda: [client.get(key) for key in data],
        "set_many(100)": lambda: [
            client.set(key, value, ex=300) for key, value in data.items()
        ],
    }


def measure_growth(server: RedisServer, report: Report) -> None:
    """Measure how many operations several clients get done, by the clock."""
    report.line(
        f"get_many(100) and set_many(100) of the 1 KB dict by {CLIENTS} client "
        "processes: keys a second."
    )
    report.line()
    report.table("primaries", "keys a second")
    for primaries in (1, 2, 3):
        report.progress(f"{CLIENTS} clients on {primaries} primaries")
        with ClusterServers(server.executable, (), primaries) as servers:
            clients = [
                subprocess.Popen(
                    [sys.executable, "-m", "benchmarks.cluster", servers.url],
                    stdout=subprocess.PIPE,
                    text=True,
                )
                for _ in range(CLIENTS)
            ]
            counts = [int(client.communicate()[0]) for client in clients]
        report.row(primaries, f"{sum(counts) / SPELL:,.0f}")
    report.line()


def work(url: str) -> int:
    """Return how many keys have been read and written in a while."""

    with override_settings(CACHES=cluster_settings(url)):
        cache = caches[CLUSTER]
        data = {f"many:{number}": one_kilobyte(number) for number in range(100)}
        cache.set_many(data)
        count, end = 0, time.perf_counter() + SPELL
        while time.perf_counter() < end:
            cache.set_many(data)
            cache.get_many(data)
            count += 2 * len(data)
        return count


def main() -> None:
    """Be one of the clients."""
    import django
    from django.conf import settings

    settings.configure(USE_TZ=True)
    django.setup()
    print(work(sys.argv[1]))


if __name__ == "__main__":
    main()
