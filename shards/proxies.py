"""The socket on which proxies ask: events come in, decisions go out, many requests in flight on one connection.

The protocol is ``dialout.proxy.wire``; each event gets exactly one answer or failure, in the order of its request's
events. An event for an agent that has no usable connection here goes to a shard that has one (`shards.relay`), once.
"""

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING, cast

from dialout import CancelReason, Decision, FrameDecoder, FrameError, LocalProtocolError
from dialout.proxy.errors import (
    AgentMoving,
    AgentUnavailable,
    BadAnswer,
    BadRequest,
    FailureCode,
    Overloaded,
    PoolError,
    RequestCancelled,
    ShuttingDown,
)
from dialout.proxy.wire import (
    FINAL,
    GOING_AWAY,
    PROXY_PROTOCOL,
    RELAYED,
    RETRY_SAFE,
    Answer,
    ProxyCancel,
    ProxyFinish,
    ProxyHello,
    ProxyPing,
    ProxyRequest,
    ProxyWireError,
    decode_from_proxy,
    encode_answer,
    encode_failure,
    encode_going_away,
    encode_pong,
    encode_refusal,
    encode_welcome,
)
from ipc.logs import get_logger, printable
from ipc.version import __version__
from shards.affinity import RecentTable
from shards.calls import Call, Exchange, Outcome
from shards.relay import RelayedExchange

if TYPE_CHECKING:
    from shards.proxy_server import ProxyServer

MOVING_LIMIT = 5.0
"""Seconds that a request waits at most for an agent which is on its way to another shard; nearly all take milliseconds,
and the supervisor gives up on a shard that does not take one after two seconds."""

MOVED_WAIT = 0.5
"""Seconds that word of an agent that has just moved may take from shard to shard, on a busy host too."""

NEWS_PAUSE = 0.02
"""Seconds after which a request for an unknown agent is tried again: an agent that has just been accepted by another
shard may be asked for before the word of it is here."""

MOST_IN_FLIGHT = 50_000
"""Events of one proxy connection without an answer; beyond it they fail as overloaded."""

LINGER = 2.0
"""Seconds in which a proxy that was refused may read why."""

_ELSEWHERE = frozenset(
    {
        FailureCode.AGENT_NOT_FOUND,
        FailureCode.AGENT_UNAVAILABLE,
        FailureCode.AGENT_MOVING,
        FailureCode.OVERLOADED,
        FailureCode.FLOW_CONTROL_PAUSED,
    }
)
"""Failures of a first event that another shard's connections may not have."""


_NOT_THERE = frozenset({FailureCode.AGENT_NOT_FOUND, FailureCode.AGENT_MOVING})

_NO_SHARDS: frozenset[int] = frozenset()


class _Entry:
    """One request of a proxy: the exchange that serves it, here or elsewhere, and what is in flight of it.

    Of its events *begun* have come, and the first *ended* of these have their answer or failure written; what is ready
    before its turn waits in *early*. *calls* are those in this shard's pool, *held* those that wait while the first one
    looks for its agent. Once an event was not served the request is *broken*, and what follows fails for the same
    reason: no agent must see a body with a hole in it. After the answer to a final event the entry goes.
    """

    __slots__ = ("agent_id", "begun", "broken", "calls", "cancelled", "early", "ended", "exchange", "held", "is_final")

    def __init__(self, agent_id: str, exchange: Exchange | RelayedExchange) -> None:
        self.agent_id = agent_id
        self.exchange = exchange
        self.calls: list[Call] = []
        self.begun = 0
        self.ended = 0
        self.early: dict[int, bytes] | None = None
        self.held: list[_Event] | None = None
        self.broken: PoolError | None = None
        self.cancelled = False
        self.is_final = False


class _Event:
    """Event number *index* of its request, with *seconds* of time since *started*.

    *moving_at* is when a shard said last that the agent is on its way to another one, *asked* are shards that said they
    do not have it.
    """

    __slots__ = ("asked", "entry", "index", "moving_at", "request", "seconds", "started")

    def __init__(self, request: ProxyRequest, entry: _Entry, seconds: float) -> None:
        self.request = request
        self.entry = entry
        self.index = entry.begun
        self.seconds = seconds
        self.started = time.monotonic()  # uvloop's own clock has milliseconds.
        self.moving_at = 0.0
        self.asked: frozenset[int] = _NO_SHARDS

    @property
    def seconds_left(self) -> float:
        """What is left of its time."""
        return self.seconds - (time.monotonic() - self.started)

    @property
    def is_alone(self) -> bool:
        """Whether it is the first of its request, and none has followed yet."""
        return not self.index and self.entry.begun == 1


class ProxyConnection(asyncio.Protocol):
    """One proxy's connection."""

    def __init__(self, server: "ProxyServer") -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._decoder = FrameDecoder()
        self._transport: asyncio.Transport | None = None
        self._greeted = False
        # Whether the proxy has yet to say that it sends no new requests to a shard that is going away.
        self._owes_farewell = False
        self._out: list[bytes] = []
        self._closing = False
        self._in_flight = 0
        options = server.pool.options
        self._entries: RecentTable[int, _Entry] = RecentTable(options.most_affinities, options.affinity_idle)
        self.name = "a proxy"

    # The transport's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        # uvloop's transports are none of asyncio's classes.
        self._transport = cast("asyncio.Transport", transport)
        self._server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Give up what the proxy waited for: nobody is left to decide for."""
        self._transport = None
        self._server.connections.discard(self)
        for entry in self._entries.take_all():
            self._give_up(entry, CancelReason.CLIENT_DISCONNECT)

    def pause_writing(self) -> None:
        """Read no more events from a proxy that does not read its answers."""
        if self._transport is not None and not self._closing:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Go on."""
        if self._transport is not None and not self._closing:
            self._transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        """Serve the frames that are complete by *data*."""
        try:
            frames = self._decoder.feed(data)
        except FrameError as error:
            for frame_type, payload in error.frames:
                self._serve(frame_type, payload)
            self.refuse(str(error))
            return
        for frame_type, payload in frames:
            self._serve(frame_type, payload)

    # Frames.

    def _serve(self, frame_type: int, payload: bytes) -> None:
        if self._closing:
            return
        try:
            frame = decode_from_proxy(frame_type, payload)
        except ProxyWireError as error:
            if error.request_id is None or not self._greeted:
                self.refuse(str(error))
            else:
                entry = self._entries.get(error.request_id, self._loop.time())
                self._not_served(error.request_id, entry, BadRequest(str(error)))
            return
        if type(frame) is ProxyRequest and self._greeted:
            self._request(frame)
        else:
            self._serve_other(frame)

    def _serve_other(self, frame: object) -> None:
        match frame:
            case ProxyHello(protocol, client):
                if protocol != PROXY_PROTOCOL:
                    self.refuse(f"protocol {protocol} is not spoken here, {PROXY_PROTOCOL} is")
                    return
                self._greeted = True
                self.name = printable(client)
                self._write(encode_welcome(self._server.shard, self._server.epoch, __version__))
                if self._server.going_away:
                    self.go_away()
            case _ if not self._greeted:
                self.refuse("the first frame must be a hello")
            case ProxyCancel(request_id, _, reason):
                entry = self._entries.pop(request_id)
                if entry is not None:
                    self._give_up(entry, reason)
            case ProxyFinish(request_id):
                entry = self._entries.pop(request_id)
                if entry is not None:
                    self._finish(entry)
            case ProxyPing(ping):
                self._owes_farewell = self._owes_farewell and ping != GOING_AWAY
                self._write(encode_pong(ping))

    def _request(self, request: ProxyRequest) -> None:
        now = self._loop.time()
        server, flags = self._server, request.flags
        entry = self._entries.get(request.request_id, now)
        if server.stopping and entry is None:
            self._not_served(request.request_id, entry, ShuttingDown("the shard stops", retry_safe=True))
            return
        if self._in_flight >= MOST_IN_FLIGHT:
            self._not_served(request.request_id, entry, Overloaded("too many in flight"))
            return
        if entry is None:
            entry = _Entry(request.agent_id, self._exchange(request))
            self._entries.put(request.request_id, entry, now)
        entry.is_final = bool(flags & FINAL)
        if entry.broken is not None:
            self._not_served(request.request_id, entry, entry.broken)
            return
        if entry.agent_id != request.agent_id:
            error = BadRequest("the request began with another agent", agent_id=request.agent_id)
            self._not_served(request.request_id, entry, error)
            return
        seconds = request.timeout_ms / 1000 if request.timeout_ms else server.pool.options.request_timeout
        event = _Event(request, entry, seconds)
        entry.begun += 1
        self._in_flight += 1
        self._submit(event, seconds)

    def _not_served(self, request_id: int, entry: _Entry | None, error: PoolError) -> None:
        """Fail an event that goes to no agent, in its turn, and with it what follows of its request."""
        frame = self._failure(request_id, error)
        if entry is None:
            self._write(frame)
            return
        if self._in_flight >= 2 * MOST_IN_FLIGHT:
            self.refuse("far too many events without an answer")
            return
        entry.broken = error
        entry.begun += 1
        self._in_flight += 1
        self._settle(request_id, entry, entry.begun - 1, frame)

    def _holder(self, agent_id: str, asked: frozenset[int] = _NO_SHARDS) -> int | None:
        pool = self._server.pool
        return self._server.relay.holder(agent_id, asked, is_here=agent_id in pool.agents or agent_id in pool.moving)

    def _exchange(self, request: ProxyRequest, asked: frozenset[int] = _NO_SHARDS) -> Exchange | RelayedExchange:
        """Where the request goes: to this shard's pool, unless the agent is known to be elsewhere only."""
        if not request.flags & RELAYED and not self._server.pool.serves(request.agent_id):
            shard = self._holder(request.agent_id, asked)
            if shard is not None:
                return self._server.relay.begin(shard, request.agent_id)
        return Exchange(request.agent_id)

    def _submit(self, event: _Event, seconds: float) -> None:
        request, entry = event.request, event.entry
        if entry.held is not None:
            entry.held.append(event)
            return
        final = bool(request.flags & FINAL)
        exchange = entry.exchange
        if isinstance(exchange, RelayedExchange):
            exchange.submit(request.event, partial(self._relayed, event), seconds, final=final)
            return
        call = self._server.pool.submit(exchange, request.event, partial(self._done, event), seconds, final=final)
        if not call.done:
            entry.calls.append(call)

    def _done(self, event: _Event, call: Call, outcome: Outcome) -> None:
        calls = event.entry.calls
        if calls and calls[0] is call:
            del calls[0]
        elif call in calls:
            calls.remove(call)
        if isinstance(outcome, PoolError):
            if not self._hand_on(event, call, outcome):
                self._fail(event, outcome)
            return
        connection = call.connection
        assert connection is not None
        self._answer(event, outcome, event.request.agent_id, connection.connection_id, self._server.shard)

    def _hand_on(self, event: _Event, call: Call, error: PoolError) -> bool:
        """Relay the first event of a request that nobody here can serve, or try it again; whether that was done."""
        request, entry = event.request, event.entry
        if event.index or entry.calls or call.connection is not None or error.code not in _ELSEWHERE:
            return False
        if request.flags & RELAYED or entry.cancelled:
            return False
        left = event.seconds_left
        shard = self._holder(request.agent_id)
        if left <= 0 or shard is None:
            return self._wait_for_news(event, error)
        entry.exchange = exchange = self._server.relay.begin(shard, request.agent_id)
        final = bool(request.flags & FINAL)
        exchange.submit(request.event, partial(self._relayed, event), left, final=final)
        return True

    def _relayed(self, event: _Event, result: Answer | PoolError) -> None:
        if not isinstance(result, PoolError):
            self._answer(event, result.response, result.agent_id, result.connection_id, result.shard, RELAYED)
            return
        # The other shard may not have heard of it either, or the agent has moved on.
        if result.code in _NOT_THERE and isinstance(event.entry.exchange, RelayedExchange):
            event.asked |= {event.entry.exchange.shard}
        if event.is_alone and self._wait_for_news(event, result):
            return
        self._fail(event, result, RELAYED)

    def _wait_for_news(self, event: _Event, error: PoolError) -> bool:
        """Look again in a moment where the agent is, if there is any sense in that after *error*; whether there is."""
        entry, now = event.entry, time.monotonic()
        if entry.cancelled or event.seconds_left <= 0:
            return False
        if isinstance(error, AgentMoving):
            event.moving_at = now
            if now - event.started > MOVING_LIMIT:
                return False
            if self._holder(entry.agent_id, event.asked) in event.asked:
                event.asked = _NO_SHARDS
        elif error.code != FailureCode.AGENT_NOT_FOUND:
            return False
        else:
            # Word of an agent that has just moved is on its way.
            moved_at = max(event.moving_at, self._server.pool.left_at(entry.agent_id) or 0.0)
            is_expected = now - moved_at < MOVED_WAIT
            following = self._holder(entry.agent_id, event.asked)
            if following is None or following in event.asked:
                event.asked = _NO_SHARDS
                if not is_expected and not self._server.relay.may_be_news(entry.agent_id, now - event.started):
                    return False
        entry.held = [event]
        self._loop.call_later(NEWS_PAUSE, self._try_again, entry)
        return True

    def _try_again(self, entry: _Entry) -> None:
        held, entry.held = entry.held, None
        if held:
            entry.exchange = self._exchange(held[0].request, held[0].asked)
            for event in held:
                self._submit(event, max(0.001, event.seconds_left))

    # Outcomes.

    def _answer(
        self, event: _Event, response: Decision, agent_id: str, connection_id: str, shard: int, flags: int = 0
    ) -> None:
        try:
            frame = encode_answer(
                event.request.request_id,
                response,
                agent_id=agent_id,
                connection_id=connection_id,
                shard=shard,
                duration_us=_microseconds_since(event.started),
                flags=flags,
            )
        except LocalProtocolError as error:
            self._fail(event, BadAnswer(f"the answer cannot be passed on: {error}", agent_id=agent_id), flags)
            return
        self._settle(event.request.request_id, event.entry, event.index, frame)

    def _fail(self, event: _Event, error: PoolError, flags: int = 0) -> None:
        if isinstance(error, AgentMoving) and not event.request.flags & RELAYED:
            error = AgentUnavailable("the agent has been on its way to another shard for too long")
        if event.is_alone and error.retry_safe:
            # No agent has seen anything of the request, so that it may begin anew, and somewhere else.
            event.entry.is_final = True
        request_id = event.request.request_id
        frame = self._failure(request_id, error, _microseconds_since(event.started), flags)
        self._settle(request_id, event.entry, event.index, frame)

    def _settle(self, request_id: int, entry: _Entry, index: int, frame: bytes) -> None:
        """Write the answer or failure of an event, after those of the events before it."""
        if index != entry.ended:
            if entry.early is None:
                entry.early = {}
            entry.early[index] = frame
            return
        self._write(frame)
        entry.ended += 1
        self._in_flight -= 1
        while entry.early and entry.ended in entry.early:
            self._write(entry.early.pop(entry.ended))
            entry.ended += 1
            self._in_flight -= 1
        if entry.is_final and entry.ended == entry.begun:
            self._entries.pop(request_id)
            if entry.broken is not None:
                self._finish(entry)

    def _finish(self, entry: _Entry) -> None:
        if isinstance(entry.exchange, RelayedExchange):
            entry.exchange.finish()
        else:
            self._server.pool.requests.finish(entry.exchange)

    def _give_up(self, entry: _Entry, reason: CancelReason) -> None:
        entry.cancelled = True
        held, entry.held = entry.held, None
        for event in held or ():
            self._fail(event, RequestCancelled(f"cancelled: {reason.name.lower()}", agent_id=entry.agent_id))
        if isinstance(entry.exchange, RelayedExchange):
            entry.exchange.cancel(reason)
            return
        for call in list(entry.calls):
            self._server.pool.requests.cancel(call, reason)
        self._server.pool.requests.finish(entry.exchange)

    # Writing.

    def _failure(self, request_id: int, error: PoolError, duration_us: int = 0, flags: int = 0) -> bytes:
        return encode_failure(
            request_id,
            error.code,
            str(error),
            shard=self._server.shard if error.shard is None else error.shard,
            duration_us=duration_us,
            flags=flags | (RETRY_SAFE if error.retry_safe else 0),
            policy=error.policy,
        )

    def _write(self, frame: bytes) -> None:
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(frame)

    def _flush(self) -> None:
        out, self._out = self._out, []
        if self._transport is not None and out:
            self._transport.write(b"".join(out))

    @property
    def is_busy(self) -> bool:
        """Whether a request of this proxy is not over, or one may be on its way."""
        return len(self._entries) > 0 or (self._owes_farewell and not self._server.stopping)

    def go_away(self) -> None:
        """Ask for no new requests; what comes until the proxy has heard of it is served."""
        if self._greeted and not self._closing:
            self._owes_farewell = True
            self._write(encode_going_away())

    def refuse(self, reason: str) -> None:
        """Say what is wrong and close the connection; what it sent behind that is not looked at."""
        if self._closing:
            return
        self._closing = True
        get_logger().warning("proxy connection closed", proxy=self.name, reason=printable(reason, 200))
        self._write(encode_refusal(reason))
        self._flush()
        if self._transport is not None:
            self._transport.close()
            # One that does not read would stay, with all that it waits for.
            self._loop.call_later(LINGER, self._transport.abort)

    def sweep(self, now: float) -> None:
        """Forget requests that were idle for too long."""
        for entry in self._entries.sweep(now):
            self._finish(entry)


def _microseconds_since(started: float) -> int:
    # uvloop's own clock has milliseconds.
    return int((time.monotonic() - started) * 1_000_000)
