"""Events in flight: calls, and the exchanges that they belong to."""

from collections import deque
from collections.abc import Callable
from typing import Protocol

from dialout import AgentEvent, CancelReason, Decision, RequestHeaders
from dialout.proxy.errors import PoolError

Outcome = Decision | PoolError
"""The end of a call: the agent's answer, or the error in its place. An error is never an allow; the caller has a
policy."""


MAX_WANTED = 200
"""Characters of a proxy's correlation id that an agent sees; agents keep the whole id for each request."""


def correlation_id(event: AgentEvent, request_id: int) -> str:
    """The correlation id of a request that begins with *event*: the proxy's own id, ``#``, and the request id.

    A client may choose the proxy's id (X-Request-Id), and may repeat it. A late answer to an earlier request must not
    be taken for the answer to a later one. No id is therefore written unchanged, and none is written twice. Request ids
    of a connection only grow, also when it moves (`shards.requests.Requests.begin_above`).
    """
    wanted = event.metadata.correlation_id if type(event) is RequestHeaders else ""
    return f"{wanted[:MAX_WANTED]}#{request_id:x}" if wanted else f"#{request_id:x}"


class Carrier(Protocol):
    """Carries calls to an agent: a connection, or its replacement in a test.

    *fd* is negative once the carrier is closed. *exchanges* counts the open exchanges of several events on it.
    *keeps_requests* says that the agent remembers requests until it is told to `forget` them.
    """

    fd: int
    exchanges: int
    keeps_requests: bool

    @property
    def connection_id(self) -> str:
        """The connection id that the agent was told at its acceptance."""

    @property
    def takes_headers(self) -> bool:
        """Whether the agent takes the headers of requests."""

    def can_receive(self, event: AgentEvent) -> bool:
        """Whether the agent takes this kind of event."""

    def carry(self, call: "Call", now: str) -> None:
        """Send a call's event and keep the call until its answer. LocalProtocolError if it cannot be encoded."""

    def settled(self, call: "Call", outcome: Outcome) -> None:
        """Note the outcome of a call of this carrier."""

    def forgive(self) -> None:
        """Reset the errors of the connection and its agent, because the agent has answered."""

    def cancel(self, request_id: int, correlation_id: str, reason: CancelReason) -> None:
        """Tell the agent that a request is over, if it supports cancellation."""

    def forget(self, request_id: int) -> None:
        """Have the agent forget a request that is over."""


class Exchange:
    """The events of one HTTP request for one agent. All go to the connection that got the first one.

    One event is in flight at a time, and the next ones wait in order: core agents know an event only by the request's
    correlation id. Once a call of an exchange has failed, the exchange is *over*, and later calls fail for the same
    reason. A late answer to the failed call can then never be taken for the answer to another one.

    *forgotten* says that the agent was told to forget the request. *counted* says that the exchange is included in its
    connection's `exchanges`. *mutated* says that a body mutation in a frame of its own has answered a chunk.
    *chunks* is above the index of every chunk, of request or response, that has an outcome. *wants_headers* is set for
    a proxy's exchange until its headers are sent. An agent that takes them sees no body and no response before them.

    This class and `Call` have no slots: most attributes are never set for a request that has one event.
    """

    request_id = 0
    correlation_id = ""
    connection: Carrier | None = None
    current: "Call | None" = None
    waiting: "deque[Call] | None" = None
    over: PoolError | None = None
    going_on = False
    forgotten = False
    counted = False
    mutated = False
    chunks = 0
    wants_headers = False

    def __init__(self, agent_id: str, session: str | None = None) -> None:
        self.agent_id = agent_id
        self.session = session


class Call:
    """One event on its way since *began*. *on_done* is called exactly once, with the call and its outcome.

    *key* is the call's key in its connection: the request id, or the correlation id for a core agent. *end_offset* is
    the connection's count of written bytes at the end of this call's frame. *sent* is the time at which the connection
    got the call. *excused* says that a failure does not count against the agent. *handed_on* is set by an *on_done*
    that has the event served elsewhere. The failure here is then not counted.
    """

    connection: Carrier | None = None
    request_id = 0
    correlation_id = ""
    key: int | str = 0
    end_offset = 0
    sent = 0.0
    done = False
    excused = False
    is_first = False
    retried = False
    handed_on = False

    def __init__(
        self,
        exchange: Exchange,
        event: AgentEvent,
        on_done: "Callable[[Call, Outcome], None]",
        began: float,
        *,
        final: bool,
    ) -> None:
        self.exchange = exchange
        self.event = event
        self.on_done = on_done
        self.timeout = 0.0
        self.began = began
        self.final = final
