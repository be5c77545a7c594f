"""What an agent sent, after its registration: the values that ``Codec.decode`` returns.

An answer belongs to a request, and must not be lost: ``Answer`` and ``MutationAnswer`` are good ones,
``Unreadable`` and ``NotUnderstood`` are bad ones, for which some request must be failed at once. Everything
else is news about the agent itself, and a piece of news that cannot be read is ``Ignored``.

Every text in here is the agent's own, except ``reason``, which quotes nothing that the agent sent.
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

    At least one of the ids is there: sdk agents know a request by ``request_id`` (never 0 here), core agents
    by ``correlation_id``, docs agents by either; where both are there, both have to be those of the request.
    """

    request_id: int | None
    correlation_id: str | None
    response: Decision


class MutationAnswer(Struct, frozen=True, gc=False):
    """A body mutation in a frame of its own (0x21): answers the oldest unanswered chunk of its request.

    No decision comes with it: the chunk passes, changed as the mutation says.
    """

    request_id: int
    mutation: BodyMutation


class NotUnderstood(Struct, frozen=True, gc=False):
    """The agent could not parse a frame, or does not know its type (an sdk agent's answer for request 0).

    It says "allow", and must never be taken for one: apply the failure policy to the *oldest outstanding*
    frame of the connection, since these agents answer in order.
    """


class Unreadable(Struct, frozen=True, gc=False):
    """An answer that cannot be used: bad JSON, no decision, an unknown one, a status that is none.

    Fail the request that the ids name, under the failure policy. Without ids, treat it as ``NotUnderstood``.
    The ids are dug out of whatever could be read; they count only if they name a request in flight.
    ``is_echo`` says that nothing is wrong but a text that no HTTP message may hold: an agent may repeat there what a
    client sent, so that it speaks not against the agent.
    """

    frame_type: int
    reason: str
    request_id: int | None = None
    correlation_id: str | None = None
    is_echo: bool = False


# --- news about the agent ----------------------------------------------------------------------------


class Ping(Struct, frozen=True, gc=False):
    """The agent wants a pong: ``pong_for`` builds it."""

    payload: bytes


class Pong(Struct, frozen=True, gc=False):
    """The answer to a ping; ``mark`` is what ``Codec.ping_mark`` said it would be, or None if unreadable."""

    mark: int | None
    payload: bytes


class HealthState(StrEnum):
    """How an agent says it is. Only core agents can say that they are draining."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    DRAINING = "draining"
    UNHEALTHY = "unhealthy"


class Health(Struct, frozen=True, gc=False):
    """How the agent is; ``message`` is its own words (of an unhealthy core agent, the reason).

    ``eta_ms`` is how long a draining agent expects to need. An sdk agent that answers with null is up and
    says no more: that is healthy, without a message.
    """

    state: HealthState
    message: str | None = None
    eta_ms: int | None = None


class Sample(Struct, frozen=True):
    """One number that the agent counted or measured."""

    name: str
    value: float
    labels: dict[str, str] = {}


class Histogram(Struct, frozen=True):
    """A distribution: ``buckets`` are (upper bound, cumulative count), the last bound may be infinite."""

    name: str
    sum: float
    count: int
    buckets: tuple[tuple[float, int], ...] = ()
    labels: dict[str, str] = {}


class Metrics(Struct, frozen=True):
    """What the agent counted. Of an sdk agent's free ``custom`` object, the numbers, as gauges."""

    counters: tuple[Sample, ...] = ()
    gauges: tuple[Sample, ...] = ()
    histograms: tuple[Histogram, ...] = ()


ConfigUpdateKind: TypeAlias = Literal[
    "request_reload", "rule_update", "list_update", "restart_required", "config_error"
]


class ConfigUpdate(Struct, frozen=True):
    """A core agent speaks about its configuration; there is no frame to answer it with.

    ``fields`` is what came beside the kind, as JSON values, unchecked.
    """

    kind: ConfigUpdateKind
    request_id: str
    fields: dict[str, Any] = {}


class FlowAction(StrEnum):
    """What a core agent asks of the flow of events; a pause is for new requests only."""

    PAUSE = "pause"
    RESUME = "resume"
    UPDATE_CAPACITY = "update_capacity"


class FlowControl(Struct, frozen=True, gc=False):
    """A core agent wants less, or more; for one request, or (``correlation_id`` None) the connection."""

    action: FlowAction
    correlation_id: str | None = None
    buffer_available: int | None = None


class Ignored(Struct, frozen=True, gc=False):
    """A frame that changes nothing: a type of no interest (``reason`` empty), or news that cannot be read."""

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
