"""The soak: agents come and go, a proxy asks without a pause, and every few seconds something breaks or is replaced.

    python -m bench.soak --minutes 10

After each fault the counts of agents, kernel, shards and supervisor must agree again. It prints what was lost by cause,
and fails when anything was that the fault does not explain: a connection dies with its own shard and with nothing else,
a request fails when its agent's shard is killed and never otherwise, a registration is cut off when the supervisor or
the shard that has it is killed. And it fails when an agent had more connections than its limit, when descriptors are
left over, and when a process grows.
"""

import argparse
import contextlib
import os
import random
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from bench.accounting import ProcessGoneError, memory_bytes
from bench.world import Account, BrokenError, World
from ipc import query

__all__ = ["Growth", "Row", "main"]

BETWEEN_S = (0.5, 2.5)
"""Seconds of load before each fault."""

LONG_S = 20.0
"""Seconds for which the supervisor is stopped: it replaces a shard that is silent for 15."""

MOST_SHARDS = 5
MOST_GROWTH = 2.0
"""MB a minute by which a process may grow, when it was looked at for `GROWTH_SECONDS` in all."""
GROWTH_SECONDS = 120.0
SETTLED_S = 30.0
"""Age from which on a process is looked at."""


class Soak:
    """The faults; each returns the ends of connections that may be lost by it."""

    def __init__(self, world: World) -> None:
        self.world = world

    def kill_shard(self) -> set[str]:
        """SIGKILL a shard."""
        self.world.wait_for(lambda: len(self.world.running()) >= 2, "two running shards", 60)
        return set(self.world.kill_shard(random.choice(self.world.running()))[1])

    def kill_supervisor(self) -> set[str]:
        """SIGKILL the supervisor; the next one comes at once, or after a while."""
        self.world.kill_supervisor()
        time.sleep(random.choice([0.0, 0.0, 1.0]))
        self.world.start_supervisor()
        return set()

    def kill_supervisor_in_operation(self) -> set[str]:
        """SIGKILL the supervisor while connections move."""
        if random.random() < 0.5:
            self.world.begin_operation("restart")
            time.sleep(random.uniform(0.2, 1.5))
        else:
            self.world.begin_operation("drain", number=random.choice(self.world.running()))
            time.sleep(random.uniform(0, 0.03))
        return self.kill_supervisor()

    def stop_shard(self) -> set[str]:
        """SIGSTOP a shard, for a moment or until it is found silent."""
        with self._stopped(self.world.pids()[random.choice(self.world.running())]):
            time.sleep(random.choice([0.2, 1.0, 3.0]))
        return set()

    def stop_supervisor(self) -> set[str]:
        """SIGSTOP the supervisor for a moment."""
        with self._stopped(self.world.supervisor.pid):
            time.sleep(random.choice([0.2, 1.0]))
        return set()

    def stop_supervisor_for_long(self) -> set[str]:
        """SIGSTOP the supervisor for longer than it lets a shard be silent."""
        with self._stopped(self.world.supervisor.pid):
            time.sleep(LONG_S)
        return set()

    def attack(self) -> set[str]:
        """Have registered agents flood their shards with what is dear to read, or never ends, or is never read."""
        with self.world.attacked():
            time.sleep(random.uniform(2, 4))
        return set()

    def fill_disk(self) -> set[str]:
        """Fill the runtime directory, and SIGKILL a shard, which must come back all the same."""
        if self.world.disk is None:
            return self.kill_shard()
        with self.world.disk.full():
            ends = self.kill_shard()
            self.world.wait_until_running()
        return ends

    def drain(self) -> set[str]:
        """Drain a shard, and let it take connections again."""
        shard = random.choice(self.world.running())
        self._operate("drain", number=shard)
        self._operate("undrain", number=shard)
        return set()

    def restart(self) -> set[str]:
        """Restart all shards, one after the other."""
        self._operate("restart")
        return set()

    def scale_up(self) -> set[str]:
        """Add a shard or two."""
        self._operate("scale", number=min(MOST_SHARDS, len(self.world.running()) + random.choice([1, 2])))
        return set()

    def scale_down(self) -> set[str]:
        """Take shards away."""
        self._operate("scale", number=max(2, len(self.world.running()) - random.choice([1, 2])))
        return set()

    def _operate(self, what: str, number: int = 0) -> None:
        row = self.world.operate(what, number=number)
        if row.error is not None:
            raise BrokenError(f"'{row.name}' failed: {row.error}")

    @staticmethod
    @contextlib.contextmanager
    def _stopped(pid: int) -> Iterator[None]:
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)


FAULTS: dict[str, Callable[[Soak], set[str]]] = {
    "shard killed": Soak.kill_shard,
    "supervisor killed": Soak.kill_supervisor,
    "supervisor killed in an operation": Soak.kill_supervisor_in_operation,
    "shard stopped": Soak.stop_shard,
    "supervisor stopped": Soak.stop_supervisor,
    "supervisor stopped for long": Soak.stop_supervisor_for_long,
    "agents attack": Soak.attack,
    "disk full, shard killed": Soak.fill_disk,
    "drain, undrain": Soak.drain,
    "rolling restart": Soak.restart,
    "scaled up": Soak.scale_up,
    "scaled down": Soak.scale_down,
}
KILLING = {"shard killed", "disk full, shard killed"}
"""Faults that end a shard with all that is in flight on it."""
CUTTING = {*KILLING, "supervisor killed", "supervisor killed in an operation"}
"""Faults that may end a registration without an answer."""
BLINDING = {"shard stopped", "supervisor stopped", "supervisor stopped for long"}
"""Faults during which an agent may be told that it is at its limit, because the shard that knows better is silent."""


@dataclass
class Row:
    """What one kind of fault has done."""

    times: int = 0
    lost_with_their_shard: int = 0
    lost: int = 0
    failed_with_their_shard: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    answered: int = 0
    cut: int = 0
    refused_wrongly: int = 0
    exact_s: list[float] = field(default_factory=list)
    longest_ms: float = 0.0

    def add(self, kind: str, new: Account, ends: set[str], exact_s: float) -> list[str]:
        """Add what was met around one fault; what cannot be explained by it."""
        self.times += 1
        self.answered += new.answered
        self.cut += new.cut
        self.exact_s.append(exact_s)
        self.longest_ms = max(self.longest_ms, new.longest_ms)
        strangers = [closed for closed in new.closed if closed.end not in ends]
        self.lost_with_their_shard += len(new.closed) - len(strangers)
        self.lost += len(strangers)
        wrong = [f"connection lost: {closed}" for closed in strangers]
        if kind in KILLING:
            explained = [f for f in new.failed if f.code in {"connection_lost", "agent_not_found"}]
        else:
            explained = []
        self.failed_with_their_shard.update(failed.code for failed in explained)
        for failed in new.failed:
            if failed not in explained:
                self.failed[failed.code] += 1
                wrong.append(f"request failed: {failed}")
        refused = [refused for refused in new.refused if refused.wrongly or refused.error_code != "connection_limit"]
        self.refused_wrongly += len(refused)
        if kind not in BLINDING:
            wrong += [f"refused: {one}" for one in refused]
        if new.cut and kind not in CUTTING:
            wrong.append(f"{new.cut} registrations ended without an answer")
        return wrong


class Growth:
    """Memory of processes over their age: how fast each kind grows, all its lives taken together."""

    def __init__(self) -> None:
        self._lives: dict[str, dict[int, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
        self._born: dict[int, float] = {}

    def look(self, pids: dict[str, list[int]]) -> None:
        """Note how large the processes of each kind are now."""
        now = time.monotonic()
        for kind, living in pids.items():
            for pid in living:
                age = now - self._born.setdefault(pid, now)
                with contextlib.suppress(ProcessGoneError):
                    if age > SETTLED_S:
                        self._lives[kind][pid].append((age, memory_bytes([pid]) / 1e6))

    def slopes(self) -> dict[str, tuple[float, float]]:
        """Kind → MB a minute, and the seconds in which it was seen: least squares, each life with its own height."""
        return {kind: self._slope(lives.values()) for kind, lives in self._lives.items()}

    @staticmethod
    def _slope(lives: Iterable[list[tuple[float, float]]]) -> tuple[float, float]:
        above = below = seconds = 0.0
        for life in lives:
            age = sum(a for a, _ in life) / len(life)
            size = sum(s for _, s in life) / len(life)
            above += sum((a - age) * (s - size) for a, s in life)
            below += sum((a - age) ** 2 for a, _ in life)
            seconds += life[-1][0] - life[0][0]
        return (60 * above / below if below else 0.0), seconds


def soak(world: World, minutes: float) -> None:
    """Break things for so long, print the table, and raise `BrokenError` when something is wrong."""
    wrong = _break_things(world, minutes)
    if wrong:
        raise BrokenError("\n".join(wrong[:50]))


def _break_things(world: World, minutes: float) -> list[str]:
    doer, growth = Soak(world), Growth()
    rows: dict[str, Row] = defaultdict(Row)
    wrong: list[str] = []
    end = time.monotonic() + 60 * minutes
    world.collect()
    while time.monotonic() < end and not wrong:
        # Each kind as often as the others, in an order of its own.
        for kind in random.sample(sorted(FAULTS), len(FAULTS)):
            if time.monotonic() > end or wrong:
                break
            world.pace(20, 10)
            time.sleep(random.uniform(*BETWEEN_S))
            began = time.monotonic()
            try:
                ends = FAULTS[kind](doer)
                world.pace(0, 0)
                world.wait_until_running()
                world.wait_for(lambda: _is_idle(world), "the operation to end", 120)
                exact_s = world.wait_until_exact(30)
            except (BrokenError, query.QueryError) as error:
                return [*wrong, f"{kind}: {error}"]
            # It waits for what has waited for a stopped process, which belongs to this fault.
            found = rows[kind].add(kind, world.collect(), ends, exact_s)
            wrong += [f"{kind}: {line}" for line in found]
            print(f"{kind}: {time.monotonic() - began:.2f} s, exact after {exact_s:.3f} s", file=sys.stderr, flush=True)
            wrong += [f"{kind}: {line}" for line in world.excess()]
            growth.look({"supervisor": [world.supervisor.pid], "shard": list(world.pids().values())})
    try:
        world.check_never()
    except BrokenError as error:
        wrong.append(str(error))
    _print_table(rows, growth, world)
    wrong += [
        f"a {kind} grows by {slope:.2f} MB a minute"
        for kind, (slope, seconds) in growth.slopes().items()
        if slope > MOST_GROWTH and seconds > GROWTH_SECONDS
    ]
    return wrong


def _is_idle(world: World) -> bool:
    """Whether no operation is under way, of an operator or of a supervisor that found too many shards."""
    operation = world.operation()
    return operation is None or operation.is_done


def _print_table(rows: dict[str, Row], growth: Growth, world: World) -> None:
    head = ["fault", "times", "lost with their shard", "lost otherwise", "answered", "failed with their shard"]
    head += ["failed otherwise", "slowest answer", "counts exact (slowest)"]
    print("| " + " | ".join(head) + " |")
    print("| --- |" + " ---: |" * (len(head) - 1))
    for kind, row in sorted(rows.items(), key=lambda item: list(FAULTS).index(item[0])):
        cells = [kind, row.times, row.lost_with_their_shard, row.lost, f"{row.answered:,}"]
        cells += [row.failed_with_their_shard.total(), row.failed.total(), f"{row.longest_ms:,.0f} ms"]
        print("| " + " | ".join(map(str, [*cells, f"{max(row.exact_s):.2f} s"])) + " |")
    total = world.total
    refused = Counter(refused.error_code for refused in total.refused)
    slopes = ", ".join(f"{kind} {slope:+.2f} MB a minute" for kind, (slope, _) in sorted(growth.slopes().items()))
    wrongly = sum(row.refused_wrongly for row in rows.values())
    print(
        f"\n{total.left_by_themselves:,} connections closed by their agents, {total.accepted:,} accepted; {total.cut}"
        f" registrations cut off by a kill; refused: {dict(refused)}, {wrongly} of them while a process was stopped;"
        f" above the limit: {len(total.overshoots)}; growth: {slopes or 'not seen'}"
    )


def main() -> None:
    """Command line, see the module's docstring."""
    parser = argparse.ArgumentParser(description="Agents, load, and a fault every few seconds.")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--agents", type=int, default=200, help="agents, with two connections each")
    parser.add_argument("--seed", type=int, default=None, help="of the faults' order; a new one each time by default")
    options = parser.parse_args()
    seed = random.randrange(10**6) if options.seed is None else options.seed
    print(f"seed {seed}", file=sys.stderr)
    random.seed(seed)
    try:
        with World.begin(
            shards=3, agents=options.agents, connections=2, limit=2, options=("--tcp", "127.0.0.1:0"), small_disk=True
        ) as world:
            soak(world, options.minutes)
    except BrokenError as error:
        sys.exit(f"broken (seed {seed}):\n{error}")
    print("clean")


if __name__ == "__main__":
    main()
