"""The options of the pool in each shard: every limit and interval, with its default.

The supervisor reads them from the configuration, and passes them to the shards that it starts.
"""

from enum import StrEnum

import msgspec


class Strategy(StrEnum):
    """How a pool chooses one of an agent's usable connections."""

    LEAST_CONNECTIONS = "least-connections"
    ROUND_ROBIN = "round-robin"
    HEALTH_BASED = "health-based"
    RANDOM = "random"


class FlowControlMode(StrEnum):
    """How a pool treats a request when every usable connection of its agent is paused."""

    FAIL_CLOSED = "fail-closed"
    FAIL_OPEN = "fail-open"
    WAIT = "wait"


class PoolOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options of one pool. Times are in seconds, sizes in bytes."""

    strategy: Strategy = Strategy.LEAST_CONNECTIONS
    request_timeout: float = 30.0
    max_concurrent_per_connection: int = 100
    """The most requests in flight on a connection. An agent may declare a lower limit."""

    unhealthy_after: int = 3
    """After this many errors in a row a connection gets no requests, until it answers again."""

    flow_control: FlowControlMode = FlowControlMode.FAIL_CLOSED
    flow_control_wait: float = 0.1
    breaker_threshold: int = 5
    breaker_open_for: float = 30.0
    affinity_idle: float = 3600.0
    """A request may pause this long between two events; a later event fails. A slow upload or a WebSocket may pause
    for minutes. An idle request costs a few hundred bytes."""

    most_affinities: int = 100_000
    sticky_idle: float = 300.0
    most_sticky: int = 100_000
    ping_interval: float = 15.0
    ping_timeout: float = 30.0
    """A ping without an answer for this long closes the connection, unless a request is in flight. This applies only to
    an agent that has answered a ping before: pings are new, and some agents ignore them."""

    full_at: int = 256 * 1024
    """Bytes that wait for an agent to read. Above this number the connection gets no new requests."""

    close_at: int = 48 * 1024 * 1024
    """Bytes that wait for an agent to read. Above this number the connection is closed. Two frames of the largest size
    fit below it."""

    max_answer_bytes: int = 1024 * 1024
    """Bytes of a frame from an agent. While a chunk of a body waits for its answer the protocol's own limit
    applies: the answer may hold the changed body."""

    max_held_bytes: int = 256 * 1024 * 1024
    """Bytes of unfinished frames and of unread output, of all agents' connections of a shard together. Above it the
    connections that hold most are closed. The connections of proxies have a budget of the same size."""

    frame_timeout: float = 30.0
    """Seconds from a frame's first byte to its last."""

    free_agent_memory: bool = True
    """Send a cancel at the end of each request, to sdk agents that support cancelling.

    An agent of the Go SDK keeps every request and its body until a cancel arrives. Nothing else frees that memory
    (protocol section 3.1). The cancel also runs the agent's cancel hook, for requests that were not cancelled. The
    option is on by default: extra calls of a hook are a nuisance, but an agent that runs out of memory is an outage.
    """
