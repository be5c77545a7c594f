"""What is in flight: calls, and the exchanges that they belong to."""

from collections import deque
from collections.abc import Callable
from typing import Protocol

from dialout import AgentEvent, CancelReason, Decision, RequestHeaders
from dialout.proxy.errors import PoolError

Outcome = Decision | PoolError
"""How a call ends: the agent's answer, or why there is none. An error is never an allow; the caller has a policy."""


MAX_WANTED = 200
"""Characters of a proxy's correlation id that an agent sees; agents keep the whole id for each request."""


def correlation_id(event: AgentEvent, request_id: int) -> str:
    """The correlation id of a new request that begins with *event*: what the proxy wants, ``#``, and the request id.

    A client may choose what the proxy wants (X-Request-Id), and may repeat it. The late answer to an earlier request
    must not be taken for the answer to a later one, so no id is written unchanged and none is written twice: request
    ids of a connection only grow, also when it moves (`shards.requests.Requests.begin_above`).
    """
    wanted = event.metadata.correlation_id[:MAX_WANTED] if type(event) is RequestHeaders else ""
    return f"{wanted}#{request_id:x}"


class Carrier(Protocol):
    """What carries calls to an agent: a connection of it, or what a test puts in the place of one.

    *fd* is negative once it is closed. *exchanges* counts those of several events that have begun on it and are not
    over. *keeps_requests* says that the agent remembers requests until it is told to `forget` them.
    """

    fd: int
    exchanges: int
    keeps_requests: bool

    @property
    def connection_id(self) -> str:
        """What the agent was told it is called."""

    @property
    def takes_headers(self) -> bool:
        """Whether the agent takes the headers of requests."""

    def can_receive(self, event: AgentEvent) -> bool:
        """Whether the agent takes this kind of event."""

    def carry(self, call: "Call", now: str) -> None:
        """Send a call's event and keep the call until its answer; LocalProtocolError when it cannot be encoded."""

    def settled(self, call: "Call", outcome: Outcome) -> None:
        """Note the outcome of a call that was carried."""

    def forgive(self) -> None:
        """Forget what speaks against the connection and its agent: it has answered."""

    def cancel(self, request_id: int, correlation_id: str, reason: CancelReason) -> None:
        """Tell the agent that a request is over, if it wants to know."""

    def forget(self, request_id: int) -> None:
        """Have the agent forget a request that is over."""


class Exchange:
    """The events of one HTTP request for one agent: all go to the connection that saw the first one.

    One event is in flight at a time and the next ones wait, in order: core agents know an event by nothing but the
    request's correlation id. Once a call of an exchange has failed the exchange is *over*, and the later ones fail for
    the same reason: a late answer to the failed one can then never be taken for the answer to another. *forgotten* says
    that the agent was told to forget the request, *counted* that its connection counts it among its `exchanges`,
    *mutated* that a chunk was answered by a body mutation in a frame of its own. *chunks* is above the index of every
    chunk, of request or response, that has an outcome. *wants_headers* is set for a proxy's exchange until its headers
    are sent: an agent that takes them sees nothing of a body or a response before them.

    No slots here and in `Call`: most of these are never set for a request that has one event.
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
    """One event on its way since *began*: *on_done* is called exactly once, with the call and its outcome.

    *key* finds the call among its connection's: the request id, or the correlation id of a core agent. *end_offset* is
    how many bytes the connection has written when all of this call's frame is written. *sent* is when it was handed to
    its connection. *excused* says that its failure does not speak against the agent. *handed_on* is set by an *on_done*
    that has the event served elsewhere, so that its failure here was none, and does not count.
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
