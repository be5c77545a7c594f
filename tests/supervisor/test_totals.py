"""Counters over all lives of a shard: they never go backwards, and nothing is counted twice."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipc.histogram import Histogram
from ipc.status import RequestLatency, ShardReport
from supervisor.totals import SHARD_LOST, ShardTotals, Totals

ZERO: dict[str, Any] = dict.fromkeys(ShardReport.__struct_fields__, 0) | {"failed_total": {}}


def report(**numbers: Any) -> ShardReport:
    return ShardReport(**(ZERO | numbers))


def latency(*seconds: float) -> RequestLatency:
    found = RequestLatency()
    for duration in seconds:
        found.answered.observe(duration)
    return found


def plain(totals: ShardTotals) -> dict[str, float]:
    """All counters of a shard, by name."""
    found: dict[str, float] = {f"requests {outcome}": n for outcome, n in totals.requests.items()}
    for name in ("relayed", "late", "adopted", "closed", "moved", "frames", "cpu_seconds"):
        found[name] = getattr(totals, name)
    for bucket, n in enumerate(totals.latency.answered.counts):
        found[f"bucket {bucket}"] = n
    return found


@st.composite
def lives(draw: st.DrawFn) -> list[list[ShardReport]]:
    """The reports of several lives; within a life all counters rise."""
    found = []
    for _ in range(draw(st.integers(0, 4))):
        counted = dict.fromkeys(("answered_total", "adopted_total", "frames_total", "moved_total", "late_total"), 0)
        failed: dict[str, int] = {}
        life = []
        for _ in range(draw(st.integers(0, 4))):
            for name in counted:
                counted[name] += draw(st.integers(0, 5))
            code = draw(st.sampled_from(["request_timeout", "overloaded"]))
            failed[code] = failed.get(code, 0) + draw(st.integers(0, 3))
            life.append(report(**counted, failed_total=dict(failed), in_flight=draw(st.integers(0, 3))))
        found.append(life)
    return found


@given(lives(), st.data())
def test_totals_never_go_backwards_over_deaths_and_supervisors(
    of_shard: list[list[ShardReport]], data: st.DataObject
) -> None:
    totals = Totals()
    before: dict[str, float] = {}
    for life in of_shard:
        for present in [None, *life]:
            if data.draw(st.booleans()):
                totals = Totals.decode(totals.encode())
            after = plain(totals.of(3, present, latency()))
            assert all(after[name] >= number for name, number in before.items()), (before, after)
            before = after
        totals.end(3, life[-1] if life else None, latency())
    last = [life[-1] for life in of_shard if life]
    finished = sum(r.answered_total + sum(r.failed_total.values()) + r.in_flight for r in last)
    assert sum(totals.of(3, None, latency()).requests.values()) == finished


def test_totals_add_the_present_process_to_the_ended_ones() -> None:
    totals = Totals()
    totals.end(0, report(answered_total=5, failed_total={"overloaded": 1}, cpu_seconds=1.5), latency(0.001))

    now = totals.of(0, report(answered_total=2, failed_total={"cancelled": 4}, cpu_seconds=0.25), latency(0.001, 2))

    assert now.requests == {"answered": 7, "overloaded": 1, "cancelled": 4}
    assert now.cpu_seconds == 1.75
    assert now.latency.answered.total == 3
    assert now.latency.answered.seconds == pytest.approx(2.002)
    assert totals.of(1, None, latency()) == ShardTotals()


def test_requests_and_connections_of_a_dead_process_have_an_end() -> None:
    totals = Totals()
    totals.end(0, report(answered_total=5, in_flight=3, adopted_total=9, closed_total=2, connections=7), latency())

    ended = totals.of(0, None, latency())
    assert ended.requests == {"answered": 5, SHARD_LOST: 3}
    assert ended.adopted == ended.closed == 9


def test_process_that_never_reported_leaves_nothing() -> None:
    totals = Totals()

    assert not totals.end(0, None, latency())
    assert list(totals.shards) == []


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"a": 1}', b'{"0": {"requests": "many"}}', b"\xff", b"[" * 5000])
def test_totals_that_cannot_be_read_are_none(data: bytes) -> None:
    assert list(Totals.decode(data).shards) == []


def test_durations_in_other_buckets_are_not_added() -> None:
    totals = Totals()
    totals.end(0, report(answered_total=1), RequestLatency(Histogram([1, 2], 3.0), Histogram([1, 2], 3.0)))

    now = totals.of(0, report(answered_total=1), latency(0.5))

    assert now.requests == {"answered": 2}
    assert now.latency.answered == latency(0.5).answered
