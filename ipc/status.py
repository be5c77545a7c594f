"""The fields of status answers, as processes report them and ``--json`` prints them.

The field names are a contract with all programs that parse ``shardgate status --json``. Fields are added, never
renamed. Times are in seconds, sizes in bytes.
"""

from enum import StrEnum
from typing import Any

import msgspec

from ipc.histogram import Histogram


class ShardState(StrEnum):
    """The state of a shard."""

    STARTING = "starting"
    RUNNING = "running"
    DRAINING = "draining"
    UNHEALTHY = "unhealthy"
    DOWN = "down"


class ListenerRow(msgspec.Struct, frozen=True):
    """A socket on which the supervisor accepts agents. *kind* is ``uds`` or ``tcp``."""

    kind: str
    address: str


class OperationRow(msgspec.Struct, kw_only=True):
    """An operation on the shards (drain, restart, scale, rebalance): the running one, or the last.

    *moved* counts connections that went to other shards. *left* counts connections that were busy until the time was
    up. *p50_ms*, *p99_ms* and *longest_ms* are the times for which no shard served a moving connection, in
    milliseconds. *error* is the reason why the operation could not be finished.
    """

    name: str
    step: str = ""
    moved: int = 0
    left: int = 0
    p50_ms: float | None = None
    p99_ms: float | None = None
    longest_ms: float | None = None
    seconds: float = 0.0
    is_done: bool = False
    error: str | None = None


class SupervisorRow(msgspec.Struct, kw_only=True):
    """The supervisor in ``status``.

    *held_descriptors* counts agents' descriptors that the supervisor still holds: handshakes, handoffs that are not
    committed, and refused connections that are being closed. At rest it is 0. *connections* counts all agents'
    connections, including the ones on their way to a shard. *max_connections* is their limit, by configuration or by
    descriptors. *silent_total* counts connections that ended without a byte, such as health checks. They are not
    among the rejected. *reset_total* counts connections that the peer reset before its registration was complete.
    *problems* are the faults of the files and sockets that the process needs on disk. *write_failures_total* counts
    failed attempts to write or to remove a file. *mended_total* counts files and sockets that were removed by other
    processes and made again.
    """

    pid: int
    state: str
    uptime_s: float
    version: str
    listeners: list[ListenerRow]
    accepted_total: int
    rejected_total: dict[str, int]
    handshakes: int
    held_descriptors: int
    config_file: str | None
    config_loaded_at: str
    config_error: str | None
    max_connections_per_agent: int
    operation: OperationRow | None = None
    kicked_total: int = 0
    log_level: str = ""
    cpu_percent: float = 0.0
    rss_bytes: int = 0
    descriptors: int = 0
    descriptor_limit: int = 0
    shards_wanted: int = 0
    cpu_seconds: float = 0.0
    lag_ms: float = 0.0
    connections: int = 0
    max_connections: int | None = None
    silent_total: int = 0
    reset_total: int = 0
    problems: list[str] = []
    write_failures_total: int = 0
    mended_total: int = 0


class ShardRow(msgspec.Struct, kw_only=True):
    """A shard in ``status``.

    *stale_s* is the age of the numbers. It is 0 if the shard answered this query itself. Otherwise it is the time since
    the supervisor last heard from the shard. *last_event* is the newest event of the process, as text.
    *last_event_at* is its time in RFC 3339. *slots* is the supervisor's count of the shard's connections, including
    the ones on their way to it. At rest it equals *connections*. *moved_total* counts the connections that went to
    other shards.

    Requests are events for agents. *requests_total* counts the requests with an outcome. It is the sum of
    *answered_total* and *failed_total* (by error code). *in_flight* requests have no outcome yet. *relayed_total*
    counts the requests that another shard served for this one; they are not in *requests_total*. All totals are of the
    present process only.

    *cpu_percent* is of one processor. *descriptor_limit* is the limit of *descriptors*. *capacity* is the number of
    agents' connections that they allow, 0 if unknown. *problems*, *write_failures_total* and *mended_total* mean the
    same as in `SupervisorRow`.
    """

    id: int
    pid: int | None
    state: ShardState
    connections: int = 0
    slots: int | None = None
    agents: int = 0
    in_flight: int = 0
    requests_total: int = 0
    restarts: int = 0
    cpu_percent: float = 0.0
    rss_bytes: int = 0
    uptime_s: float = 0.0
    prepared: int = 0
    adopted_total: int = 0
    closed_total: int = 0
    frames_total: int = 0
    lag_ms: float = 0.0
    answered_total: int = 0
    failed_total: dict[str, int] = {}
    late_total: int = 0
    relayed_total: int = 0
    moved_total: int = 0
    requests_per_s: float = 0.0
    cpu_seconds: float = 0.0
    descriptors: int = 0
    descriptor_limit: int = 0
    capacity: int = 0
    stale_s: float = 0.0
    problems: list[str] = []
    write_failures_total: int = 0
    mended_total: int = 0
    last_event: str | None = None
    last_event_at: str | None = None


class ShardReport(msgspec.Struct, kw_only=True, array_like=True):
    """The numbers that a shard reports about itself, in a heartbeat and in its answer to a status query."""

    connections: int
    agents: int
    in_flight: int
    requests_total: int
    prepared: int
    adopted_total: int
    closed_total: int
    frames_total: int
    cpu_percent: float
    lag_ms: float
    uptime_s: float
    answered_total: int
    failed_total: dict[str, int]
    late_total: int
    relayed_total: int
    moved_total: int
    requests_per_s: float = 0.0
    rss_bytes: int = 0
    descriptors: int = 0
    descriptor_limit: int = 0
    cpu_seconds: float = 0.0
    capacity: int = 0
    problems: list[str] = []
    write_failures_total: int = 0
    mended_total: int = 0


class RequestLatency(msgspec.Struct, array_like=True):
    """The durations of the requests of a shard, by outcome."""

    answered: Histogram = msgspec.field(default_factory=Histogram)
    failed: Histogram = msgspec.field(default_factory=Histogram)


class AgentRow(msgspec.Struct, kw_only=True):
    """An agent in ``agents``. *limit* is None while the supervisor is down."""

    agent_id: str
    connections: int
    limit: int | None
    shards: dict[str, int]
    in_flight: int
    healthy: bool


class ConnectionRow(msgspec.Struct, kw_only=True):
    """A connection in ``connections``.

    *peer* is ``uid 1000 pid 4711`` for an agent on a Unix socket, or the TCP address. *connected_at* is RFC 3339 in
    UTC. *metadata* is the JSON value that the agent sent. Treat it as data only.
    """

    connection_id: str
    agent_id: str
    shard: int
    transport: str
    peer: str
    dialect: str
    connected_at: str
    in_flight: int
    metadata: Any
    frames: int = 0
    frames_ignored: int = 0
