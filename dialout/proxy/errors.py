"""The reasons why a request got no answer: stable codes, and an exception for each.

::

    DialoutError
    └── PoolError
        ├── AgentNotFound        no shard has a connection of this agent
        ├── AgentUnavailable     the agent has connections, but none can take a request now
        ├── AgentMoving          the agent's connection is on the way to another shard
        ├── RequestTimeout       no answer within the time limit
        ├── FlowControlPaused    the agent has asked for a pause
        ├── CircuitOpen          the agent failed too often; the next trial is not due yet
        ├── ConnectionLost       the connection ended before the answer
        ├── Overloaded           too much is in flight already
        ├── CannotReceive        the agent does not take this kind of event
        ├── BadAnswer            the agent's answer is not a valid decision
        ├── RequestCancelled     the request was cancelled
        ├── BadRequest           the event itself is wrong
        ├── ShuttingDown         this shard, or this client, is going away
        └── NoShard              no living shard in the runtime directory

A caller that gets one of these has **no** decision of the agent. The failure policy of the proxy (fail closed, or
open) then decides on the HTTP request.
"""

from enum import StrEnum
from typing import Final, Literal, TypeAlias

from dialout.errors import DialoutError

__all__ = [
    "AgentMoving",
    "AgentNotFound",
    "AgentUnavailable",
    "BadAnswer",
    "BadRequest",
    "CannotReceive",
    "CircuitOpen",
    "ConnectionLost",
    "FailureCode",
    "FailurePolicy",
    "FlowControlPaused",
    "NoShard",
    "Overloaded",
    "PoolError",
    "RequestCancelled",
    "RequestTimeout",
    "ShuttingDown",
    "pool_error",
]


class FailureCode(StrEnum):
    """The stable value of ``error_code`` of a request that got no answer."""

    AGENT_NOT_FOUND = "agent_not_found"
    AGENT_UNAVAILABLE = "agent_unavailable"
    AGENT_MOVING = "agent_moving"
    """Between shards only. A proxy's request waits for the connection, and after seconds is ``agent_unavailable``."""
    REQUEST_TIMEOUT = "request_timeout"
    FLOW_CONTROL_PAUSED = "flow_control_paused"
    CIRCUIT_OPEN = "circuit_open"
    CONNECTION_LOST = "connection_lost"
    OVERLOADED = "overloaded"
    CANNOT_RECEIVE = "cannot_receive"
    BAD_ANSWER = "bad_answer"
    CANCELLED = "cancelled"
    BAD_REQUEST = "bad_request"
    SHUTTING_DOWN = "shutting_down"
    NO_SHARD = "no_shard"
    """Never on the wire. Only a client that can reach no shard raises it."""


FailurePolicy: TypeAlias = Literal["open", "closed"]
"""Whether a request without a decision may pass."""


class PoolError(DialoutError):
    """Base of all errors of a request that got no answer.

    ``code`` is a ``FailureCode``, or the text of a code that is newer than this library. ``retry_safe`` says that the
    agent has certainly not seen the event, so a second attempt cannot count twice. Its default is the value of the
    class, which is true for errors that are raised before anything is sent. ``agent_id`` and ``shard`` are None where
    they are not known. ``policy`` is the operator's configuration for this failure: "open" lets the request pass. None
    leaves the decision to the proxy's own policy.
    """

    code: FailureCode | str = ""
    retry_safe: bool = False
    policy: FailurePolicy | None = None

    def __init__(
        self,
        message: str,
        *,
        agent_id: str | None = None,
        retry_safe: bool | None = None,
        shard: int | None = None,
        code: FailureCode | str | None = None,
        policy: FailurePolicy | None = None,
    ) -> None:
        super().__init__(message)
        self.agent_id = agent_id
        self.shard = shard
        if retry_safe is not None:
            self.retry_safe = retry_safe
        if code is not None:
            self.code = code
        if policy is not None:
            self.policy = policy


class AgentNotFound(PoolError):
    """None of the shards that could be asked has a connection of this agent."""

    code = FailureCode.AGENT_NOT_FOUND
    retry_safe = True


class AgentUnavailable(PoolError):
    """The agent has connections, but each of them is unhealthy or at its limit of requests."""

    code = FailureCode.AGENT_UNAVAILABLE
    retry_safe = True


class AgentMoving(PoolError):
    """The agent's connection is on its way from one shard to another. This takes a moment."""

    code = FailureCode.AGENT_MOVING
    retry_safe = True


class RequestTimeout(PoolError):
    """No answer came within the time limit. The agent may still be working on the event."""

    code = FailureCode.REQUEST_TIMEOUT


class FlowControlPaused(PoolError):
    """The agent has asked for a pause. ``policy`` is "open" where the pool's ``flow-control`` is ``fail-open``."""

    code = FailureCode.FLOW_CONTROL_PAUSED
    retry_safe = True


class CircuitOpen(PoolError):
    """The agent has failed too often in a row. Requests are refused until the next trial is due."""

    code = FailureCode.CIRCUIT_OPEN
    retry_safe = True


class ConnectionLost(PoolError):
    """The connection to the agent, or to the shard, ended before the answer."""

    code = FailureCode.CONNECTION_LOST


class Overloaded(PoolError):
    """Too much is in flight, or waits to be written. Nothing was sent."""

    code = FailureCode.OVERLOADED
    retry_safe = True


class CannotReceive(PoolError):
    """The agent does not take this kind of event. Nothing was sent to it."""

    code = FailureCode.CANNOT_RECEIVE
    retry_safe = True


class BadAnswer(PoolError):
    """The agent's answer is not a valid decision. That is never an allow."""

    code = FailureCode.BAD_ANSWER


class RequestCancelled(PoolError):
    """The caller cancelled the request."""

    code = FailureCode.CANCELLED


class BadRequest(PoolError):
    """The event, or the order of events, is wrong. A retry will not help."""

    code = FailureCode.BAD_REQUEST


class ShuttingDown(PoolError):
    """The shard, or this client, is going away."""

    code = FailureCode.SHUTTING_DOWN


class NoShard(PoolError):
    """No living shard was found in the runtime directory."""

    code = FailureCode.NO_SHARD
    retry_safe = True


_CLASSES: Final[dict[str, type[PoolError]]] = {kind.code: kind for kind in PoolError.__subclasses__()}


def pool_error(
    code: FailureCode | str,
    message: str,
    *,
    agent_id: str | None = None,
    retry_safe: bool | None = None,
    shard: int | None = None,
    policy: FailurePolicy | None = None,
) -> PoolError:
    """Build the exception for a code. A code that is newer than this library becomes a plain PoolError."""
    kind = _CLASSES.get(code)
    if kind is None:
        return PoolError(message, agent_id=agent_id, retry_safe=retry_safe, shard=shard, code=code, policy=policy)
    return kind(message, agent_id=agent_id, retry_safe=retry_safe, shard=shard, policy=policy)
