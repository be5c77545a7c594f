"""What is in flight: calls, and the exchanges that they belong to."""

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from dialout import AgentEvent, AgentResponse
from dialout.pool_errors import PoolError

if TYPE_CHECKING:
    from shards.connection import Connection

Outcome = AgentResponse | PoolError
"""How a call ends: the agent's answer, or why there is none. An error is never an allow; the caller has a policy."""


class Exchange:
    """The events of one HTTP request for one agent: all go to the connection that saw the first one.

    One event is in flight at a time and the next ones wait, in order: core agents know an event by nothing but the
    request's correlation id. Once a call of an exchange has failed the exchange is *over*, and the later ones fail for
    the same reason: a late answer to the failed one can then never be taken for the answer to another.
    """

    __slots__ = ("agent_id", "connection", "correlation_id", "current", "over", "request_id", "session", "waiting")

    def __init__(self, agent_id: str, session: str | None = None) -> None:
        self.agent_id = agent_id
        self.session = session
        self.request_id = 0
        self.correlation_id = ""
        self.connection: Connection | None = None
        self.current: Call | None = None
        self.waiting: deque[Call] | None = None
        self.over: PoolError | None = None


class Call:
    """One event on its way: *on_done* is called exactly once, with the call and its outcome.

    *key* finds the call among its connection's: the request id, or the correlation id of a core agent.
    """

    __slots__ = (
        "connection",
        "correlation_id",
        "deadline",
        "done",
        "end_offset",
        "event",
        "exchange",
        "final",
        "is_first",
        "key",
        "on_done",
        "request_id",
        "retried",
        "started",
        "timeout",
    )

    def __init__(
        self,
        exchange: Exchange,
        event: AgentEvent,
        on_done: "Callable[[Call, Outcome], None]",
        timeout: float,
        deadline: float,
        *,
        final: bool,
    ) -> None:
        self.exchange = exchange
        self.event = event
        self.on_done = on_done
        self.timeout = timeout
        self.deadline = deadline
        self.final = final
        self.connection: Connection | None = None
        self.request_id = 0
        self.correlation_id = ""
        self.key: int | str = 0
        self.started = 0.0
        self.done = False
        self.is_first = False
        self.retried = False
        # How many bytes the connection has written when all of this call's frame is written.
        self.end_offset = 0
