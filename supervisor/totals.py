"""The counters of each shard over all of its processes. Pure.

A shard counts from zero when its process starts. The last counters of each ended process are kept here, and added to
those of the present process. So no counter goes backwards. The counters of a removed shard stay. `encode` and `decode`
carry the ended processes' counters over to the next supervisor.

Two kinds of counts are lost: the counts after a process's last heartbeat (half a second, at most), and all counts of
a process that ended while there was no supervisor.
"""

from collections.abc import Iterable

import msgspec

from ipc.histogram import Histogram
from ipc.status import RequestLatency, ShardReport

SHARD_LOST = "shard_lost"
"""The outcome of requests that were in flight at the last heartbeat of an ended process."""


class ShardTotals(msgspec.Struct, kw_only=True):
    """The counters of one shard. `requests` has the number for each outcome: ``answered`` or a failure code."""

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
        """The sum of these counters and a process's counters, as a new value."""
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
    """The totals of all present and former shards, by number."""

    def __init__(self, ended: dict[int, ShardTotals] | None = None) -> None:
        self._ended = ended or {}

    def end(self, shard: int, report: ShardReport | None, latency: RequestLatency) -> bool:
        """Add the last counters of an ended process. False when it has sent none."""
        if report is None:
            return False
        totals = self._ended.get(shard, ShardTotals()).plus(report, latency)
        # In the report every request has an outcome or is in flight. So the sum over the outcomes is right.
        if report.in_flight:
            totals.requests[SHARD_LOST] = totals.requests.get(SHARD_LOST, 0) + report.in_flight
        # The kernel has closed the connections that were open when the process ended.
        totals.closed += report.connections
        self._ended[shard] = totals
        return True

    def of(self, shard: int, report: ShardReport | None, latency: RequestLatency) -> ShardTotals:
        """The totals of a shard over all of its processes. *report* is the present process's, None before its first."""
        ended = self._ended.get(shard, ShardTotals())
        return ended if report is None else ended.plus(report, latency)

    @property
    def shards(self) -> Iterable[int]:
        """The numbers of the shards with ended processes."""
        return self._ended.keys()

    def encode(self) -> bytes:
        """The counters of ended processes, for the next supervisor."""
        return msgspec.json.encode(self._ended)

    @classmethod
    def decode(cls, data: bytes) -> "Totals":
        """The counters that an earlier supervisor left; empty when *data* cannot be decoded."""
        try:
            return cls(msgspec.json.decode(data, type=dict[int, ShardTotals]))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return cls()


def _together(ended: Histogram, present: Histogram) -> Histogram:
    try:
        return ended.plus(present)
    except ValueError:
        # A process of another version has other buckets, so the durations cannot be added.
        return present
