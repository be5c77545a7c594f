"""Merging the answers of the supervisor and the shards."""

import math
from datetime import datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipc.status import ListenerRow, ShardReport, ShardRow, ShardState, SupervisorRow
from supervisor.merge import (
    AgentEntry,
    ConnectionEntry,
    RecordedShard,
    ShardAnswer,
    Status,
    is_anything_alive,
    is_healthy,
    merge_agents,
    merge_connections,
    merge_status,
    rfc3339,
)

COUNTS = {
    name: st.integers(0, 50)
    for name in (
        "connections",
        "agents",
        "in_flight",
        "requests_total",
        "prepared",
        "adopted_total",
        "closed_total",
        "frames_total",
    )
}
# Few numbers and few pids, so that the parties often speak of the same shard.
numbers = st.integers(0, 5)
pids = st.integers(1, 4)
seconds = st.floats(0, 1e6)
reports = st.builds(
    ShardReport, **COUNTS, failed_total=st.just({"timeout": 1}), cpu_percent=seconds, lag_ms=seconds, uptime_s=seconds
)
recorded = st.dictionaries(numbers, st.builds(RecordedShard, pid=pids, alive=st.booleans(), uptime_s=seconds))
supervisors = st.builds(
    SupervisorRow, listeners=st.lists(st.builds(ListenerRow), max_size=1), rejected_total=st.just({"auth_failed": 1})
)


@st.composite
def shard_answers(draw: st.DrawFn) -> dict[int, ShardAnswer]:
    return {
        number: ShardAnswer(shard=number, pid=draw(pids), epoch="e", report=draw(reports))
        for number in draw(st.sets(numbers))
    }


@st.composite
def supervised(draw: st.DrawFn) -> Status:
    rows: list[ShardRow] = []
    for number in draw(st.sets(numbers)):
        counts: dict[str, Any] = {name: draw(values) for name, values in COUNTS.items()}
        row = ShardRow(
            id=number,
            pid=draw(st.none() | pids),
            state=draw(st.sampled_from(ShardState)),
            stale_s=draw(seconds),
            restarts=draw(st.integers(0, 9)),
            last_event="started",
            **counts,
        )
        rows.append(row)
    return Status(supervisor=draw(supervisors), shards=rows)


@settings(max_examples=40)
@given(supervised(), shard_answers(), recorded)
def test_status_keeps_the_supervisors_view_and_takes_fresh_numbers_when_pids_agree(
    told: Status, answers: dict[int, ShardAnswer], records: dict[int, RecordedShard]
) -> None:
    merged = {row.id: row for row in merge_status(told, answers, records).shards}

    for row in told.shards:
        result = merged[row.id]
        kept = ("pid", "state", "restarts", "last_event", "rss_bytes")
        assert [getattr(result, name) for name in kept] == [getattr(row, name) for name in kept]
        answer = answers.get(row.id)
        if answer is not None and answer.pid == row.pid:
            assert result.stale_s == 0
            assert ShardReport(**{name: getattr(result, name) for name in ShardReport.__struct_fields__}) == (
                answer.report
            )
        else:
            assert result == row


@settings(max_examples=40)
@given(st.none() | supervised(), shard_answers(), recorded)
def test_status_lists_every_shard_that_lives_once_and_in_order(
    told: Status | None, answers: dict[int, ShardAnswer], records: dict[int, RecordedShard]
) -> None:
    status = merge_status(told, answers, records)
    listed = [row.id for row in status.shards]

    assert listed == sorted(set(listed))
    expected = set(answers) | {number for number, record in records.items() if record.alive}
    expected |= {row.id for row in told.shards} if told else set(records)
    assert set(listed) == expected
    assert status.supervisor == (told.supervisor if told else None)


@given(shard_answers(), recorded)
def test_status_tells_silent_from_dead_shards_when_the_supervisor_is_down(
    answers: dict[int, ShardAnswer], records: dict[int, RecordedShard]
) -> None:
    status = merge_status(None, answers, records)

    for row in status.shards:
        if row.id in answers:
            assert (row.state, row.pid, row.stale_s) == (ShardState.RUNNING, answers[row.id].pid, 0)
            assert row.connections == answers[row.id].report.connections
        elif records[row.id].alive:
            assert (row.state, row.pid) == (ShardState.UNHEALTHY, records[row.id].pid)
            assert row.stale_s == row.uptime_s == records[row.id].uptime_s
        else:
            assert (row.state, row.pid) == (ShardState.DOWN, None)
    assert is_anything_alive(status) == (bool(answers) or any(record.alive for record in records.values()))
    assert not is_healthy(status)


@pytest.mark.parametrize(
    ("states", "healthy"),
    [
        (["running"], True),
        (["running", "draining"], True),
        (["running", "starting"], False),
        (["running", "unhealthy"], False),
        (["running", "down"], False),
        ([], False),
    ],
)
def test_status_is_healthy_only_when_every_shard_runs_or_drains(states: list[str], healthy: bool) -> None:
    rows = [ShardRow(id=number, pid=1, state=ShardState(state)) for number, state in enumerate(states)]
    supervisor = msgspec.convert(
        {
            "pid": 1, "state": "running", "uptime_s": 1, "version": "1", "listeners": [], "accepted_total": 0,
            "rejected_total": {}, "handshakes": 0, "held_descriptors": 0, "config_file": None,
            "config_loaded_at": "", "config_error": None, "max_connections_per_agent": 4,
        },
        SupervisorRow,
    )  # fmt: skip

    assert is_healthy(Status(supervisor=supervisor, shards=rows)) is healthy
    assert not is_healthy(Status(supervisor=None, shards=rows))


agent_entries = st.builds(
    AgentEntry,
    agent_id=st.sampled_from(["a", "b", "waf-1"]),
    connections=st.integers(0, 3),
    in_flight=st.integers(0, 9),
    healthy=st.booleans(),
)


@settings(max_examples=40)
@given(st.dictionaries(numbers, st.lists(agent_entries, unique_by=lambda e: e.agent_id)), st.none() | st.integers(1, 9))
def test_agents_are_added_up_over_shards(entries: dict[int, list[AgentEntry]], limit: int | None) -> None:
    rows = merge_agents(entries, limit)

    assert [row.agent_id for row in rows] == sorted({e.agent_id for found in entries.values() for e in found})
    for row in rows:
        own = {shard: e for shard, found in entries.items() for e in found if e.agent_id == row.agent_id}
        connected = {shard: e for shard, e in own.items() if e.connections}
        assert row.limit == limit
        assert row.connections == sum(e.connections for e in own.values()) == sum(row.shards.values())
        assert row.in_flight == sum(e.in_flight for e in own.values())
        assert row.shards == {str(shard): e.connections for shard, e in connected.items()}
        assert row.healthy == (bool(connected) and all(e.healthy for e in connected.values()))


def connection(n: int, agent_id: str = "waf-1", **fields: Any) -> ConnectionEntry:
    values: dict[str, Any] = {
        "connection_id": f"{agent_id}-conn-{n}", "transport": "uds", "peer": "0:1", "dialect": "json",
        "connected_at": 0.0, "in_flight": 0,
    } | fields  # fmt: skip
    return ConnectionEntry(n=n, agent_id=agent_id, **values)


@given(st.dictionaries(numbers, st.dictionaries(st.integers(0, 20), st.sampled_from(["a", "b"]))))
def test_connections_are_listed_once_each_by_agent_shard_and_age(found: dict[int, dict[int, str]]) -> None:
    entries = {shard: [connection(n, agent) for n, agent in sorted(own.items())] for shard, own in found.items()}
    rows = merge_connections(entries)

    expected = sorted((agent, shard, n) for shard, own in found.items() for n, agent in own.items())
    assert [(row.agent_id, row.shard, row.connection_id) for row in rows] == [
        (agent, shard, f"{agent}-conn-{n}") for agent, shard, n in expected
    ]


@pytest.mark.parametrize(
    ("raw", "decoded"),
    [
        (b'{"version":"1.2.0","features":["waf"]}', {"version": "1.2.0", "features": ["waf"]}),
        (b"", None),
        (b"null", None),
        (b"{broken", None),
        (b"\xff\xfe", None),
        (b"[" * 100_000, None),
    ],
)
def test_connection_metadata_is_json_or_null_whatever_was_sent(raw: bytes, decoded: object) -> None:
    (row,) = merge_connections({0: [connection(1, metadata=raw)]})

    assert row.metadata == decoded


@given(st.integers(0, 4_000_000_000_000))
def test_rfc3339_names_the_same_moment_in_utc(milliseconds: int) -> None:
    text = rfc3339(milliseconds / 1000)

    assert text.endswith("Z")
    assert math.isclose(datetime.fromisoformat(text).timestamp(), milliseconds / 1000, abs_tol=0.0011)
