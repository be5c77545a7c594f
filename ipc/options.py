"""How the pool of each shard behaves: every limit and interval of it, with its default.

The supervisor reads them from the configuration and gives them to the shards that it starts.
"""

from enum import StrEnum

import msgspec


class Strategy(StrEnum):
    """How one of an agent's usable connections is chosen."""

    LEAST_CONNECTIONS = "least-connections"
    ROUND_ROBIN = "round-robin"
    HEALTH_BASED = "health-based"
    RANDOM = "random"


class FlowControlMode(StrEnum):
    """What a request meets when every usable connection of its agent is paused."""

    FAIL_CLOSED = "fail-closed"
    FAIL_OPEN = "fail-open"
    WAIT = "wait"


class PoolOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Times are seconds, sizes bytes."""

    strategy: Strategy = Strategy.LEAST_CONNECTIONS
    request_timeout: float = 30.0
    max_concurrent_per_connection: int = 100
    """Requests in flight on a connection whose agent declared no limit, and at most on any other."""

    unhealthy_after: int = 3
    """Errors in a row after which a connection is passed over, until it answers something again."""

    flow_control: FlowControlMode = FlowControlMode.FAIL_CLOSED
    flow_control_wait: float = 0.1
    breaker_threshold: int = 5
    breaker_open_for: float = 30.0
    affinity_idle: float = 3600.0
    """For so long a request may send no event; its next one then fails. A slow upload or a WebSocket pauses for
    minutes, and what a request without events costs is some hundred bytes."""

    most_affinities: int = 100_000
    sticky_idle: float = 300.0
    most_sticky: int = 100_000
    ping_interval: float = 15.0
    ping_timeout: float = 30.0
    """Unanswered for this long, with nothing else heard and no request in flight, a ping closes the connection. Only
    an agent that has answered one before is judged by it: pings are young, and some agents ignore them."""

    full_at: int = 256 * 1024
    """Bytes that wait for an agent which does not read; above it the connection gets no new request."""

    close_at: int = 48 * 1024 * 1024
    """Bytes that wait, at which the connection is closed: room for the two largest frames, and more."""

    max_answer_bytes: int = 1024 * 1024
    """Bytes of a frame from an agent. As large as a frame can be while a chunk of a body waits for its answer: that may
    hold the body, changed."""

    max_held_bytes: int = 256 * 1024 * 1024
    """Bytes of unfinished frames and of what agents do not read, of all connections of a shard together. Above it those
    that hold most are closed."""

    frame_timeout: float = 30.0
    """Seconds from a frame's first byte to its last."""

    free_agent_memory: bool = True
    """Send a cancel after a request is over, to sdk agents that support cancelling.

    An agent of the Go SDK keeps every request, its body included, until it is cancelled: that is the only thing that
    frees it (protocol section 3.1). It also runs the agent's cancel hook, which sees requests that were not cancelled.
    A hook called too often is a nuisance; an agent that grows until it is killed is an outage: hence on.
    """
