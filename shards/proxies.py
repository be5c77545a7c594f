"""A proxy's connection: events come in, decisions go out, and many requests are in flight.

The protocol is ``dialout.proxy.wire``. Each event gets exactly one answer or failure, in the order of its request's
events. `shards.dispatch` chooses the shard that serves a request.
"""

import asyncio
from collections.abc import Callable
from typing import cast

from dialout import (
    CancelReason,
    Decision,
    FrameDecoder,
    FrameError,
    LocalProtocolError,
    RequestBodyChunk,
    RequestHeaders,
    ResponseBodyChunk,
    ResponseHeaders,
    WebSocketFrame,
    awake,
)
from dialout.proxy.errors import BadAnswer, BadRequest, FailureCode, Overloaded, PoolError, ShuttingDown
from dialout.proxy.wire import (
    FINAL,
    GOING_AWAY,
    PROXY_PROTOCOL,
    RETRY_SAFE,
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
from ipc.options import PoolOptions
from ipc.version import __version__
from shards.affinity import RecentTable
from shards.dispatch import Dispatch, Event, Request

MOST_IN_FLIGHT = 50_000
"""Events of one proxy connection without an answer. Further events fail as overloaded."""

MOST_REFUSED = 10_000
REFUSED_KEPT = 5.0
"""Seconds for which a refused first event is remembered. The proxy may have sent later events of the request before
it read the refusal. These must not begin a request."""

_NEVER_FIRST = frozenset({RequestBodyChunk, ResponseBodyChunk})
"""Events that cannot begin a request: the agent would see a body without its headers or without the earlier chunks."""

_BEHIND_HEADERS = frozenset({ResponseHeaders, WebSocketFrame})
"""Events that can begin a request only for an agent that takes no request headers."""

LINGER = 2.0
"""Seconds that a refused proxy has to read the reason."""


class ProxyConnection(asyncio.Protocol):
    """One proxy's connection to shard *shard*, which runs as process *epoch*.

    *on_made* and *on_lost* are called when the connection begins and ends.
    """

    def __init__(
        self,
        shard: int,
        epoch: str,
        options: PoolOptions,
        dispatch: Dispatch,
        on_made: "Callable[[ProxyConnection], None]",
        on_lost: "Callable[[ProxyConnection], None]",
    ) -> None:
        self.stopping = False
        """Whether new requests are refused."""
        self._shard, self._epoch, self._options = shard, epoch, options
        self._dispatch = dispatch
        self._on_made, self._on_lost = on_made, on_lost
        self._name = "a proxy"
        self._loop = asyncio.get_running_loop()
        self._clock = awake.clock()
        self._decoder = FrameDecoder()
        self._has_finished = False
        self._transport: asyncio.Transport | None = None
        self._greeted = False
        self._going_away = False
        # Whether the proxy has not acknowledged yet that it sends no new requests to a shard that is going away.
        self._owes_farewell = False
        self._out: list[bytes] = []
        self._closing = False
        self._in_flight = 0
        self._requests: RecentTable[int, Request] = RecentTable(options.most_affinities, options.affinity_idle)
        # Requests that did not begin: the type of their first event, and the error that it got.
        self._refused: RecentTable[int, tuple[int, PoolError]] = RecentTable(MOST_REFUSED, REFUSED_KEPT)

    @property
    def is_busy(self) -> bool:
        """Whether a request of this proxy is unfinished, or one may be on its way."""
        return len(self._requests) > 0 or (self._owes_farewell and not self.stopping)

    # The transport's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Register the connection."""
        # uvloop's transports are not asyncio's classes.
        self._transport = cast("asyncio.Transport", transport)
        self._on_made(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Cancel the requests of the proxy, since no reader is left for their answers."""
        self._transport = None
        self._on_lost(self)
        for request in self._requests.take_all():
            self._dispatch.give_up(request, CancelReason.CLIENT_DISCONNECT)

    def pause_writing(self) -> None:
        """Stop reading events from a proxy that does not read its answers."""
        if self._transport is not None and not self._closing:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Read events again."""
        if self._transport is not None and not self._closing:
            self._transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        """Serve the frames that are complete with *data*."""
        try:
            frames = self._decoder.feed(data)
        except FrameError as error:
            for frame_type, payload in error.frames:
                self._serve(frame_type, payload)
            self.refuse(str(error))
            return
        if frames:
            self._has_finished = True
            for frame_type, payload in frames:
                self._serve(frame_type, payload)

    def unfinished(self) -> tuple[int, bool]:
        """The bytes held of an unfinished frame, and whether the frame began after the last call."""
        begun, self._has_finished = self._has_finished, False
        return self._decoder.buffered, begun

    # Frames in.

    def _serve(self, frame_type: int, payload: bytes) -> None:
        if self._closing:
            return
        try:
            frame = decode_from_proxy(frame_type, payload)
        except ProxyWireError as error:
            if error.request_id is None or not self._greeted:
                self.refuse(str(error))
            else:
                request = self._requests.get(error.request_id, self._clock.time())
                self._not_served(error.request_id, request, frame_type, BadRequest(str(error)))
            return
        if type(frame) is ProxyRequest and self._greeted:
            self._serve_event(frame)
        else:
            self._serve_other(frame)

    def _serve_other(self, frame: object) -> None:
        match frame:
            case ProxyHello(protocol, client):
                if protocol != PROXY_PROTOCOL:
                    self.refuse(f"protocol {protocol} is not spoken here, {PROXY_PROTOCOL} is")
                    return
                self._greeted = True
                self._name = printable(client)
                self._write(encode_welcome(self._shard, self._epoch, __version__))
                if self._going_away:
                    self.go_away()
            case _ if not self._greeted:
                self.refuse("the first frame must be a hello")
            case ProxyCancel(request_id, _, reason):
                request = self._requests.get(request_id, self._clock.time())
                if request is not None:
                    self._close(request_id, request)
                    self._dispatch.give_up(request, reason)
            case ProxyFinish(request_id):
                request = self._requests.get(request_id, self._clock.time())
                if request is not None:
                    self._close(request_id, request)
                    self._dispatch.finish(request)
            case ProxyPing(ping):
                self._owes_farewell = self._owes_farewell and ping != GOING_AWAY
                self._write(encode_pong(ping))

    def _close(self, request_id: int, request: Request) -> None:
        """Take no more events of a request; its id is another one's when the last event has its outcome."""
        request.closed = request.is_final = True
        if request.ended == request.begun:
            self._requests.remove(request_id, request)

    def _serve_event(self, frame: ProxyRequest) -> None:
        now = self._loop.time() - self._clock.slept
        request_id = frame.request_id
        request = self._requests.get(request_id, now)
        error: PoolError | None = None
        if request is not None and request.closed:
            error = BadRequest("the request by this id was ended, and its events wait", agent_id=frame.agent_id)
        elif type(frame.event) is not RequestHeaders or self.stopping:
            error = None if request is not None else self._why_not_begun(frame, now)
        elif request is not None:
            # A second request with this id would share the first one's ids on the agent's connection.
            error = BadRequest("the request has begun: its headers come once", agent_id=frame.agent_id)
        if error is None and self._in_flight >= MOST_IN_FLIGHT:
            error = Overloaded("too many in flight")
        if error is not None:
            self._not_served(request_id, request, frame.event.frame_type, error)
            return
        if request is None:
            request = self._dispatch.begin(self, frame)
            dropped = self._requests.put(request_id, request, now)
            if dropped is not None:
                self._dispatch.finish(dropped)
        request.is_final = bool(frame.flags & FINAL)
        if request.broken is not None:
            self._not_served(request_id, request, frame.event.frame_type, request.broken)
            return
        if request.agent_id != frame.agent_id:
            error = BadRequest("the request began with another agent", agent_id=frame.agent_id)
            self._not_served(request_id, request, frame.event.frame_type, error)
            return
        seconds = frame.timeout_ms / 1000 if frame.timeout_ms else self._options.request_timeout
        event = Event(request, frame, seconds)
        request.begun += 1
        self._in_flight += 1
        self._dispatch.submit(event, seconds)

    def _why_not_begun(self, frame: ProxyRequest, now: float) -> PoolError | None:
        """The reason why no request may begin with this event; None if one may."""
        if self.stopping:
            return ShuttingDown("the shard stops", retry_safe=True)
        refused = self._refused.get(frame.request_id, now)
        # The same event again is another try. Any other event was sent before the proxy read the refusal.
        if refused is not None and refused[0] != frame.event.frame_type:
            return refused[1]
        kind = type(frame.event)
        if kind in _NEVER_FIRST or (kind in _BEHIND_HEADERS and self._dispatch.expects_headers(frame.agent_id, kind)):
            idle = f"{self._options.affinity_idle:g} s"
            return BadRequest(
                f"no such request, and {kind.__name__} begins none; it has ended, or was idle for more than {idle}",
                agent_id=frame.agent_id,
            )
        return None

    def _not_served(self, request_id: int, request: Request | None, frame_type: int, error: PoolError) -> None:
        """Fail an event that goes to no agent, in its turn. Later events of its request fail, too."""
        frame = self._failure(request_id, error)
        if request is None:
            if self._refused.get(request_id, self._clock.time()) is None:
                self._refused.put(request_id, (frame_type, error), self._clock.time())
            self._write(frame)
            return
        if self._in_flight >= 2 * MOST_IN_FLIGHT:
            self.refuse("far too many events without an answer")
            return
        request.broken = error
        request.begun += 1
        self._in_flight += 1
        self._settle(request_id, request, request.begun - 1, frame)

    # Outcomes.

    def answer(
        self, event: Event, response: Decision, agent_id: str, connection_id: str, shard: int, flags: int = 0
    ) -> None:
        """Write an agent's answer to *event*."""
        request_id = event.frame.request_id
        try:
            frame = encode_answer(
                request_id,
                response,
                agent_id=agent_id,
                connection_id=connection_id,
                shard=shard,
                duration_us=int(event.seconds_gone * 1_000_000),
                flags=flags,
            )
        except LocalProtocolError as error:
            self.fail(event, BadAnswer(f"the answer cannot be passed on: {error}", agent_id=agent_id), flags)
            return
        self._settle(request_id, event.request, event.index, frame)

    def fail(self, event: Event, error: PoolError, flags: int = 0) -> None:
        """Write the failure of *event*."""
        request, frame = event.request, event.frame
        if request.begun == 1 and error.retry_safe:
            # No agent has seen any event of the request, so that it may begin anew, also at another shard.
            request.is_final = True
            if not frame.flags & FINAL and error.code is not FailureCode.CANNOT_RECEIVE:
                self._refused.put(frame.request_id, (frame.event.frame_type, error), self._clock.time())
        written = self._failure(frame.request_id, error, int(event.seconds_gone * 1_000_000), flags)
        self._settle(frame.request_id, request, event.index, written)

    def _settle(self, request_id: int, request: Request, index: int, frame: bytes) -> None:
        """Write the answer or failure of an event, after those of the events before it."""
        if index != request.ended:
            if request.early is None:
                request.early = {}
            request.early[index] = frame
            return
        self._write(frame)
        request.ended += 1
        self._in_flight -= 1
        while request.early and request.ended in request.early:
            self._write(request.early.pop(request.ended))
            request.ended += 1
            self._in_flight -= 1
        if request.is_final and request.ended == request.begun:
            self._requests.remove(request_id, request)
            if request.broken is not None:
                self._dispatch.finish(request)

    # Frames out.

    def go_away(self) -> None:
        """Ask the proxy for no new requests. Requests that it sends before it reads this are served."""
        self._going_away = True
        if self._greeted and not self._closing:
            self._owes_farewell = True
            self._write(encode_going_away())

    def refuse(self, reason: str) -> None:
        """Write the reason and close the connection. Later input is ignored."""
        if self._closing:
            return
        self._closing = True
        get_logger().warning("proxy connection closed", proxy=self._name, reason=printable(reason, 200))
        self._write(encode_refusal(reason))
        self._flush()
        if self._transport is not None:
            self._transport.close()
            # A proxy that does not read would keep the connection open, with all its buffers.
            self._loop.call_later(LINGER, self._transport.abort)

    def sweep(self, now: float) -> None:
        """Forget requests that were idle for too long."""
        for request in self._requests.sweep(now):
            self._dispatch.finish(request)
        self._refused.sweep(now)

    def _failure(self, request_id: int, error: PoolError, duration_us: int = 0, flags: int = 0) -> bytes:
        return encode_failure(
            request_id,
            error.code,
            str(error),
            shard=self._shard if error.shard is None else error.shard,
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
