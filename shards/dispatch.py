"""Chooses the shard that serves a proxy's request: this one, or another one that has the agent.

An event for an agent without a usable connection here goes to a shard that has one (`shards.relay`), once. While no
agent has seen any event of a request, its first event may go elsewhere. Its later events then follow in their order.
The first event is held for a moment if its agent is nowhere, or on its way between two shards. The news of its new
place may be on its way, too.
"""

import asyncio
import time
from functools import partial
from operator import attrgetter
from typing import Protocol

from dialout import AgentEvent, CancelReason, Decision
from dialout.proxy.errors import AgentMoving, AgentUnavailable, FailureCode, PoolError, RequestCancelled
from dialout.proxy.wire import FINAL, RELAYED, Answer, ProxyRequest
from shards.calls import Call, Exchange, Outcome
from shards.pool import AgentPool
from shards.relay import Relay, RelayedExchange

MOVING_LIMIT = 5.0
"""Seconds that a request waits at most for an agent on its way to another shard. Nearly all moves take milliseconds.
The supervisor gives up after two seconds on a shard that does not take a connection."""

MOVED_WAIT = 0.5
"""Seconds that the news of a move may take from shard to shard, on a busy host too."""

NEWS_PAUSE = 0.02
"""Seconds after which a request for an unknown agent is tried again. A request for an agent that another shard has
just accepted may come before the news of it."""

_ELSEWHERE = frozenset(
    {
        FailureCode.AGENT_NOT_FOUND,
        FailureCode.AGENT_UNAVAILABLE,
        FailureCode.AGENT_MOVING,
        FailureCode.OVERLOADED,
        FailureCode.FLOW_CONTROL_PAUSED,
    }
)
"""Failures of a first event that may not occur at another shard."""

_NOT_THERE = frozenset({FailureCode.AGENT_NOT_FOUND, FailureCode.AGENT_MOVING})
"""Failures of a shard that does not have the agent. Another shard may have it, now or in a moment."""

_NO_SHARDS: frozenset[int] = frozenset()


class Asker(Protocol):
    """The origin of events. For each submitted event one of the two methods is called, during `submit` or later."""

    def answer(
        self, event: "Event", response: Decision, agent_id: str, connection_id: str, shard: int, flags: int = 0
    ) -> None:
        """Take the agent's answer; *flags* has RELAYED when it came from another *shard*."""

    def fail(self, event: "Event", error: PoolError, flags: int = 0) -> None:
        """Take the error in place of an answer."""


class Request:
    """One request of a proxy: the exchange that serves it, here or elsewhere, and its events in flight.

    *begun* events have come. The answers or failures of the first *ended* of these are written. An outcome that is
    ready before its turn waits in *early*. *held* are the events that wait while the first one looks for its agent.

    Once an event was not served the request is *broken*, and later events fail for the same reason. An agent must not
    see a body with a gap. The request is removed after the answer to a final event. It is *closed* when its proxy has
    cancelled or finished it: its id is free again when all its events have their outcome.
    """

    __slots__ = (
        "agent_id",
        "asker",
        "begun",
        "broken",
        "cancelled",
        "closed",
        "early",
        "ended",
        "exchange",
        "held",
        "is_final",
    )

    def __init__(self, asker: Asker, agent_id: str, exchange: Exchange | RelayedExchange) -> None:
        self.asker = asker
        self.agent_id = agent_id
        self.exchange = exchange
        self.begun = 0
        self.ended = 0
        self.early: dict[int, bytes] | None = None
        self.held: list[Event] | None = None
        self.broken: PoolError | None = None
        self.cancelled = False
        self.closed = False
        self.is_final = False


class Event:
    """Event number *index* of its request, with *seconds* of time since *started*. *frame* is the proxy's frame.

    *moving_at* is the last time at which a shard said that the agent is on its way to another one. *asked* are the
    shards that said they do not have it.
    """

    __slots__ = ("asked", "frame", "index", "moving_at", "request", "seconds", "started")

    def __init__(self, request: Request, frame: ProxyRequest, seconds: float) -> None:
        self.request = request
        self.frame = frame
        self.index = request.begun
        self.seconds = seconds
        self.started = time.monotonic()  # uvloop's own clock has milliseconds.
        self.moving_at = 0.0
        self.asked = _NO_SHARDS

    @property
    def seconds_gone(self) -> float:
        """The part of its time that is over, in seconds."""
        return time.monotonic() - self.started

    @property
    def seconds_left(self) -> float:
        """The part of its time that is left, in seconds; negative when it is over."""
        return self.seconds - self.seconds_gone


class Dispatch:
    """Finds the shards that serve the requests of one shard's proxies, and sends the requests there."""

    def __init__(self, shard: int, pool: AgentPool, relay: Relay) -> None:
        self.waiting = 0
        """Events that are held. They are in flight, but in no pool."""
        self.relayed_total = 0
        """Events that another shard has answered or failed."""
        self._shard = shard
        self._pool = pool
        self._requests = pool.requests
        self._relay = relay
        self._loop = asyncio.get_running_loop()

    def begin(self, asker: Asker, frame: ProxyRequest) -> Request:
        """A request for the event in *frame*. The caller submits the event."""
        return Request(asker, frame.agent_id, self._exchange(frame, _NO_SHARDS))

    def expects_headers(self, agent_id: str, kind: type[AgentEvent]) -> bool:
        """Whether the agent, connected here, takes events of this *kind*, and the request headers before them.

        For an agent of another shard the other shard checks this.
        """
        agent = self._pool.agents.get(agent_id)
        return agent is not None and any(
            kind in connection.receivable and connection.takes_headers for connection in agent.connections.values()
        )

    def submit(self, event: Event, seconds: float) -> None:
        """Have an event served within *seconds*, after the earlier events of its request."""
        request, frame = event.request, event.frame
        if request.held is not None:
            request.held.append(event)
            self.waiting += 1
            return
        exchange = request.exchange
        final = bool(frame.flags & FINAL)
        if isinstance(exchange, RelayedExchange):
            exchange.submit(frame.event, partial(self._relayed, event), seconds, final=final)
        else:
            self._requests.submit(exchange, frame.event, partial(self._done, event), seconds, final=final)

    def finish(self, request: Request) -> None:
        """Note that no further event of the request follows. Its events in flight go on."""
        if isinstance(request.exchange, RelayedExchange):
            request.exchange.finish()
        else:
            self._requests.finish(request.exchange)

    def give_up(self, request: Request, reason: CancelReason) -> None:
        """Cancel all events of the request that have no outcome, and end it."""
        request.cancelled = True
        held, request.held = request.held, None
        for event in held or ():
            self.waiting -= 1
            error = RequestCancelled(f"cancelled: {reason.name.lower()}", agent_id=request.agent_id)
            self._requests.count_failure(error.code, event.seconds_gone)
            request.asker.fail(event, error)
        if isinstance(request.exchange, RelayedExchange):
            request.exchange.cancel(reason)
        else:
            self._requests.give_up(request.exchange, reason)

    # Outcomes.

    def _done(self, event: Event, call: Call, outcome: Outcome) -> None:
        if isinstance(outcome, PoolError):
            if self._goes_on(event, call, outcome):
                call.handed_on = True
                return
            # The shard that relayed the event looks elsewhere, and counts the outcome.
            call.handed_on = bool(event.frame.flags & RELAYED) and outcome.code in _NOT_THERE
            self._fail(event, outcome)
            return
        connection = call.connection
        assert connection is not None
        event.request.asker.answer(event, outcome, event.frame.agent_id, connection.connection_id, self._shard)

    def _relayed(self, event: Event, result: Answer | PoolError) -> None:
        request = event.request
        if not isinstance(result, PoolError):
            self.relayed_total += 1
            request.asker.answer(event, result.response, result.agent_id, result.connection_id, result.shard, RELAYED)
            return
        if request.held is not None:
            # It came after the first event, which looks for its agent again. It failed for the same reason.
            self.submit(event, event.seconds_left)
            return
        if result.code in _NOT_THERE:
            # The other shard may not know the agent yet, or the agent has moved on.
            if isinstance(request.exchange, RelayedExchange):
                event.asked |= {request.exchange.shard}
            if self._may_begin_again(event) and self._hold(event, result):
                return
            self._requests.count_failure(result.code, event.seconds_gone)
        self.relayed_total += 1
        self._fail(event, result, RELAYED)

    def _fail(self, event: Event, error: PoolError, flags: int = 0) -> None:
        if isinstance(error, AgentMoving) and not event.frame.flags & RELAYED:
            error = AgentUnavailable("the agent has been on its way to another shard for too long")
        event.request.asker.fail(event, error, flags)

    # Elsewhere, or later.

    def _goes_on(self, event: Event, call: Call, error: PoolError) -> bool:
        """Have an event that failed in the pool served elsewhere or later; False if that is not useful."""
        request = event.request
        if event.frame.flags & RELAYED or request.cancelled or call.connection is not None:
            return False
        if request.held is not None or request.exchange is not call.exchange:
            # It waited behind the first event, which goes on, and failed for the same reason.
            self.submit(event, event.seconds_left)
            return True
        if error.code not in _ELSEWHERE or not self._may_begin_again(event):
            return False
        left = event.seconds_left
        shard = self._holder(request.agent_id)
        if left <= 0 or shard is None:
            return self._hold(event, error)
        request.exchange = self._relay.begin(shard, request.agent_id)
        self.submit(event, left)
        return True

    @staticmethod
    def _may_begin_again(event: Event) -> bool:
        """Whether *event* is the first of its request, and no later event has its outcome yet."""
        return not event.index and not event.request.early and not event.request.cancelled

    def _hold(self, event: Event, error: PoolError) -> bool:
        """Hold the event and look for its agent again in a moment; False if that is not useful after *error*."""
        request, now = event.request, time.monotonic()
        if event.seconds_left <= 0:
            return False
        if isinstance(error, AgentMoving):
            event.moving_at = now
            if now - event.started > MOVING_LIMIT:
                return False
            if self._holder(request.agent_id, event.asked) in event.asked:
                event.asked = _NO_SHARDS
        elif error.code != FailureCode.AGENT_NOT_FOUND:
            return False
        else:
            # The news of a recent move is on its way.
            moved_at = max(event.moving_at, self._pool.left_at(request.agent_id) or 0.0)
            is_expected = now - moved_at < MOVED_WAIT
            following = self._holder(request.agent_id, event.asked)
            if following is None or following in event.asked:
                event.asked = _NO_SHARDS
                if not is_expected and not self._relay.may_be_news(request.agent_id, now - event.started):
                    return False
        request.held = []
        self.submit(event, event.seconds_left)
        self._loop.call_later(NEWS_PAUSE, self._try_again, request)
        return True

    def _try_again(self, request: Request) -> None:
        held = request.held
        if held is None:
            return
        if len(held) + len(request.early or ()) < request.begun:
            # Some later events have not come back from the other shard yet.
            self._loop.call_later(NEWS_PAUSE, self._try_again, request)
            return
        request.held = None
        self.waiting -= len(held)
        held.sort(key=attrgetter("index"))
        request.exchange = self._exchange(held[0].frame, held[0].asked)
        for event in held:
            self.submit(event, max(0.001, event.seconds_left))

    def _exchange(self, frame: ProxyRequest, asked: frozenset[int]) -> Exchange | RelayedExchange:
        """The exchange for a request: in this shard's pool, unless the agent is known to be elsewhere only."""
        if not frame.flags & RELAYED and not self._pool.serves(frame.agent_id):
            shard = self._holder(frame.agent_id, asked)
            if shard is not None:
                return self._relay.begin(shard, frame.agent_id)
        exchange = Exchange(frame.agent_id)
        exchange.wants_headers = True
        return exchange

    def _holder(self, agent_id: str, asked: frozenset[int] = _NO_SHARDS) -> int | None:
        is_here = agent_id in self._pool.agents or agent_id in self._pool.moving
        return self._relay.holder(agent_id, asked, is_here=is_here)
