"""The shapes of status answers: what processes report and what ``--json`` prints.

The field names are a contract with everybody who parses ``shardgate status --json``; fields are added, never
renamed. Times are seconds, sizes bytes.
"""

from enum import StrEnum
from typing import Any

import msgspec

from ipc.histogram import Histogram


class ShardState(StrEnum):
    """Where a shard is in its life."""

    STARTING = "starting"
    RUNNING = "running"
    DRAINING = "draining"
    UNHEALTHY = "unhealthy"
    DOWN = "down"


class ListenerRow(msgspec.Struct, frozen=True):
    """A socket on which agents are accepted; *kind* is ``uds`` or ``tcp``."""

    kind: str
    address: str


class OperationRow(msgspec.Struct, kw_only=True):
    """An operation on the shards (drain, restart, scale, rebalance): the running one, or the last.

    *moved* connections went to other shards, *left* ones were busy until the time was up. The times are how long a
    moving connection was served by nobody, in milliseconds. *error* says why it could not be finished.
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
    committed, and refused connections that are being closed. At rest it is 0. *connections* are all agents', those on
    their way to a shard included; *max_connections* is how many there may be, by configuration or by descriptors.
    *silent_total* contacts went without a byte, as those of health checks do, and are not among the rejected; of
    *reset_total* the peers reset the connection before a registration was complete. *problems* are what the process
    needs on disk and that is not there as it should be, and why; *write_failures_total* counts attempts to write or to
    remove a file that failed, *mended_total* what was removed by others and made again.
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

    *stale_s* is the age of the numbers: 0 when the shard answered this query itself, otherwise the time since its last
    heartbeat. *last_event* is the newest thing that happened to the process, for people, and *last_event_at* when it
    was, in RFC 3339. *slots* are what the
    supervisor counts on the shard, those on their way to it included; at rest it is the same as *connections*.
    *moved_total* counts the connections that went to other shards. Requests are events for agents: *requests_total* is
    all that have an outcome, *answered_total* and *failed_total* (by error code) together, and those *in_flight* have
    none yet. What another shard served for this one is in *relayed_total* instead. All totals are the present process's
    own; *cpu_percent* is of one processor, and *descriptors* may be open up to *descriptor_limit*. *capacity* is how
    many agents' connections these allow, 0 when that is unknown.
    own; *cpu_percent* is of one processor, and *descriptors* may be open up to *descriptor_limit*. What it has on disk
    is told as by the supervisor, in *problems* and the two totals behind it.
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
    """What a shard counts about itself: the body of a heartbeat and of its answer to a status query."""

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
    """How long the requests of a shard took, by what became of them."""

    answered: Histogram = msgspec.field(default_factory=Histogram)
    failed: Histogram = msgspec.field(default_factory=Histogram)


class AgentRow(msgspec.Struct, kw_only=True):
    """An agent in ``agents``; *limit* is None while the supervisor is down."""

    agent_id: str
    connections: int
    limit: int | None
    shards: dict[str, int]
    in_flight: int
    healthy: bool


class ConnectionRow(msgspec.Struct, kw_only=True):
    """A connection in ``connections``.

    *peer* is ``uid 1000 pid 4711`` of a Unix socket's agent, or the TCP address; *connected_at* is RFC 3339 in UTC;
    *metadata* is what the agent sent, data only.
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
