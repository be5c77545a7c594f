"""Merge the answers of the supervisor and of the shards into one status. Pure: values in, values out.

A shard's own answer replaces the numbers of its last heartbeat. The supervisor's answer decides about a shard's state
and restarts, as long as there is a supervisor.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from ipc.schema import SCHEMA
from ipc.status import AgentRow, ConnectionRow, ShardReport, ShardRow, ShardState, SupervisorRow

_WELL = (ShardState.RUNNING, ShardState.DRAINING)


class Status(msgspec.Struct, kw_only=True):
    """The whole answer of ``shardgate status``. *supervisor* is None while it is down or silent."""

    schema: int = SCHEMA
    supervisor: SupervisorRow | None
    shards: list[ShardRow]


class ShardAnswer(msgspec.Struct, kw_only=True):
    """A shard's own answer to ``status``."""

    shard: int
    pid: int
    epoch: str
    report: ShardReport


class RecordedShard(msgspec.Struct, frozen=True):
    """The record of a shard in the runtime directory: its process, whether that runs, and its age in seconds."""

    pid: int
    alive: bool
    uptime_s: float


class AgentEntry(msgspec.Struct, array_like=True, frozen=True):
    """One shard's entry for an agent."""

    agent_id: str
    connections: int
    in_flight: int
    healthy: bool


class ConnectionEntry(msgspec.Struct, kw_only=True, frozen=True):
    """A shard's entry for a connection. *connected_at* is in seconds of the epoch. *metadata* is JSON text or empty."""

    n: int
    connection_id: str
    agent_id: str
    transport: str
    peer: str
    dialect: str
    connected_at: float
    in_flight: int
    metadata: bytes = b""
    frames: int = 0
    frames_ignored: int = 0


def merge_status(
    supervised: Status | None, answers: Mapping[int, ShardAnswer], recorded: Mapping[int, RecordedShard]
) -> Status:
    """Merge the supervisor's answer, the shards' answers and the records into one status, shards ascending.

    Without a supervisor's answer the records decide about the silent shards: a running process is unhealthy, an ended
    one is down. With it, a silent shard that it does not list appears only while its process runs. An earlier
    supervisor has left it.
    """
    rows = {row.id: _refreshed(row, answers.get(row.id)) for row in supervised.shards} if supervised else {}
    for number, answer in answers.items():
        if number not in rows:
            rows[number] = _row_from_answer(number, answer)
    for number, record in recorded.items():
        if number not in rows and (record.alive or supervised is None):
            rows[number] = _row_from_record(number, record)
    return Status(
        supervisor=supervised.supervisor if supervised else None, shards=[rows[number] for number in sorted(rows)]
    )


def is_healthy(status: Status) -> bool:
    """Whether the supervisor answers, there are shards, all of them run or drain, and no process reports a problem."""
    return (
        status.supervisor is not None
        and bool(status.shards)
        and all(row.state in _WELL for row in status.shards)
        and not problems(status)
    )


def problems(status: Status) -> list[str]:
    """The problems that the processes report about their files on disk, each once."""
    found = [] if status.supervisor is None else list(status.supervisor.problems)
    found += [f"shard {row.id}: {problem}" for row in status.shards for problem in row.problems]
    return list(dict.fromkeys(found))


def is_anything_alive(status: Status) -> bool:
    """Whether any process of this shardgate runs, as far as its answers and records tell."""
    return status.supervisor is not None or any(row.state is not ShardState.DOWN for row in status.shards)


def merge_agents(entries: Mapping[int, Iterable[AgentEntry]], limit: int | None) -> list[AgentRow]:
    """Add up the shards' agents, sorted by id.

    An agent is healthy when it is healthy in every shard that holds connections of it.
    """
    rows: dict[str, AgentRow] = {}
    for shard in sorted(entries):
        for entry in entries[shard]:
            row = rows.get(entry.agent_id)
            if row is None:
                row = rows[entry.agent_id] = AgentRow(
                    agent_id=entry.agent_id, connections=0, limit=limit, shards={}, in_flight=0, healthy=False
                )
            row.in_flight += entry.in_flight
            if entry.connections > 0:
                row.healthy = entry.healthy and (row.healthy or not row.connections)
                row.connections += entry.connections
                row.shards[str(shard)] = entry.connections
    return [rows[agent_id] for agent_id in sorted(rows)]


def merge_connections(entries: Mapping[int, Iterable[ConnectionEntry]]) -> list[ConnectionRow]:
    """List the shards' connections, sorted by agent, shard and age."""
    found = [(entry.agent_id, shard, entry.n, entry) for shard in entries for entry in entries[shard]]
    found.sort(key=lambda item: item[:3])
    return [
        ConnectionRow(
            connection_id=entry.connection_id,
            agent_id=entry.agent_id,
            shard=shard,
            transport=entry.transport,
            peer=entry.peer,
            dialect=entry.dialect,
            connected_at=rfc3339(entry.connected_at),
            in_flight=entry.in_flight,
            metadata=_decoded(entry.metadata),
            frames=entry.frames,
            frames_ignored=entry.frames_ignored,
        )
        for _, shard, _, entry in found
    ]


def rfc3339(seconds: float) -> str:
    """Format seconds of the epoch by RFC 3339, in UTC with milliseconds: ``2026-11-22T08:53:01.250Z``."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _refreshed(row: ShardRow, answer: ShardAnswer | None) -> ShardRow:
    # With different pids one side describes an ended process. The supervisor's row is kept.
    if answer is None or answer.pid != row.pid:
        return row
    return msgspec.structs.replace(row, **msgspec.structs.asdict(answer.report), stale_s=0.0)


def _row_from_answer(number: int, answer: ShardAnswer) -> ShardRow:
    return ShardRow(id=number, pid=answer.pid, state=ShardState.RUNNING, **msgspec.structs.asdict(answer.report))


def _row_from_record(number: int, record: RecordedShard) -> ShardRow:
    if not record.alive:
        return ShardRow(id=number, pid=None, state=ShardState.DOWN, last_event=f"process {record.pid} is gone")
    # Its numbers are unknown. They were 0 when it started, so their age is that of the process.
    return ShardRow(
        id=number,
        pid=record.pid,
        state=ShardState.UNHEALTHY,
        uptime_s=record.uptime_s,
        stale_s=record.uptime_s,
        last_event="does not answer",
    )


def _decoded(metadata: bytes) -> Any:
    try:
        return msgspec.json.decode(metadata)
    except (msgspec.DecodeError, RecursionError):
        return None
