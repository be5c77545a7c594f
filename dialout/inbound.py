"""The messages of an agent after its registration: the values that ``Codec.decode`` returns.

An answer belongs to a request and must not be lost. ``Answer`` and ``MutationAnswer`` are usable answers.
``Unreadable`` and ``NotUnderstood`` are not usable; the caller must fail a request for each of them at once. All other
messages are reports about the agent itself. A report that cannot be read is ``Ignored``.

All texts come from the agent, except ``reason``, which quotes nothing from the agent.
"""

from enum import StrEnum
from typing import Any, Literal, TypeAlias

from msgspec import Struct

from dialout.decisions import BodyMutation, Decision

__all__ = [
    "Answer",
    "ConfigUpdate",
    "FlowAction",
    "FlowControl",
    "Health",
    "HealthState",
    "Histogram",
    "Ignored",
    "Inbound",
    "Metrics",
    "MutationAnswer",
    "NotUnderstood",
    "Ping",
    "Pong",
    "Sample",
    "Unreadable",
]


# --- answers -----------------------------------------------------------------------------------------


class Answer(Struct, frozen=True, gc=False):
    """A response to the oldest unanswered event of one request.

    At least one of the ids is present. sdk agents identify a request by ``request_id`` (never 0 here), core agents by
    ``correlation_id``, docs agents by either. Where both are present, both have to be ids of that request.
    """

    request_id: int | None
    correlation_id: str | None
    response: Decision


class MutationAnswer(Struct, frozen=True, gc=False):
    """A body mutation in a frame of its own (0x21). It answers the oldest unanswered chunk of its request.

    It has no decision: the chunk passes, changed by the mutation.
    """

    request_id: int
    mutation: BodyMutation


class NotUnderstood(Struct, frozen=True, gc=False):
    """The agent could not parse a frame, or does not know its type (an sdk agent's answer for request 0).

    The answer says "allow", but must never be treated as an allow. Apply the failure policy to the *oldest outstanding*
    frame of the connection, since these agents answer in order.
    """


class Unreadable(Struct, frozen=True, gc=False):
    """An answer that cannot be used: bad JSON, no decision, an unknown decision, or a bad status.

    Fail the request that the ids name, under the failure policy. Without ids, treat it as ``NotUnderstood``. The ids
    come from the readable parts of the frame. They count only if they name a request in flight.

    ``is_echo`` says that only a text is wrong, which no HTTP message may hold. An agent may repeat there what a client
    sent, so such an answer does not count against the agent.
    """

    frame_type: int
    reason: str
    request_id: int | None = None
    correlation_id: str | None = None
    is_echo: bool = False


# --- reports about the agent -------------------------------------------------------------------------


class Ping(Struct, frozen=True, gc=False):
    """A ping of the agent. ``pong_for`` builds its answer."""

    payload: bytes


class Pong(Struct, frozen=True, gc=False):
    """The answer to a ping. ``mark`` is the value of ``Codec.ping_mark`` for that ping, or None if unreadable."""

    mark: int | None
    payload: bytes


class HealthState(StrEnum):
    """The state that an agent reports. Only core agents can report that they are draining."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    DRAINING = "draining"
    UNHEALTHY = "unhealthy"


class Health(Struct, frozen=True, gc=False):
    """The health of the agent. ``message`` is the agent's text; for an unhealthy core agent it is the reason.

    ``eta_ms`` is the time that a draining agent expects to need. An sdk agent that answers with null is healthy and
    has no message.
    """

    state: HealthState
    message: str | None = None
    eta_ms: int | None = None


class Sample(Struct, frozen=True):
    """One number that the agent has counted or measured."""

    name: str
    value: float
    labels: dict[str, str] = {}


class Histogram(Struct, frozen=True):
    """A distribution. ``buckets`` are (upper bound, cumulative count). The last bound may be infinite."""

    name: str
    sum: float
    count: int
    buckets: tuple[tuple[float, int], ...] = ()
    labels: dict[str, str] = {}


class Metrics(Struct, frozen=True):
    """The metrics of the agent. Numbers in an sdk agent's free ``custom`` object become gauges."""

    counters: tuple[Sample, ...] = ()
    gauges: tuple[Sample, ...] = ()
    histograms: tuple[Histogram, ...] = ()


ConfigUpdateKind: TypeAlias = Literal[
    "request_reload", "rule_update", "list_update", "restart_required", "config_error"
]


class ConfigUpdate(Struct, frozen=True):
    """A message of a core agent about its configuration. There is no frame to answer it with.

    ``fields`` holds the other keys beside the kind, as unchecked JSON values.
    """

    kind: ConfigUpdateKind
    request_id: str
    fields: dict[str, Any] = {}


class FlowAction(StrEnum):
    """The flow control action that a core agent asks for. A pause applies to new requests only."""

    PAUSE = "pause"
    RESUME = "resume"
    UPDATE_CAPACITY = "update_capacity"


class FlowControl(Struct, frozen=True, gc=False):
    """A flow control message of a core agent, for one request or (``correlation_id`` None) for the connection."""

    action: FlowAction
    correlation_id: str | None = None
    buffer_available: int | None = None


class Ignored(Struct, frozen=True, gc=False):
    """A frame without effect: a type of no interest (``reason`` empty), or a report that cannot be read."""

    frame_type: int
    reason: str = ""


Inbound: TypeAlias = (
    Answer
    | MutationAnswer
    | NotUnderstood
    | Unreadable
    | Ping
    | Pong
    | Health
    | Metrics
    | ConfigUpdate
    | FlowControl
    | Ignored
)
