"""The state of one shard, and the decisions that follow from it. Pure: `supervisor.fleet` acts on them.

::

    down ──start──► starting ──hello──► running ◄──heartbeat── unhealthy
      ▲                │                  │  └──silence──────────▲ │
      └────────────────┴────process ended─┴────────────────────────┘
"""

import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from ipc.status import RequestLatency, ShardReport, ShardRow, ShardState
from supervisor.respawn import Backoff

SILENCE_LIMIT = 2.0
"""Seconds without a heartbeat (one every 0.5 s) after which a shard gets no connections."""

REPLACE_AFTER = 15.0
"""Seconds without a heartbeat after which a shard's process is ended and started anew."""

BOOT_LIMIT = 20.0
"""Seconds from start to the first heartbeat. It is longer than `REPLACE_AFTER`: a start may be slow on a busy host."""

WORKING_LONGER = 4
"""Factor for the limit of a silent shard that uses the processor: it works, but slowly."""

WORKS_SHARE = 0.02
"""Share of one processor from which on a silent process counts as working. A hanging process uses none. On a busy host
a working one may get only a few percent."""

CPU_SECONDS = 1.0
"""Seconds between readings of a silent process's processor time. The kernel counts it in hundredths of a second."""

KILL_AFTER = 1.0
"""Seconds between SIGABRT, which makes the shard print its stacks, and SIGKILL."""

END_MARGIN = 3.0
"""Seconds after `Care.end_by` until a shard that was asked to end gets SIGTERM. After as many more it gets SIGKILL."""

FOREIGN_LIMIT = 20.0
"""Seconds that a shard of another version has to drain. A drain takes 10 s."""

_TRANSITIONS: dict[ShardState, frozenset[ShardState]] = {
    ShardState.DOWN: frozenset({ShardState.STARTING}),
    ShardState.STARTING: frozenset({ShardState.RUNNING, ShardState.DOWN, ShardState.DRAINING}),
    ShardState.RUNNING: frozenset({ShardState.UNHEALTHY, ShardState.DOWN, ShardState.DRAINING}),
    ShardState.UNHEALTHY: frozenset({ShardState.RUNNING, ShardState.DOWN, ShardState.DRAINING}),
    ShardState.DRAINING: frozenset({ShardState.DOWN}),
}

GAPS = ("events", "counts", "doubt")
"""Kinds of gaps that are repaired: lost events of the shard, lost counts sent to it, and counts that do not agree."""


class IllegalTransition(Exception):
    """A shard cannot change from its state to the given one. Nothing was changed."""


@dataclass(slots=True)
class Care:
    """The state of one shard. Times are seconds in which the supervisor ran (`dialout.awake`)."""

    shard: int
    state: ShardState = ShardState.DOWN
    epoch: str = ""
    started_at: float = 0.0
    heard_at: float = 0.0
    sequence: int | None = None
    report: ShardReport | None = None
    latency: RequestLatency = field(default_factory=RequestLatency)
    restarts: int = 0
    last_event: str | None = None
    last_event_at: str | None = None
    backoff: Backoff = field(default_factory=Backoff)
    answer_limit: float = BOOT_LIMIT
    doubt: int = 0
    gaps: dict[str, int] = field(default_factory=lambda: dict.fromkeys(GAPS, 0))
    has_counts: bool = False
    capacity: int = 0
    """How many agents' connections its descriptors allow, by the last report of any of its processes. 0: unknown."""

    draining: bool = False
    """It gets no connections, by an operator's command. *state* is independent of this."""

    foreign: bool = False
    """Its process speaks another version, so no messages can be exchanged. It drains, and a new process replaces it."""

    end_by: float | None = None
    """The time by which the process should have ended, after it was asked to end. None otherwise."""

    signals: int = 0
    """How many signals the process got because it did not end."""

    signalled_at: float = 0.0

    cpu: tuple[float, float] | None = None
    """The last reading of the processor time of a starting or silent process, and the time of the reading."""

    worked_at: float | None = None
    """When a reading last showed that a silent process works."""

    busy_s: float = 0.0
    """Seconds of processor time since the first reading."""

    def hears_of(self, report: ShardReport, latency: RequestLatency) -> None:
        """Keep the report of a heartbeat."""
        self.report, self.latency = report, latency
        self.capacity = report.capacity or self.capacity

    def go(self, state: ShardState) -> None:
        """Change the state. IllegalTransition when there is no such transition."""
        if state not in _TRANSITIONS[self.state]:
            raise IllegalTransition(f"shard {self.shard}: {self.state} to {state}")
        self.state = state
        if state is ShardState.RUNNING:
            self._forget_cpu()

    def begin(self, epoch: str, now: float, *, found: bool = False) -> None:
        """Note that a process of *epoch* was started, or *found* running."""
        self.go(ShardState.STARTING)
        self.epoch, self.started_at, self.heard_at = epoch, now, now
        self.sequence = self.report = None
        self.latency = RequestLatency()
        self.doubt = 0
        self.has_counts = False
        self.answer_limit = REPLACE_AFTER if found else BOOT_LIMIT
        self._forget_cpu()

    def end(self) -> None:
        """Note that the process has ended."""
        self.go(ShardState.DOWN)
        self.end_by, self.foreign, self.signals = None, False, 0

    def hear(self, sequence: int, now: float) -> bool:
        """Note the number of an event. True when events before it were lost. A shard's first event has the number 1."""
        self.heard_at = now
        lost = sequence != (self.sequence or 0) + 1
        if lost and self.sequence is not None:
            self.gaps["events"] += 1
        self.sequence = sequence
        return lost

    def is_doubtful(self, difference: int) -> bool:
        """Whether the ledger's count and the shard's count have differed by the same number for two heartbeats.

        Under load they differ by the connections under way, by another number each time.
        """
        doubtful = difference != 0 and difference == self.doubt
        self.doubt = difference
        self.gaps["doubt"] += doubtful
        return doubtful

    def wants_counts(self) -> None:
        """Note that the shard asks for all counts. It does so once at its start, and again when it has missed some."""
        self.gaps["counts"] += self.has_counts
        self.has_counts = True

    def is_silent(self, now: float) -> bool:
        """Whether a running shard has missed its heartbeats."""
        return self.state is ShardState.RUNNING and now - self.heard_at > SILENCE_LIMIT

    def used(self, cpu: float, now: float) -> bool:
        """Note the total processor time of a starting or silent process.

        Returns True at the first reading of this silence that shows that the process works.
        """
        if self.cpu is None:
            self.cpu = cpu, now
            return False
        before, at = self.cpu
        if now - at < CPU_SECONDS:
            return False
        self.cpu = cpu, now
        self.busy_s += cpu - before
        if cpu - before < WORKS_SHARE * (now - at):
            return False
        is_first = self.worked_at is None
        self.worked_at = now
        return is_first

    def _forget_cpu(self) -> None:
        self.cpu = self.worked_at = None
        self.busy_s = 0.0

    def is_lost(self, now: float) -> bool:
        """Whether the process should be ended for its silence. A working process gets more time than a hanging one."""
        limit = self.answer_limit if self.state is ShardState.STARTING else REPLACE_AFTER
        if self.worked_at is not None and now - self.worked_at <= 2 * CPU_SECONDS:
            limit *= WORKING_LONGER
        return self.state in (ShardState.STARTING, ShardState.UNHEALTHY) and now - self.heard_at > limit

    def signal_due(self, now: float) -> signal.Signals | None:
        """The signal that its process must get now; None without one.

        A process gets signals when it was asked to end and has not, or when it must be replaced. The first is SIGTERM
        or SIGABRT, the second is SIGKILL. Each is sent once.
        """
        if self.end_by is not None:
            due, gentle, pause = now > self.end_by + END_MARGIN, signal.SIGTERM, END_MARGIN
        else:
            is_late = self.foreign and now - self.started_at > FOREIGN_LIMIT
            due, gentle, pause = is_late or self.is_lost(now), signal.SIGABRT, KILL_AFTER
        if not due or self.signals > 1 or (self.signals and now - self.signalled_at <= pause):
            return None
        self.signals += 1
        self.signalled_at = now
        return gentle if self.signals == 1 else signal.SIGKILL

    def answers_again(self) -> None:
        """Note that a silent shard has been heard from."""
        self.go(ShardState.RUNNING)
        self.signals = 0

    def row(self, pid: int | None, now: float) -> ShardRow:
        """The row of the shard for status, as of its last heartbeat."""
        row = ShardRow(
            id=self.shard,
            pid=pid,
            state=ShardState.DRAINING if self.draining and self.state is ShardState.RUNNING else self.state,
            restarts=self.restarts,
            uptime_s=round(now - self.started_at, 1) if pid is not None else 0.0,
            last_event=self.last_event,
            last_event_at=self.last_event_at,
        )
        if self.report is not None and pid is not None:
            for name in ShardReport.__struct_fields__:
                if name != "uptime_s":
                    setattr(row, name, getattr(self.report, name))
            row.stale_s = round(now - self.heard_at, 1)
        return row

    def note(self, event: str, when: str) -> None:
        """Keep *event* as the shard's last event, at *when* in RFC 3339."""
        self.last_event, self.last_event_at = event, when


def capacity_of(cares: Iterable[Care], load: Callable[[int], int]) -> int | None:
    """How many agents' connections the descriptors of all shards allow together; None before the first report.

    A shard that is down counts with its last capacity. A shard without a report yet counts with the largest capacity of
    any shard. A draining one counts with its *load* alone.
    """
    cares = list(cares)
    largest = max((care.capacity for care in cares), default=0)
    if not largest:
        return None
    return sum(
        load(care.shard)
        if care.draining or care.foreign or care.state is ShardState.DRAINING
        else care.capacity or largest
        for care in cares
    )
