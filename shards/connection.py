"""An agent, and one of its connections, from commit to close."""

import time
from collections.abc import Callable
from time import monotonic
from typing import Protocol

from dialout import (
    ALLOW,
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
"""Bytes in each direction that move with a connection. The message that carries them has a limit."""

_AGENTS_FAULT = frozenset({FailureCode.REQUEST_TIMEOUT, FailureCode.BAD_ANSWER})
"""Outcomes that count against the connection and its agent, each time. A lost connection counts once."""


_PASSES = (ALLOW, None)
_ANSWERS = frozenset({0x20, 0x21})
_BODIES = frozenset({RequestBodyChunk, ResponseBodyChunk})

SLOW_READ = 0.25
"""Seconds of one read from which on the log names its connection: all others had to wait."""


class Pool(Host, Protocol):
    """The interface of a pool that its connections use."""

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
        """Log that an agent sent a message about its configuration."""

    def note_slow_read(self, connection: "Connection", seconds: float) -> None:
        """Log that one read of a connection has held up all others for *seconds*."""


class Agent:
    """An agent with at least one connection here. *breaker* is None until its first failure."""

    __slots__ = ("agent_id", "breaker", "connections")

    def __init__(self, agent_id: str) -> None:
        self.agent_id = agent_id
        self.connections: dict[int, Connection] = {}
        self.breaker: Breaker | None = None


class Connection(Stream):
    """An agent's connection in the pool: its frames, its calls in flight, and its health.

    An idle connection consists of this object, which has slots and no container before its first request.
    """

    __slots__ = (
        "agent",
        "answers_pings",
        "codec",
        "connected_at",
        "drains",
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

    # A stream uses a smaller interface of the pool.
    pool: Pool

    def __init__(self, pool: Pool, agent: Agent, offer: Offer, kind: Kind, fd: int) -> None:
        super().__init__(pool, fd)
        self.agent = agent
        self.number = offer.number
        self.kind = kind
        # Copies of attributes that every request reads: one lookup less.
        self.codec = kind.codec
        self.receivable = kind.receivable
        self.limit = kind.limit
        self.is_core = kind.dialect is Dialect.CORE
        self.keeps_requests = kind.keeps_requests
        self.transport = offer.transport
        self.metadata = offer.metadata
        # Connections with the same owner share one object, which saves memory with 100,000 of them.
        self.owner = owner(*offer.owner)
        self.connected_at = time.time()
        self.on_closed: Callable[[], None] | None = None
        self.frames = 0
        self.frames_ignored = 0
        self.pending: Pending | None = None
        self.in_flight = 0
        # Open exchanges of several events, including those with no event in flight now.
        self.exchanges = 0
        self.leaving = False
        # Health: errors in a row, the agent's reports, and pings.
        self.errors = 0
        self.health: HealthState | None = None
        # A draining agent that said so in a ping stays so. Its reports of health do not change that.
        self.drains = False
        self.paused = False
        self.open = True
        self.pinged_at = 0.0
        self.ping_mark = 0
        self.answers_pings = False
        if offer.state is not None:
            self._restore(offer.state)

    @property
    def connection_id(self) -> str:
        """The connection id that the agent was told at its acceptance."""
        return f"{self.agent.agent_id}-conn-{self.number}"

    # Being chosen.

    @property
    def is_healthy(self) -> bool:
        """Whether the agent works, by its own reports and by its errors in a row."""
        return self.errors < self.pool.options.unhealthy_after and self.health not in (
            HealthState.UNHEALTHY,
            HealthState.DRAINING,
        )

    @property
    def has_room(self) -> bool:
        """Whether one more request may be in flight, and the agent reads its events."""
        return self.in_flight < self.limit and self.waiting_bytes <= self.pool.options.full_at

    @property
    def takes_headers(self) -> bool:
        """Whether the agent takes the headers of requests."""
        return RequestHeaders in self.receivable

    def can_receive(self, event: AgentEvent) -> bool:
        """Whether the agent takes this kind of event."""
        return type(event) in self.receivable

    def _look_whether_open(self) -> None:
        """Update *open* after a change of a value that it depends on."""
        self.open = self.is_healthy and not self.paused and not self.leaving

    # Serving.

    def carry(self, call: Call, now: str) -> None:
        """Send a call's event and keep the call until its answer. LocalProtocolError if it cannot be encoded."""
        frame = self.codec.encode_event(
            call.event, request_id=call.request_id, correlation_id=call.correlation_id, now=now
        )
        key: int | str = call.correlation_id if self.is_core else call.request_id
        call.key, call.connection = key, self
        if self.pending is None:
            self.pending = Pending(self.kind.dialect)
        self.pending[key] = call
        self.in_flight += 1
        if type(call.event) in _BODIES:
            # The answer may contain the changed body. In JSON it may be larger than the event, but not than a frame.
            self.decoder.limit = MAX_FRAME_LENGTH
        self.send(frame)
        call.end_offset = self.offset + self.waiting_bytes

    def settled(self, call: Call, outcome: Outcome) -> None:
        """Note the outcome of a call of this connection."""
        self.in_flight -= 1
        if isinstance(outcome, Decision):
            if self.errors or self.agent.breaker is not None:
                self.forgive()
        elif outcome.code in _AGENTS_FAULT and not call.excused and type(call.event) is not Configure:
            # An agent that fails to answer a configuration still decides requests as before.
            self.errors += 1
            self._look_whether_open()
            self.pool.judge(self.agent, failed=True)
        if self.pending is not None and self.pending.get(call.key) is call:
            # The call was given up. Its answer may still come.
            self.pending.abandon()
        if type(call.event) in _BODIES and not self._waits_for_body():
            self.decoder.limit = self.pool.options.max_answer_bytes

    def _waits_for_body(self) -> bool:
        """Whether a chunk of a body is unanswered. A chunk that was given up may still get an answer."""
        return self.pending is not None and any(type(call.event) in _BODIES for call in self.pending.values())

    def forgive(self) -> None:
        """Reset the errors of the connection and its agent, because the agent has answered."""
        if self.errors:
            self._forgive()
        if self.agent.breaker is not None:
            self.pool.judge(self.agent, failed=False)

    def cancel(self, request_id: int, correlation_id: str, reason: CancelReason) -> None:
        """Tell the agent that a request is over, if it supports cancellation."""
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
        """Tell the agent to forget a request that is over (see `keeps_requests`)."""
        if self.fd >= 0:
            self.send(forget_frame(request_id))

    def ping(self, sequence: int, now: float) -> None:
        """Send a ping to the agent."""
        timestamp_ms = time.time_ns() // 1_000_000
        self.pinged_at = now
        self.ping_mark = self.codec.ping_mark(sequence=sequence, timestamp_ms=timestamp_ms)
        self.send(self.codec.encode_ping(sequence=sequence, timestamp_ms=timestamp_ms))

    def is_dead(self, now: float) -> bool:
        """Whether an agent with no request in flight has left a ping unanswered past its limit.

        A serial agent answers a ping after the request that it works on: a busy agent is slow, not dead.
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
        """Whether a frame above `MOST_CARRIED` is incomplete in either direction. The move waits for its end."""
        return self.waiting_bytes > MOST_CARRIED or self.decoder.buffered > MOST_CARRIED

    @property
    def is_idle(self) -> bool:
        """Whether the connection can move: no event is in flight, no exchange is open, no large frame is incomplete."""
        return not self.in_flight and not self.exchanges and not self.has_large_frame

    def give_up_all(self, reason: str) -> None:
        """Fail all calls in flight. Open exchanges without one fail at their next event, after the move."""
        pending, self.pending = self.pending, None
        for call in (pending or {}).values():
            self.pool.requests.lost(call, reason, unseen=False)

    def as_offer(self, now: float, ticket: int) -> Offer:
        """The state that another shard needs to serve this connection, once it has taken the *ticket*."""
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
                # The other shard's process has its own count of slept seconds.
                self.pinged_at and self.pinged_at + self.pool.clock.slept,
                self.ping_mark,
                self.answers_pings,
                self.pool.requests.reserve_id(),
                self.drains,
            ),
            self.owner,
        )

    def _restore(self, state: Established) -> None:
        self.connected_at = state.connected_at
        self.frames, self.frames_ignored = state.frames, state.frames_ignored
        self.errors, self.health, self.paused = state.errors, state.health, state.paused
        self.drains = state.drains
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
            # Not decoded, since no call waits for it.
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
        elif call.end_offset > self.offset and inbound.response.verdict in _PASSES:
            # As when an agent answers twice, and the second answer meets the next event. A refusal is of the request.
            self._bad_answer(call, "it came before the event was sent")
        elif inbound.correlation_id is not None and inbound.correlation_id != call.correlation_id:
            self._bad_answer(call, "its two ids name two requests")
        else:
            self.pool.requests.answer(call, inbound.response)

    def _note_useless(self, payload: bytes) -> None:
        self.useless += 1
        self.useless_bytes += len(payload)

    def _spent(self, seconds: float, frames: int) -> None:
        """Charge the connection for useless frames, and close it when its budget is used up. Log a slow read."""
        if seconds > SLOW_READ:
            self.pool.note_slow_read(self, seconds)
        if not self.useless or self.fd < 0:
            return
        spent = seconds - (frames - self.useless) * ANSWER
        if not self.watched:
            # This may include the time of another process.
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
                if call is None or call.end_offset > self.offset or not may_be_about(call, mutation):
                    self.pool.requests.late += 1
                    self._note_useless(payload)
                else:
                    self._call_about(request_id, None)
                    self.pool.requests.mutation(call, mutation)
            case Unreadable(_, reason, request_id, correlation_id, is_echo):
                call = self._call_about(request_id, correlation_id)
                if call is not None and is_echo:
                    call.excused = True
                self._bad_answer(call, reason)
            case NotUnderstood():
                self._bad_answer(self._call_about(None, None), "the agent did not understand the event")
            case Pong(mark):
                self._ponged(mark)
            case Ping():
                self._pinged(frame_type, payload)
            case Health(state):
                self.health = HealthState.DRAINING if self.drains else state
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
        """Take out the call that an answer's ids name; the oldest one for an answer without ids."""
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
            # Agents of every dialect send it. The pong follows all earlier events: an agent that reads it has read
            # those.
            self.health, self.drains = HealthState.DRAINING, True
            self._look_whether_open()
        self.send(pong)

    def _ponged(self, mark: int | None) -> None:
        if mark == self.ping_mark:
            self.pinged_at = 0.0
            self.answers_pings = True
            self._forgive()

    def _forgive(self) -> None:
        """Reset the errors and use the connection again, because the agent answers."""
        self.errors = 0
        self._look_whether_open()
