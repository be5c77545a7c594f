"""One agent's connection, from commit to close."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, get_args

from dialout import (
    AgentEvent,
    Answer,
    CancelReason,
    Capabilities,
    ConfigUpdate,
    Configure,
    Decision,
    Dialect,
    FlowAction,
    FlowControl,
    Health,
    HealthState,
    Inbound,
    Metrics,
    MutationAnswer,
    NotUnderstood,
    Ping,
    Pong,
    RequestHeaders,
    Unreadable,
    codec_for,
    pong_for,
)
from dialout.proxy.errors import FailureCode
from dialout.wire_sdk import forget_frame
from ipc.events import CloseCode
from ipc.messages import Established, Offer
from shards.calls import Call, Outcome
from shards.stream import Stream

if TYPE_CHECKING:
    from shards.pool import Agent, AgentPool

MOST_ABANDONED = 256
"""Calls given up whose answer may come yet. They keep their place: an answer for request 0 is about the oldest."""

MOST_CARRIED = 64 * 1024
"""Bytes in each direction that move with a connection: the message that carries them has a limit."""

_AGENTS_FAULT = frozenset({FailureCode.REQUEST_TIMEOUT, FailureCode.BAD_ANSWER})
"""Outcomes that speak against the connection and its agent, each time. A lost connection does so once."""


class Kind:
    """What all connections of one dialect and the same capabilities have in common, worked out once.

    *receivable* are the classes of events that such an agent takes: looking one up takes 30 ns, and an ``&`` of flags
    700. *keeps_requests* says that it remembers requests until they are cancelled, and can be told to forget.
    """

    __slots__ = ("can_cancel", "capabilities", "codec", "is_core", "keeps_requests", "limit", "receivable")

    def __init__(self, dialect: Dialect, capabilities: Capabilities, most: int) -> None:
        self.capabilities = capabilities
        self.codec = codec_for(dialect)
        events = int(self.codec.receivable_events(capabilities))
        self.receivable = frozenset(event for event in get_args(AgentEvent) if int(event.flag) & events)
        declared = capabilities.max_concurrent
        self.limit = most if declared is None else min(most, declared)
        self.can_cancel = capabilities.cancellation
        self.is_core = dialect is Dialect.CORE
        self.keeps_requests = dialect is Dialect.SDK and capabilities.cancellation


class Connection(Stream):
    """An agent's connection in the pool: what its frames mean, what is in flight on it, and how it is.

    The object exists once for every idle connection, so it has slots, and no containers while nothing is in flight.
    """

    __slots__ = (
        "abandoned",
        "agent",
        "answers_pings",
        "can_cancel",
        "codec",
        "connected_at",
        "errors",
        "exchanges",
        "frames",
        "frames_ignored",
        "health",
        "in_flight",
        "is_core",
        "keeps_requests",
        "kind",
        "leaving",
        "limit",
        "metadata",
        "number",
        "on_closed",
        "open",
        "paused",
        "pending",
        "ping_mark",
        "pinged_at",
        "pool",
        "receivable",
        "transport",
    )

    def __init__(self, pool: "AgentPool", agent: "Agent", offer: Offer, kind: "Kind", fd: int) -> None:
        super().__init__(pool, fd)
        self.pool = pool
        self.agent = agent
        self.number = offer.number
        self.kind = kind
        self.codec = kind.codec
        self.can_cancel = kind.can_cancel
        self.receivable = kind.receivable
        self.limit = kind.limit
        self.is_core = kind.is_core
        self.keeps_requests = kind.keeps_requests
        self.transport = offer.transport
        self.metadata = offer.metadata
        self.connected_at = time.time()
        self.on_closed: Callable[[], None] | None = None
        self.frames = 0
        self.frames_ignored = 0
        # Calls in the order in which their frames went out. Those that were given up stay until they are answered.
        self.pending: dict[int | str, Call] | None = None
        self.in_flight = 0
        self.abandoned = 0
        # Exchanges of several events that have begun here and are not over: between two of their events, too.
        self.exchanges = 0
        self.leaving = False
        # Health: errors in a row, what the agent said of itself, and pings.
        self.errors = 0
        self.health: HealthState | None = None
        self.paused = False
        self.open = True
        self.pinged_at = 0.0
        self.ping_mark = 0
        self.answers_pings = False
        if offer.state is not None:
            self._restore(offer.state)

    @property
    def connection_id(self) -> str:
        """What the agent was told it is called."""
        return f"{self.agent.agent_id}-conn-{self.number}"

    @property
    def dialect(self) -> Dialect:
        """What the agent speaks."""
        return self.codec.dialect

    # Being chosen.

    @property
    def is_healthy(self) -> bool:
        """Whether the agent works, by its own word and by what came back."""
        return self.errors < self.pool.options.unhealthy_after and self.health not in (
            HealthState.UNHEALTHY,
            HealthState.DRAINING,
        )

    @property
    def has_room(self) -> bool:
        """Whether one more request may be in flight, and the agent reads what it is sent."""
        return self.in_flight < self.limit and self.waiting_bytes <= self.pool.options.full_at

    def can_receive(self, event: AgentEvent) -> bool:
        """Whether the agent takes this kind of event."""
        return type(event) in self.receivable

    def _look_whether_open(self) -> None:
        """Set *open* anew, after anything that it depends on has changed."""
        self.open = self.is_healthy and not self.paused and not self.leaving

    def correlation_id_for(self, call: Call, request_id: int) -> str:
        """The correlation id of a new request, which no other request that lives bears on this connection.

        The caller's own where that is certain, so that logs match: of a request of one event, while no other by that
        name is in flight. Clients may choose it (X-Request-Id): whoever repeats the id of another's request must not
        get that one's answers. What we make up has a ``#`` in it, and what we take over has none.
        """
        event = call.event
        wanted = event.metadata.correlation_id if type(event) is RequestHeaders else ""
        if wanted and call.final and "#" not in wanted and (self.pending is None or wanted not in self.pending):
            return wanted
        return f"{wanted}#{request_id:x}"

    # Serving.

    def carry(self, call: Call, now: str) -> None:
        """Send a call's event and keep the call until its answer; LocalProtocolError when it cannot be encoded."""
        frame = self.codec.encode_event(
            call.event, request_id=call.request_id, correlation_id=call.correlation_id, now=now
        )
        key: int | str = call.correlation_id if self.is_core else call.request_id
        call.key, call.connection = key, self
        if self.pending is None:
            self.pending = {}
        self.pending[key] = call
        self.in_flight += 1
        self.send(frame)
        call.end_offset = self.offset + self.waiting_bytes

    def settled(self, call: Call, outcome: Outcome) -> None:
        """Note the outcome of a call that this connection carried."""
        self.in_flight -= 1
        if isinstance(outcome, Decision):
            if self.errors:
                self._forgive()
            if self.agent.breaker is not None:
                self.pool.judge(self.agent, failed=False)
        elif outcome.code in _AGENTS_FAULT and type(call.event) is not Configure:
            # An agent that takes no word of its configuration decides as well as before.
            self.errors += 1
            self._look_whether_open()
            self.pool.judge(self.agent, failed=True)
        if self.pending is not None and self.pending.get(call.key) is call:
            # Given up: its answer may still come.
            self.abandoned += 1
            if self.abandoned > MOST_ABANDONED:
                self._forget_abandoned()

    def cancel(self, request_id: int, correlation_id: str, reason: CancelReason) -> None:
        """Tell the agent that a request is over, if it wants to know."""
        if self.fd >= 0 and self.can_cancel:
            self.send(
                self.codec.encode_cancel(
                    request_id=request_id,
                    correlation_id=correlation_id,
                    reason=reason,
                    timestamp_ms=time.time_ns() // 1_000_000,
                )
            )

    def forget(self, request_id: int) -> None:
        """Have an agent that keeps requests until they are cancelled (see `keeps_requests`) forget one that is over."""
        if self.fd >= 0:
            self.send(forget_frame(request_id))

    def ping(self, sequence: int, now: float) -> None:
        """Ask the agent for a sign of life."""
        timestamp_ms = time.time_ns() // 1_000_000
        self.pinged_at = now
        self.ping_mark = self.codec.ping_mark(sequence=sequence, timestamp_ms=timestamp_ms)
        self.send(self.codec.encode_ping(sequence=sequence, timestamp_ms=timestamp_ms))

    def is_dead(self, now: float) -> bool:
        """Whether a ping is unanswered past its limit by an agent that has nothing else to do.

        A serial agent answers a ping behind the request that it works on: a busy agent is slow, not dead.
        """
        return (
            self.answers_pings
            and self.pinged_at > 0
            and self.in_flight == 0
            and now - self.pinged_at > self.pool.options.ping_timeout
        )

    def _closed(self, code: CloseCode, reason: str) -> None:
        self.pool.remove(self, code, reason)
        if self.pending is not None:
            pending, self.pending = self.pending, None
            if self.in_flight:
                self.pool.judge(self.agent, failed=True)
            for call in pending.values():
                self.pool.requests.lost(call, reason, unseen=call.end_offset > self.offset)

    # Moving to another shard.

    def leave(self, *, leaving: bool) -> None:
        """Take no new requests from now on, or take them again."""
        if self.leaving != leaving:
            self.leaving = leaving
            self.pool.leaving += 1 if leaving else -1
            self._look_whether_open()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is in flight, so that it can move: no event, no exchange between two events, no large frame.

        A frame above `MOST_CARRIED`, in either direction, is on its way to its end, and is waited for.
        """
        return (
            not self.in_flight
            and self.exchanges <= 0
            and self.waiting_bytes <= MOST_CARRIED
            and self.decoder.buffered <= MOST_CARRIED
        )

    def give_up_all(self, reason: str) -> None:
        """Fail what is in flight, so that the connection is idle but for large frames."""
        pending, self.pending = self.pending, None
        self.abandoned = 0
        for call in (pending or {}).values():
            self.pool.requests.lost(call, reason, unseen=False)
        # Those between two events find out with their next one.
        self.exchanges = 0

    def as_offer(self, now: float, ticket: int) -> Offer:
        """All that another shard needs to go on with this connection, once it has taken the *ticket*."""
        return Offer(
            self.number,
            self.agent.agent_id,
            self.dialect,
            self.kind.capabilities,
            self.transport,
            self.metadata,
            self.decoder.incomplete,
            self.unsent,
            Established(
                now,
                ticket,
                self.connected_at,
                self.frames,
                self.frames_ignored,
                self.errors,
                self.health,
                self.paused,
                self.pinged_at,
                self.ping_mark,
                self.answers_pings,
            ),
        )

    def _restore(self, state: Established) -> None:
        self.connected_at = state.connected_at
        self.frames, self.frames_ignored = state.frames, state.frames_ignored
        self.errors, self.health, self.paused = state.errors, state.health, state.paused
        self.pinged_at, self.ping_mark, self.answers_pings = state.pinged_at, state.ping_mark, state.answers_pings
        self._look_whether_open()

    # Frames from the agent.

    def _serve(self, frame_type: int, payload: bytes) -> None:
        if self.fd < 0:
            return
        self.frames += 1
        self.pool.frames_total += 1
        inbound = self.codec.decode(frame_type, payload)
        if type(inbound) is Answer:
            self._answered(inbound.request_id, inbound.correlation_id, inbound.response)
        else:
            self._serve_other(frame_type, payload, inbound)

    def _serve_other(self, frame_type: int, payload: bytes, inbound: Inbound) -> None:
        match inbound:
            case MutationAnswer(request_id, mutation):
                call = self._take_call(request_id, None)
                if call is None:
                    self.pool.requests.late += 1
                else:
                    self.pool.requests.mutation(call, mutation)
            case Unreadable(_, reason, request_id, correlation_id):
                nameless = request_id is None and correlation_id is None
                call = self._take_oldest() if nameless else self._take_call(request_id, correlation_id)
                self._bad_answer(call, reason)
            case NotUnderstood():
                self._bad_answer(self._take_oldest(), "the agent did not understand the event")
            case Pong(mark):
                self._ponged(mark)
            case Ping():
                pong = pong_for(self.codec.dialect, frame_type, payload)
                if pong is not None:
                    self.send(pong)
            case Health(state):
                self.health = state
                self._look_whether_open()
            case FlowControl(action, None, buffer_available):
                self.paused = action is FlowAction.PAUSE or (
                    action is FlowAction.UPDATE_CAPACITY and buffer_available == 0
                )
                self._look_whether_open()
            case Metrics():
                pass
            case ConfigUpdate(kind):
                self.pool.log.info("agent speaks about its configuration", connection_id=self.connection_id, kind=kind)
            case _:
                self.frames_ignored += 1

    def _answered(self, request_id: int | None, correlation_id: str | None, response: Decision) -> None:
        call = self._take_call(request_id, correlation_id)
        if call is None:
            self.pool.requests.late += 1
            return
        self.pool.requests.answer(call, response)

    def _take_call(self, request_id: int | None, correlation_id: str | None) -> Call | None:
        """Take the call that an answer's ids name out of the table."""
        pending = self.pending
        if not pending:
            return None
        key = correlation_id if self.is_core else request_id
        if key is None and correlation_id is not None:
            # A docs agent may repeat either id.
            key = next((k for k, call in pending.items() if call.correlation_id == correlation_id), None)
        call = None if key is None else pending.pop(key, None)
        if call is not None and call.done:
            self.abandoned -= 1
        return call

    def _bad_answer(self, call: Call | None, reason: str) -> None:
        if call is None:
            self.pool.requests.late += 1
        else:
            self.pool.requests.bad_answer(call, reason)

    def _take_oldest(self) -> Call | None:
        """Take the call that an answer without a request is about.

        Sdk agents answer in order, so it is the oldest. A core agent may work on several at once: then nobody can tell.
        """
        if not self.pending or (self.is_core and len(self.pending) > 1):
            return None
        call = self.pending.pop(next(iter(self.pending)))
        if call.done:
            self.abandoned -= 1
        return call

    def _forget_abandoned(self) -> None:
        if self.pending is not None:
            self.pending = {key: call for key, call in self.pending.items() if not call.done}
        self.abandoned = 0

    def _ponged(self, mark: int | None) -> None:
        if mark == self.ping_mark:
            self.pinged_at = 0.0
            self.answers_pings = True
            self._forgive()

    def _forgive(self) -> None:
        """Forget the errors: the agent answers again, so it is used again."""
        self.errors = 0
        self._look_whether_open()
