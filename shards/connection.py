"""An agent, and one connection of it, from commit to close."""

import time
from collections.abc import Callable
from time import monotonic
from typing import Protocol

from dialout import (
    AgentEvent,
    Answer,
    CancelReason,
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
    RequestBodyChunk,
    RequestHeaders,
    ResponseBodyChunk,
    Unreadable,
    pong_for,
)
from dialout.awake import AwakeClock
from dialout.dialects import MAX_PING, says_draining
from dialout.frames import MAX_FRAME_LENGTH
from dialout.proxy.errors import FailureCode
from dialout.wire_sdk import forget_frame
from ipc.events import CloseCode
from ipc.messages import Established, Offer
from ipc.peers import owner
from shards.breaker import Breaker
from shards.calls import Call, Outcome
from shards.kind import Kind
from shards.pending import Pending
from shards.requests import Requests, may_be_about
from shards.spending import ANSWER, BURST, FRAME, READ_BYTE, SUSPICIOUS, Spending
from shards.stream import SMALL_READ, Host, Stream

MOST_CARRIED = 64 * 1024
"""Bytes in each direction that move with a connection: the message that carries them has a limit."""

_AGENTS_FAULT = frozenset({FailureCode.REQUEST_TIMEOUT, FailureCode.BAD_ANSWER})
"""Outcomes that speak against the connection and its agent, each time. A lost connection does so once."""


_ANSWERS = frozenset({0x20, 0x21})
_BODIES = frozenset({RequestBodyChunk, ResponseBodyChunk})

SLOW_READ = 0.25
"""Seconds for one read of one connection, from which on the log names it: all others have waited."""


class Pool(Host, Protocol):
    """What a connection needs of the pool that it is in."""

    requests: Requests
    spending: Spending
    clock: AwakeClock
    frames_total: int
    leaving: int

    def judge(self, agent: "Agent", *, failed: bool) -> None:
        """Count an outcome for or against the agent."""

    def remove(self, connection: "Connection", code: CloseCode, reason: str) -> None:
        """Forget a connection that is closing itself."""

    def note_config_update(self, connection: "Connection", kind: str) -> None:
        """Log that an agent speaks about its configuration."""

    def note_slow_read(self, connection: "Connection", seconds: float) -> None:
        """Log that serving what an agent sent has held everything else up."""


class Agent:
    """An agent with at least one connection here. *breaker* is None while it has not failed."""

    __slots__ = ("agent_id", "breaker", "connections")

    def __init__(self, agent_id: str) -> None:
        self.agent_id = agent_id
        self.connections: dict[int, Connection] = {}
        self.breaker: Breaker | None = None


class Connection(Stream):
    """An agent's connection in the pool: what its frames mean, what is in flight on it, and how it is.

    The object exists once for every idle connection, so it has slots, and no container before its first request.
    """

    __slots__ = (
        "agent",
        "answers_pings",
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
        "on_closed",
        "open",
        "owner",
        "paused",
        "pending",
        "ping_mark",
        "pinged_at",
        "receivable",
        "transport",
    )

    # A stream knows less of it.
    pool: Pool

    def __init__(self, pool: Pool, agent: Agent, offer: Offer, kind: Kind, fd: int) -> None:
        super().__init__(pool, fd)
        self.agent = agent
        self.number = offer.number
        self.kind = kind
        # What every request looks at is here once more: a hop less.
        self.codec = kind.codec
        self.receivable = kind.receivable
        self.limit = kind.limit
        self.is_core = kind.dialect is Dialect.CORE
        self.keeps_requests = kind.keeps_requests
        self.transport = offer.transport
        self.metadata = offer.metadata
        # One object for all that have the same owner: 100,000 of them weigh.
        self.owner = owner(*offer.owner)
        self.connected_at = time.time()
        self.on_closed: Callable[[], None] | None = None
        self.frames = 0
        self.frames_ignored = 0
        self.pending: Pending | None = None
        self.in_flight = 0
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

    # Serving.

    def carry(self, call: Call, now: str) -> None:
        """Send a call's event and keep the call until its answer; LocalProtocolError when it cannot be encoded."""
        frame = self.codec.encode_event(
            call.event, request_id=call.request_id, correlation_id=call.correlation_id, now=now
        )
        key: int | str = call.correlation_id if self.is_core else call.request_id
        call.key, call.connection = key, self
        if self.pending is None:
            self.pending = Pending(self.kind.dialect)
        self.pending[key] = call
        self.in_flight += 1
        if type(call.event) is not RequestHeaders and type(call.event) in _BODIES:
            # Its answer may hold the body, changed. In JSON it may be larger than the event, but not than a frame.
            self.decoder.limit = MAX_FRAME_LENGTH
        self.send(frame)
        call.end_offset = self.offset + self.waiting_bytes

    def settled(self, call: Call, outcome: Outcome) -> None:
        """Note the outcome of a call that this connection carried."""
        self.in_flight -= 1
        if isinstance(outcome, Decision):
            if self.errors or self.agent.breaker is not None:
                self.forgive()
        elif outcome.code in _AGENTS_FAULT and not call.excused and type(call.event) is not Configure:
            # An agent that takes no word of its configuration decides as well as before.
            self.errors += 1
            self._look_whether_open()
            self.pool.judge(self.agent, failed=True)
        if self.pending is not None and self.pending.get(call.key) is call:
            # Given up: its answer may still come.
            self.pending.abandon()
        if self.decoder.limit == MAX_FRAME_LENGTH and not self._waits_for_body():
            self.decoder.limit = self.pool.options.max_answer_bytes

    def _waits_for_body(self) -> bool:
        """Whether a chunk of a body is without an answer: one that was given up may still get one."""
        return self.pending is not None and any(type(call.event) in _BODIES for call in self.pending.values())

    def forgive(self) -> None:
        """Forget what speaks against the connection and its agent: it has answered."""
        if self.errors:
            self._forgive()
        if self.agent.breaker is not None:
            self.pool.judge(self.agent, failed=False)

    def cancel(self, request_id: int, correlation_id: str, reason: CancelReason) -> None:
        """Tell the agent that a request is over, if it wants to know."""
        if self.fd >= 0 and self.kind.can_cancel:
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
    def has_large_frame(self) -> bool:
        """Whether a frame above `MOST_CARRIED`, in either direction, is on its way to its end, and is waited for."""
        return self.waiting_bytes > MOST_CARRIED or self.decoder.buffered > MOST_CARRIED

    @property
    def is_idle(self) -> bool:
        """Whether nothing is in flight, so that it can move: no event, no exchange between two, no large frame."""
        return not self.in_flight and not self.exchanges and not self.has_large_frame

    def give_up_all(self, reason: str) -> None:
        """Fail what is in flight. Exchanges between two events find out with the next one, when it has moved."""
        pending, self.pending = self.pending, None
        for call in (pending or {}).values():
            self.pool.requests.lost(call, reason, unseen=False)

    def as_offer(self, now: float, ticket: int) -> Offer:
        """All that another shard needs to go on with this connection, once it has taken the *ticket*."""
        return Offer(
            self.number,
            self.agent.agent_id,
            self.kind.dialect,
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
                # In the other shard's process other times were slept through.
                self.pinged_at and self.pinged_at + self.pool.clock.slept,
                self.ping_mark,
                self.answers_pings,
                self.pool.requests.reserve_id(),
            ),
            self.owner,
        )

    def _restore(self, state: Established) -> None:
        self.connected_at = state.connected_at
        self.frames, self.frames_ignored = state.frames, state.frames_ignored
        self.errors, self.health, self.paused = state.errors, state.health, state.paused
        self.ping_mark, self.answers_pings = state.ping_mark, state.answers_pings
        self.pinged_at = state.pinged_at and state.pinged_at - self.pool.clock.slept
        self.pool.requests.begin_above(state.last_id)
        self._look_whether_open()

    # Frames from the agent.

    def _serve(self, frame_type: int, payload: bytes) -> None:
        if self.fd < 0:
            return
        self.frames += 1
        self.pool.frames_total += 1
        pending = self.pending
        if not pending and frame_type in _ANSWERS:
            # Decoding is for what somebody waits for.
            self.pool.requests.late += 1
            self._note_useless(payload)
            return
        inbound = self.codec.decode(frame_type, payload)
        if type(inbound) is not Answer:
            if type(inbound) is not MutationAnswer:
                self._note_useless(payload)
            self._serve_other(frame_type, payload, inbound)
            return
        call = None if pending is None else pending.take(inbound.request_id, inbound.correlation_id)
        if call is None:
            self.pool.requests.late += 1
            self._note_useless(payload)
        else:
            self.pool.requests.answer(call, inbound.response)

    def _note_useless(self, payload: bytes) -> None:
        self.useless += 1
        self.useless_bytes += len(payload)

    def _spent(self, seconds: float, frames: int) -> None:
        """Close the connection when its frames cost more than they are worth, and name it when one stops all others."""
        if seconds > SLOW_READ:
            self.pool.note_slow_read(self, seconds)
        if not self.useless or self.fd < 0:
            return
        spent = seconds - (frames - self.useless) * ANSWER
        if not self.watched:
            # So far this may be the time of another process.
            self.watched = spent > SUSPICIOUS
            spent = self.useless * FRAME
        spent += self.useless_bytes * READ_BYTE
        if spent > 0:
            left = self.pool.spending.charge(self.number, self.agent.agent_id, spent, monotonic())
            self.read_size = SMALL_READ
            if left < 0:
                reason = f"its frames that answer nothing took more than {BURST * 1000:.0f} ms of the processor"
                self.close(CloseCode.BAD_FRAME, reason)

    def _serve_other(self, frame_type: int, payload: bytes, inbound: Inbound) -> None:
        match inbound:
            case MutationAnswer(request_id, mutation):
                call = None if self.pending is None else self.pending.get(request_id)
                if call is None or not may_be_about(call, mutation):
                    self.pool.requests.late += 1
                    self._note_useless(payload)
                else:
                    self._call_about(request_id, None)
                    self.pool.requests.mutation(call, mutation)
            case Unreadable(_, reason, request_id, correlation_id):
                self._bad_answer(self._call_about(request_id, correlation_id), reason)
            case NotUnderstood():
                self._bad_answer(self._call_about(None, None), "the agent did not understand the event")
            case Pong(mark):
                self._ponged(mark)
            case Ping():
                self._pinged(frame_type, payload)
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
                self.pool.note_config_update(self, kind)
            case _:
                self.frames_ignored += 1

    def _call_about(self, request_id: int | None, correlation_id: str | None) -> Call | None:
        """Take the call out that an answer names; the oldest for one that names none."""
        if self.pending is None:
            return None
        if request_id is None and correlation_id is None:
            return self.pending.take_oldest()
        return self.pending.take(request_id, correlation_id)

    def _bad_answer(self, call: Call | None, reason: str) -> None:
        if call is None:
            self.pool.requests.late += 1
        else:
            self.pool.requests.bad_answer(call, reason)

    def _pinged(self, frame_type: int, payload: bytes) -> None:
        pong = pong_for(self.kind.dialect, frame_type, payload)
        if pong is None:
            self.close(CloseCode.BAD_FRAME, f"a ping of {len(payload)} bytes, the limit is {MAX_PING}")
            return
        if says_draining(payload):
            # In every dialect. The pong stands behind all that was sent before, so then the agent has read it.
            self.health = HealthState.DRAINING
            self._look_whether_open()
        self.send(pong)

    def _ponged(self, mark: int | None) -> None:
        if mark == self.ping_mark:
            self.pinged_at = 0.0
            self.answers_pings = True
            self._forgive()

    def _forgive(self) -> None:
        """Forget the errors: the agent answers again, so it is used again."""
        self.errors = 0
        self._look_whether_open()
