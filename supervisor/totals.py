"""What shards have counted in all their lives: counters that go on when a process ends. Pure.

A shard counts from zero when its process starts. Here the last numbers of each ended process are kept and added to what
the present one says, so that no counter goes backwards: that of a number which no shard has any more stays as it is.
`encode` and `decode` carry the ended processes' share over to the next supervisor.

What cannot be kept is what a process counted after its last heartbeat (half a second of it, at most), and all that it
counted if it ended while there was no supervisor.
"""

from collections.abc import Iterable

import msgspec

from ipc.histogram import Histogram
from ipc.status import RequestLatency, ShardReport

SHARD_LOST = "shard_lost"
"""The outcome of requests that were in flight, as far as is known, when their shard's process ended."""


class ShardTotals(msgspec.Struct, kw_only=True):
    """The counters of one shard; `requests` by outcome, ``answered`` or a failure code."""

    requests: dict[str, int] = {}
    relayed: int = 0
    late: int = 0
    adopted: int = 0
    closed: int = 0
    moved: int = 0
    frames: int = 0
    cpu_seconds: float = 0.0
    latency: RequestLatency = msgspec.field(default_factory=RequestLatency)

    def plus(self, report: ShardReport, latency: RequestLatency) -> "ShardTotals":
        """These and what a process has counted, as a new value."""
        requests = dict(self.requests)
        for outcome, number in {"answered": report.answered_total, **report.failed_total}.items():
            requests[outcome] = requests.get(outcome, 0) + number
        return ShardTotals(
            requests=requests,
            relayed=self.relayed + report.relayed_total,
            late=self.late + report.late_total,
            adopted=self.adopted + report.adopted_total,
            closed=self.closed + report.closed_total,
            moved=self.moved + report.moved_total,
            frames=self.frames + report.frames_total,
            cpu_seconds=round(self.cpu_seconds + report.cpu_seconds, 3),
            latency=RequestLatency(
                _together(self.latency.answered, latency.answered), _together(self.latency.failed, latency.failed)
            ),
        )


class Totals:
    """The totals of all shards that there have been, by number."""

    def __init__(self, ended: dict[int, ShardTotals] | None = None) -> None:
        self._ended = ended or {}

    def end(self, shard: int, report: ShardReport | None, latency: RequestLatency) -> bool:
        """Keep the last numbers of a process that has ended; whether there were any."""
        if report is None:
            return False
        totals = self._ended.get(shard, ShardTotals()).plus(report, latency)
        # With the report every request has an outcome, or is in flight: so the sum stays right.
        if report.in_flight:
            totals.requests[SHARD_LOST] = totals.requests.get(SHARD_LOST, 0) + report.in_flight
        # What was open when the process ended was closed by the kernel.
        totals.closed += report.connections
        self._ended[shard] = totals
        return True

    def of(self, shard: int, report: ShardReport | None, latency: RequestLatency) -> ShardTotals:
        """All lives of a shard together; *report* is that of the present process, if it has sent one."""
        ended = self._ended.get(shard, ShardTotals())
        return ended if report is None else ended.plus(report, latency)

    @property
    def shards(self) -> Iterable[int]:
        """The numbers under which a process has ended."""
        return self._ended.keys()

    def encode(self) -> bytes:
        """What a supervisor after this one needs."""
        return msgspec.json.encode(self._ended)

    @classmethod
    def decode(cls, data: bytes) -> "Totals":
        """What a supervisor before this one left; empty when that cannot be read."""
        try:
            return cls(msgspec.json.decode(data, type=dict[int, ShardTotals]))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return cls()


def _together(ended: Histogram, present: Histogram) -> Histogram:
    try:
        return ended.plus(present)
    except ValueError:
        # A process of another version, with other buckets: its durations cannot be added up.
        return present
