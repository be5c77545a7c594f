"""Why a request got no answer: stable codes, and one exception for each.

::

    DialoutError
    └── PoolError
        ├── AgentNotFound        no connection of this agent anywhere
        ├── AgentUnavailable     it has connections, but none that can take a request now
        ├── AgentMoving          its connection is on the way to another shard
        ├── RequestTimeout       no answer within the time limit
        ├── FlowControlPaused    the agent has asked for a pause
        ├── CircuitOpen          it failed too often; the next trial is not due yet
        ├── ConnectionLost       the connection ended before the answer
        ├── Overloaded           too much is in flight already
        ├── CannotReceive        the agent does not take this kind of event
        ├── BadAnswer            the agent answered with something that is no decision
        ├── RequestCancelled     it was cancelled
        ├── BadRequest           the event itself is wrong
        ├── ShuttingDown         this shard, or this client, is going away
        └── NoShard              no living shard in the runtime directory

Whoever gets one of these has **no** decision of the agent: what happens to the HTTP request is the failure
policy of the proxy (fail closed, or open).
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
    """Between shards only: a proxy's request waits until it is there, and is ``agent_unavailable`` after seconds."""
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
    """Never on the wire: only a client that found nobody to ask says so."""


FailurePolicy: TypeAlias = Literal["open", "closed"]
"""Whether a request without a decision may pass."""


class PoolError(DialoutError):
    """Base of everything that keeps a request from its answer.

    ``code`` is a ``FailureCode``, or the text of one that is newer than this library; ``retry_safe`` says
    that the agent has certainly not seen the event, so that sending it again cannot make it count twice
    (left out, it is what the class says: true for those that are raised before anything is sent);
    ``agent_id`` and ``shard`` are None where they are not known. ``policy`` is what the host's operator has
    configured for this failure, "open" to let the request pass; None leaves it to the proxy's own policy.
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
    """No connection of this agent is known to any shard that could be asked."""

    code = FailureCode.AGENT_NOT_FOUND
    retry_safe = True


class AgentUnavailable(PoolError):
    """The agent has connections, but each of them is unhealthy or has all that it can work on."""

    code = FailureCode.AGENT_UNAVAILABLE
    retry_safe = True


class AgentMoving(PoolError):
    """The agent's connection is on its way from one shard to another, for a moment."""

    code = FailureCode.AGENT_MOVING
    retry_safe = True


class RequestTimeout(PoolError):
    """No answer within the time limit. The agent may still be working on it."""

    code = FailureCode.REQUEST_TIMEOUT


class FlowControlPaused(PoolError):
    """The agent has asked for a pause. ``policy`` is "open" where the pool's ``flow-control`` is ``fail-open``."""

    code = FailureCode.FLOW_CONTROL_PAUSED
    retry_safe = True


class CircuitOpen(PoolError):
    """The agent has failed too often in a row; requests are refused until the next trial is due."""

    code = FailureCode.CIRCUIT_OPEN
    retry_safe = True


class ConnectionLost(PoolError):
    """The connection to the agent, or to the shard, ended before the answer."""

    code = FailureCode.CONNECTION_LOST


class Overloaded(PoolError):
    """Too much is in flight or waits to be written; nothing was sent."""

    code = FailureCode.OVERLOADED
    retry_safe = True


class CannotReceive(PoolError):
    """The agent does not take this kind of event; nothing was sent to it."""

    code = FailureCode.CANNOT_RECEIVE
    retry_safe = True


class BadAnswer(PoolError):
    """The agent answered with something that is no decision. That is never an allow."""

    code = FailureCode.BAD_ANSWER


class RequestCancelled(PoolError):
    """The request was cancelled by its own side."""

    code = FailureCode.CANCELLED


class BadRequest(PoolError):
    """The event, or the order of events, is wrong: sending it again will not help."""

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
    """The exception of that code; a plain PoolError for a code that is newer than this library."""
    kind = _CLASSES.get(code)
    if kind is None:
        return PoolError(message, agent_id=agent_id, retry_safe=retry_safe, shard=shard, code=code, policy=policy)
    return kind(message, agent_id=agent_id, retry_safe=retry_safe, shard=shard, policy=policy)
