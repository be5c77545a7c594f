"""One measurement at a time: a round of registrations, or the memory of idle connections.

Both raise `NotMeasuredError` when the path that they claim to measure did not run: a figure from an empty pool,
a restarted shard or an idle second shard would look better than the truth.
"""

import msgspec

from bench.accounting import cpu_ns, memory_bytes
from bench.loadgen import LoadGenerator, Registered
from bench.targets import Pool, Target, wait_for_connections

__all__ = ["Memory", "NotMeasuredError", "Round", "measure_memory", "measure_round", "path_faults", "warm_up"]

#: Registrations before the first figure: imports, first growth of tables and pools.
WARM_UP = 500
#: A shard with less than this part of its even share was not used.
USED_SHARE = 0.25


class NotMeasuredError(Exception):
    """The measured path did not run, and why."""


class Round(msgspec.Struct, frozen=True):
    """One round on one target. CPU is that of all its processes; the generator's own stands beside it."""

    target: str
    in_handshake: int
    registrations: int
    per_s: float
    cpu_us: float
    close_cpu_us: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    generator_cpu_us: float
    generator_busy: float
    connect_retries: int


class Memory(msgspec.Struct, frozen=True):
    """Memory of all processes of a target, before and with `connections` idle connections."""

    target: str
    connections: int
    before_bytes: int
    with_bytes: int
    bytes_per_connection: float


def path_faults(before: Pool, after: Pool, report: Registered) -> list[str]:
    """What shows that not all registrations of `report` went the measured way, between two looks at the pool."""
    faults = []
    if report.accepted != report.asked:
        faults.append(
            f"{report.refused} answers were no acceptance, {report.failed} handshakes failed, "
            f"the first: {report.first_failure}"
        )
    if report.lost:
        faults.append(f"{report.lost} accepted connections were closed by the listener")
    if after.connections != report.asked:
        faults.append(f"{after.connections} connections in the pool after {report.asked} registrations")
    if after.accepted_total - before.accepted_total != report.asked:
        faults.append(f"{after.accepted_total - before.accepted_total} acceptances counted by the listener")
    if after.restarts != before.restarts or after.pids != before.pids:
        faults.append(f"a process was replaced: {sorted(before.pids)} became {sorted(after.pids)}")
    faults += [
        f"shard {shard} was not used: {connections} of {report.asked} connections"
        for shard, connections in after.per_shard.items()
        if connections < report.asked / len(after.per_shard) * USED_SHARE
    ]
    return faults


def measure_round(target: Target, generator: LoadGenerator, registrations: int, in_handshake: int) -> Round:
    """Registers, looks into the pool, closes all and waits until the pool is empty.

    The CPU counted runs from before the first connect() until the pool has been seen full: work that a listener
    puts off until after its answer is part of a registration. Raises `NotMeasuredError`.
    """
    before = _empty(target)
    cpu_before = cpu_ns(before.pids)
    report = generator.register(registrations, in_handshake)
    after = wait_for_connections(target, report.accepted)
    cpu_full = cpu_ns(before.pids)
    _require_path(target, before, after, report)
    generator.close()
    _empty(target)
    return Round(
        target=target.name,
        in_handshake=in_handshake,
        registrations=registrations,
        per_s=registrations / report.seconds,
        cpu_us=(cpu_full - cpu_before) / 1e3 / registrations,
        close_cpu_us=(cpu_ns(before.pids) - cpu_full) / 1e3 / registrations,
        p50_ms=report.p50_us / 1e3,
        p99_ms=report.p99_us / 1e3,
        max_ms=report.max_us / 1e3,
        generator_cpu_us=report.cpu_s * 1e6 / registrations,
        generator_busy=report.cpu_s / report.seconds,
        connect_retries=report.connect_retries,
    )


def warm_up(target: Target, generator: LoadGenerator) -> None:
    """A first, unmeasured round, checked like the others."""
    measure_round(target, generator, WARM_UP, 16)


def measure_memory(target: Target, generator: LoadGenerator, connections: int) -> Memory:
    """Memory that a *freshly started* target takes for `connections` idle connections.

    Before is after a warm-up of a few hundred, so that what is loaded and allocated once is not counted. It is
    not after as many as will be held: an allocator keeps what it has had, and the figure would be near nothing.
    Raises `NotMeasuredError`.
    """
    warm_up(target, generator)
    before = _empty(target)
    before_bytes = memory_bytes(before.pids)
    report = generator.register(connections, 16)
    after = wait_for_connections(target, report.accepted)
    _require_path(target, before, after, report)
    with_bytes = memory_bytes(before.pids)
    generator.close()
    _empty(target)
    return Memory(target.name, connections, before_bytes, with_bytes, (with_bytes - before_bytes) / connections)


def _empty(target: Target) -> Pool:
    pool = wait_for_connections(target, 0)
    if pool.connections:
        raise NotMeasuredError(f"{target.name}: {pool.connections} connections still in the pool after all closed")
    return pool


def _require_path(target: Target, before: Pool, after: Pool, report: Registered) -> None:
    if faults := path_faults(before, after, report):
        raise NotMeasuredError(f"{target.name}, {report.in_handshake} in handshake: " + "; ".join(faults))
