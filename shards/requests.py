"""Requests: an event goes to an agent, and its answer or an error comes back.

Each call has exactly one outcome: an answer, a timeout, a lost connection or a cancel. Some messages are no answer:
request 0, unreadable payloads, unknown decisions, and "needs more" where nothing more comes. They fail the call with
`BadAnswer`. They never become an allow by accident.
"""

import asyncio
import itertools
import time
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable
from datetime import UTC, datetime
from time import monotonic

from dialout import (
    ALLOW,
    AgentEvent,
    BodyMutation,
    CancelReason,
    Decision,
    LocalProtocolError,
    RequestBodyChunk,
    RequestHeaders,
    ResponseBodyChunk,
    ResponseHeaders,
    WebSocketFrame,
    awake,
)
from dialout.proxy.errors import (
    BadAnswer,
    BadRequest,
    CannotReceive,
    ConnectionLost,
    FailureCode,
    PoolError,
    RequestCancelled,
    RequestTimeout,
)
from ipc.capacity import MAX_SHARDS, SHARD_BITS
from ipc.histogram import BOUNDS, Histogram
from ipc.options import PoolOptions
from ipc.status import RequestLatency
from shards.calls import Call, Carrier, Exchange, Outcome, correlation_id
from shards.deadlines import Deadlines

_BEHIND_HEADERS = frozenset({RequestBodyChunk, ResponseHeaders, ResponseBodyChunk, WebSocketFrame})

TICK = 0.02
"""Seconds between checks of deadlines, while there are any."""

PATIENCE = 0.99
"""Part of the pool's own time limit from which on a timeout counts against the agent. A relayed event has less time,
because its way from shard to shard takes some."""

_EPOCH_2025_MS = 1_735_689_600_000


def first_request_id(shard: int, now_ms: int) -> int:
    """The first request id of a process; the following ones are `MAX_SHARDS` apart.

    An agent's process stores requests by id, also over reconnects, and may be connected to several shards. Ids
    therefore start from the clock and contain the shard in their lowest `SHARD_BITS` bits. A shard cannot use up 256
    ids in a millisecond, so the next process starts above. Ids stay below 2^53 until 2042 (many readers parse JSON
    numbers as doubles).
    """
    return ((now_ms - _EPOCH_2025_MS) << 8) << SHARD_BITS | shard


class Requests:
    """The calls in flight of one pool, and counts of earlier ones: *answered*, and *failed* by code.

    *select* takes a call and the monotonic time. It returns a connection, an error if there is none, or the seconds
    after which to ask again.
    """

    def __init__(
        self, shard: int, options: PoolOptions, select: Callable[[Call, float], Carrier | PoolError | float]
    ) -> None:
        self.options = options
        self.answered = 0
        self.in_flight = 0
        self.late = 0
        self.failed: Counter[str] = Counter()
        # The parts of a histogram of answers: see _finish.
        self._answers_in = Histogram().counts
        self._answer_seconds = 0.0
        self._failures = Histogram()
        self._shard = shard
        self._select = select
        self._loop = asyncio.get_running_loop()
        self._clock = awake.clock()
        self._ids = itertools.count(first_request_id(shard, time.time_ns() // 1_000_000), MAX_SHARDS)
        self._deadlines: Deadlines[Call] = Deadlines()
        self._timer: asyncio.TimerHandle | None = None
        self._now_text, self._now_text_until = "", 0.0

    @property
    def latency(self) -> RequestLatency:
        """Histograms of how long requests took. The counts go on changing."""
        return RequestLatency(Histogram(self._answers_in, self._answer_seconds), self._failures)

    def reserve_id(self) -> int:
        """An unused request id: above the ids of all earlier requests, below those of all later ones."""
        return next(self._ids)

    def begin_above(self, last_id: int) -> None:
        """Give the next requests ids above *last_id*, the highest request id of another shard.

        After its clock was set back, this shard would otherwise repeat ids of a connection that comes from the other
        shard.
        """
        following = next(self._ids)
        if following <= last_id:
            following = (last_id // MAX_SHARDS + 1) * MAX_SHARDS + self._shard
        self._ids = itertools.count(following, MAX_SHARDS)

    # For callers.

    def submit(
        self,
        exchange: Exchange,
        event: AgentEvent,
        on_done: Callable[[Call, Outcome], None],
        timeout: float | None = None,
        *,
        final: bool = False,
    ) -> Call:
        """Send *event* to the exchange's agent, after the exchange's earlier events.

        *on_done* gets the outcome, later or during this call. *timeout* in seconds begins now and includes all waiting.
        *final* says that no further event follows.
        """
        # The loop's time has a resolution of 1 ms on uvloop. Both use the same clock.
        now = monotonic()
        seconds = self.options.request_timeout if timeout is None else timeout
        call = Call(exchange, event, on_done, now, final=final)
        self.in_flight += 1
        call.timeout = self._deadlines.put(call, seconds, now - self._clock.slept)
        if self._timer is None:
            self._timer = self._loop.call_later(TICK, self._tick)
        if exchange.over is not None:
            self._finish(call, exchange.over)
            if final and exchange.current is None:
                self._ended(exchange)
        elif exchange.current is not None or exchange.waiting:
            if exchange.waiting is None:
                exchange.waiting = deque()
            exchange.waiting.append(call)
        else:
            exchange.current = call
            self._send(call, now)
        return call

    def begin_on(self, connection: Carrier, agent_id: str) -> Exchange:
        """Begin an exchange on *connection* and no other. The caller has checked that the connection has room."""
        exchange = Exchange(agent_id)
        exchange.connection = connection
        exchange.request_id = next(self._ids)
        exchange.correlation_id = f"#{exchange.request_id:x}"
        return exchange

    def cancel(self, call: Call, reason: CancelReason) -> None:
        """Give a call up. Its outcome is `RequestCancelled`. The agent is told if it supports that."""
        if not call.done:
            self._tell_cancelled(call, reason)
            self._finish(call, RequestCancelled(f"cancelled: {reason.name.lower()}", agent_id=call.exchange.agent_id))

    def finish(self, exchange: Exchange) -> None:
        """Note that no further event of *exchange* follows. Its events in flight go on."""
        last = exchange.waiting[-1] if exchange.waiting else exchange.current
        if last is None:
            self._ended(exchange)
        else:
            last.final = True

    def give_up(self, exchange: Exchange, reason: CancelReason) -> None:
        """Cancel all calls of *exchange* that have no outcome, and finish it. A second call does nothing."""
        for call in (exchange.current, *(exchange.waiting or ())):
            if call is not None:
                self.cancel(call, reason)
        self.finish(exchange)

    def count_failure(self, code: FailureCode | str, seconds: float) -> None:
        """Count a request that has failed after *seconds*."""
        self.failed[code] += 1
        self._failures.observe(seconds)

    # For connections.

    def answer(self, call: Call, response: Decision) -> None:
        """Take the agent's answer to *call*, which its connection has removed from its table."""
        if call.done:
            self._late(call)
            return
        reason = _why_useless(call, response)
        if reason is None:
            self._finish(call, response)
        else:
            # A proxy that says "no body" where there is one causes this: it does not count against the agent.
            call.excused = True
            self.bad_answer(call, reason)

    def _late(self, call: Call) -> None:
        """Take an answer to a call that was given up. It shows that the agent works."""
        self.late += 1
        if call.connection is not None:
            call.connection.forgive()

    def mutation(self, call: Call, mutation: BodyMutation) -> None:
        """Take a body mutation in a frame of its own, which may be about *call*. The chunk passes with the change."""
        if call.done:
            self._late(call)
            return
        exchange = call.exchange
        if not isinstance(call.event, RequestBodyChunk | ResponseBodyChunk):
            self.bad_answer(call, "a body mutation answers no chunk")
            return
        if call.event.chunk_index < exchange.chunks:
            # It names neither direction, and may be the second answer to a chunk that has one.
            self.bad_answer(call, "a body mutation may be about this chunk or an earlier one of the same index")
            return
        if type(call.event) is RequestBodyChunk:
            response = Decision(ALLOW, request_body_mutation=mutation)
        else:
            response = Decision(ALLOW, response_body_mutation=mutation)
        exchange.mutated = True
        self._finish(call, response)

    def bad_answer(self, call: Call, reason: str) -> None:
        """Fail *call*, which its connection has removed from its table, because of an invalid answer."""
        if call.done:
            self.late += 1
            return
        self._finish(call, BadAnswer(f"the agent's answer is unusable: {reason}", agent_id=call.exchange.agent_id))

    def lost(self, call: Call, reason: str, *, unseen: bool) -> None:
        """Fail *call*, because its connection is lost. If the agent cannot have seen the event, send it again once.

        An agent may have acted on a written event (a rate limiter has counted it). The caller decides whether to repeat
        such an event.
        """
        if call.done:
            return
        exchange = call.exchange
        if unseen and call.is_first and not call.retried:
            call.retried = True
            if exchange.counted:
                _discount(exchange)
            call.connection = exchange.connection = None
            self._send(call, self._loop.time())
            return
        self._finish(
            call, ConnectionLost(f"the connection was lost: {reason}", agent_id=exchange.agent_id, retry_safe=unseen)
        )

    def close(self) -> None:
        """Stop the timer. Nothing may be in flight any more."""
        if self._timer is not None:
            self._timer.cancel()

    # Inside.

    def _send(self, call: Call, now: float) -> None:
        """Hand *call* to a connection, or fail it if there is none."""
        exchange = call.exchange
        connection = exchange.connection
        if connection is None:
            found = self._select(call, now)
            if isinstance(found, float):
                self._loop.call_later(found, self._send_again, call)
                return
            if isinstance(found, PoolError):
                # An agent that does not take this event may take the next one.
                self._finish(call, found, over=found.code is not FailureCode.CANNOT_RECEIVE)
                return
            connection = found
            if exchange.wants_headers and not self._has_headers(call, connection):
                return
            exchange.connection = connection
            call.is_first = True
            exchange.request_id = next(self._ids)
            exchange.correlation_id = correlation_id(call.event, exchange.request_id)
            if not call.final:
                exchange.counted = True
                connection.exchanges += 1
        elif connection.fd < 0:
            self._finish(call, ConnectionLost("the exchange's connection was lost", agent_id=exchange.agent_id))
            return
        elif not connection.can_receive(call.event):
            name = type(call.event).__name__
            # The exchange goes on. The agent does not take part in this event, but may take the next one.
            self._finish(call, CannotReceive(f"the agent takes no {name}", agent_id=exchange.agent_id), over=False)
            return
        elif exchange.wants_headers and not self._has_headers(call, connection):
            return
        call.sent = now
        call.request_id, call.correlation_id = exchange.request_id, exchange.correlation_id
        try:
            connection.carry(call, self._timestamp(now))
        except LocalProtocolError as error:
            if call.is_first:
                if exchange.counted:
                    _discount(exchange)
                exchange.connection = None  # The agent has seen nothing that it would have to forget.
            self._finish(call, BadRequest(str(error), agent_id=exchange.agent_id))

    def _has_headers(self, call: Call, connection: Carrier) -> bool:
        """Whether the agent has seen the headers that belong before *call*, or takes none; else the call has failed."""
        exchange, kind = call.exchange, type(call.event)
        if kind is RequestHeaders:
            exchange.wants_headers = False
        elif kind in _BEHIND_HEADERS and connection.takes_headers:
            reason = f"{kind.__name__} without the request's headers, which the agent takes"
            self._finish(call, BadRequest(reason, agent_id=exchange.agent_id))
            return False
        return True

    def _send_again(self, call: Call) -> None:
        if not call.done:
            self._send(call, self._loop.time())

    def _finish(self, call: Call, outcome: Outcome, *, over: bool = True) -> None:
        """End *call*, tell its caller, count it, and go on with the exchange's waiting events."""
        call.done = True
        self.in_flight -= 1
        self._deadlines.remove(call, call.timeout)
        exchange = call.exchange
        seconds = monotonic() - call.began
        failure = outcome if isinstance(outcome, PoolError) else None
        if failure is not None:
            if over:
                exchange.over = failure
                if exchange.counted:
                    _discount(exchange)
        else:
            self.answered += 1
            # Histogram.observe written out: the call would double the cost.
            self._answers_in[bisect_left(BOUNDS, seconds)] += 1
            self._answer_seconds += seconds
        connection = call.connection
        if connection is not None:
            connection.settled(call, outcome)
        if exchange.current is call:
            exchange.current = None
            if not call.final:
                if isinstance(call.event, RequestBodyChunk | ResponseBodyChunk):
                    exchange.chunks = max(exchange.chunks, call.event.chunk_index + 1)
            elif not exchange.waiting:
                self._ended(exchange)
        call.on_done(call, outcome)
        if failure is not None and not call.handed_on:
            self.count_failure(failure.code, seconds)
        if exchange.waiting:
            self._go_on(exchange)

    def _go_on(self, exchange: Exchange) -> None:
        """Send or fail waiting events until one is in flight.

        This is a loop and not a recursion: thousands of events may wait, and each of them may end at once.
        """
        if exchange.going_on:
            return
        exchange.going_on = True
        try:
            while exchange.waiting and exchange.current is None:
                following = exchange.waiting.popleft()
                if following.done:
                    if following.final and not exchange.waiting:
                        self._ended(exchange)
                    continue
                exchange.current = following
                if exchange.over is not None:
                    self._finish(following, exchange.over)
                else:
                    self._send(following, self._loop.time())
        finally:
            exchange.going_on = False

    def _tell_cancelled(self, call: Call, reason: CancelReason) -> None:
        if call.connection is not None:
            # This frees the agent's memory, too.
            call.exchange.forgotten = True
            call.connection.cancel(call.request_id, call.correlation_id, reason)

    def _ended(self, exchange: Exchange) -> None:
        """Note that no event of *exchange* follows, and have the agent forget the request."""
        if exchange.counted:
            _discount(exchange)
        connection = exchange.connection
        if (
            connection is not None
            and self.options.free_agent_memory
            and connection.keeps_requests
            and not exchange.forgotten
        ):
            exchange.forgotten = True
            connection.forget(exchange.request_id)

    def _tick(self) -> None:
        # Set before anything that can fail: without this timer no request would time out again.
        self._timer = self._loop.call_later(TICK, self._tick)
        for call in self._deadlines.expired(self._clock.time()):
            if not call.done:
                self._tell_cancelled(call, CancelReason.TIMEOUT)
                # Only a timeout of the pool's own length counts against the agent. The call may have waited before it
                # was sent.
                had_it_for = call.timeout - (call.sent - call.began)
                call.excused = had_it_for < PATIENCE * self.options.request_timeout
                seconds = f"{call.timeout:g} s"
                self._finish(call, RequestTimeout(f"no answer within {seconds}", agent_id=call.exchange.agent_id))
        if not len(self._deadlines):
            self._timer.cancel()
            self._timer = None

    def _timestamp(self, now: float) -> str:
        """The time for events' timestamps in RFC 3339, at most a tenth of a second old."""
        if now >= self._now_text_until:
            self._now_text = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            self._now_text_until = now + 0.1
        return self._now_text


def _discount(exchange: Exchange) -> None:
    """Stop counting *exchange* among the open exchanges of its connection."""
    exchange.counted = False
    if exchange.connection is not None:
        exchange.connection.exchanges -= 1


def may_be_about(call: Call, mutation: BodyMutation) -> bool:
    """Whether a body mutation in a frame of its own may be about *call*, not an earlier event of its request.

    An agent may send a decision and a mutation for the same chunk. The second of these may come when the next event is
    in flight. It must not be taken for the answer to the next event.
    """
    if isinstance(call.event, RequestBodyChunk | ResponseBodyChunk):
        return _is_for_chunk(mutation, call.event)
    return not call.exchange.chunks


def _is_for_chunk(mutation: BodyMutation | None, event: AgentEvent) -> bool:
    return (
        mutation is not None
        and isinstance(event, RequestBodyChunk | ResponseBodyChunk)
        and event.chunk_index == mutation.chunk_index
    )


def _why_useless(call: Call, response: Decision) -> str | None:
    """The reason why an answer decides nothing although no more will come; None if it is usable."""
    if response.verdict is not None:
        if call.exchange.mutated and response.verdict is ALLOW:
            mutation = response.request_body_mutation or response.response_body_mutation
            if not _is_for_chunk(mutation, call.event):
                # A decision names no chunk. This one may be about the chunk that the mutation has already answered.
                return "an allow behind a body mutation in a frame of its own names no chunk"
        return None
    if not response.needs_more:
        return "it holds no decision"
    event = call.event
    if isinstance(event, RequestBodyChunk | ResponseBodyChunk):
        return "it needs more after the last chunk" if event.is_last else None
    if isinstance(event, RequestHeaders | ResponseHeaders):
        return "it needs more, and there is no body" if event.has_body is False else None
    return "it needs more, and nothing more comes"
