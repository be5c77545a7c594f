"""One connection of a ``PoolClient`` to one shard, with many requests in flight.

It is an ``asyncio.Protocol`` for any loop. Requests have neither a task nor a timer of their own. Frames of one loop
turn are sent in one write. All deadlines are checked together, every ``_SWEEP`` seconds. The shard keeps the deadlines
exactly; this side only guards against a shard that has stopped.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, cast

from dialout.awake import clock
from dialout.errors import FrameError
from dialout.events import CancelReason
from dialout.frames import FrameDecoder
from dialout.proxy.errors import (
    BadAnswer,
    ConnectionLost,
    FailureCode,
    Overloaded,
    PoolError,
    RequestCancelled,
    RequestTimeout,
    pool_error,
)
from dialout.proxy.pool_response import Response
from dialout.proxy.wire import (
    GOING_AWAY,
    MAX_ANSWER_LENGTH,
    PROXY_PROTOCOL,
    RETRY_SAFE,
    Answer,
    Failure,
    ProxyWireError,
    Welcome,
    decode_from_shard,
    encode_cancel,
    encode_finish,
    encode_hello,
    encode_ping,
)

__all__ = ["ShardChannel"]

_SWEEP: Final = 0.1
_MARGIN: Final = 0.25
"""Seconds after a deadline in which the shard may still report the timeout itself."""

_TRANSPORT_BUFFER: Final = 256 * 1024
"""Bytes that the transport may hold. Frames that wait beyond them are certainly not written and can be retried."""


class _Waiter:
    """One unanswered event. ``next`` is the next event of the same request."""

    __slots__ = ("agent_id", "deadline", "future", "next", "number")

    def __init__(self, future: "asyncio.Future[Response]", agent_id: str, deadline: float, number: int) -> None:
        self.future = future
        self.agent_id = agent_id
        self.deadline = deadline
        # The position of its frame among all queued frames. Compared with ``_flushed`` it tells whether it was written.
        self.number = number
        self.next: _Waiter | None = None


class ShardChannel(asyncio.Protocol):
    """A connection to shard number ``shard``. ``on_close`` is called once, after it was lost.

    ``on_leave`` is called when the shard wants no new requests. Requests that have begun may continue.

    ``max_buffered`` limits the bytes that wait to be written. ``in_flight`` counts unanswered events. ``late_answers``
    counts answers to events that were given up. ``doubtful`` is true after the shard let a deadline pass or failed an
    event with ``shutting_down``. The next bytes from the shard reset it.
    """

    def __init__(
        self,
        shard: int,
        loop: asyncio.AbstractEventLoop,
        *,
        client: str,
        version: str,
        max_buffered: int,
        on_close: "Callable[[ShardChannel], None]",
        on_leave: "Callable[[ShardChannel], None]",
    ) -> None:
        self.shard = shard
        self.epoch = ""
        self.in_flight = 0
        self.late_answers = 0
        self.doubtful = False
        self.welcomed: asyncio.Future[None] = loop.create_future()
        self.closed = asyncio.Event()
        self._loop = loop
        self._clock = clock()
        self._hello = encode_hello(client, version)
        self._max_buffered = max_buffered
        self._on_close, self._on_leave = on_close, on_leave
        self._decoder = FrameDecoder(MAX_ANSWER_LENGTH)
        self._transport: asyncio.Transport | None = None
        self._waiters: dict[int, _Waiter] = {}
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._queued = 0
        self._flushed = 0
        self._flush_due = False
        self._room: asyncio.Future[None] | None = None
        self._paused = False
        self._sweeper: asyncio.TimerHandle | None = None
        self._why = ""
        self._error: type[PoolError] = ConnectionLost

    @property
    def is_lost(self) -> bool:
        """Whether there is no connection, either not yet or no longer."""
        return self._transport is None

    # --- requests ---

    def send(self, request_id: int, agent_id: str, frame: bytes, deadline: float) -> "asyncio.Future[Response]":
        """Queue the frame of an event. Returns a future for the answer, or for a PoolError.

        Raises Overloaded above ``max_buffered`` (one frame is always accepted). Raises ConnectionLost, or the error
        given to ``close``, after the connection was lost. To give up a future early, ``cancel`` the request.
        """
        transport = self._transport
        if transport is None:
            raise self._lost(agent_id, retry_safe=True)
        waiting = self._out_bytes
        if self._paused:
            waiting += transport.get_write_buffer_size()
        if waiting and waiting + len(frame) > self._max_buffered:
            message = f"{waiting} bytes wait to be written to shard {self.shard} already"
            raise Overloaded(message, agent_id=agent_id, retry_safe=True, shard=self.shard)
        future: asyncio.Future[Response] = self._loop.create_future()
        waiter = _Waiter(future, agent_id, deadline, self._queued)
        earlier = self._waiters.get(request_id)
        if earlier is None:
            self._waiters[request_id] = waiter
        else:
            while earlier.next is not None:
                earlier = earlier.next
            earlier.next = waiter
        self.in_flight += 1
        self._queue(frame)
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(_SWEEP, self._sweep)
        return future

    def cancel(self, request_id: int, agent_id: str, reason: CancelReason) -> bool:
        """Give up all unanswered events of a request. Returns False if there are none.

        Their futures fail with RequestCancelled. Late answers are dropped, so the request id must not be used again.
        """
        if not self._give_up(request_id, None):
            return False
        self._queue(encode_cancel(request_id, agent_id, reason))
        return True

    def finish(self, request_id: int, agent_id: str) -> None:
        """Tell the shard that no further event of a request follows."""
        if self._transport is not None:
            self._queue(encode_finish(request_id, agent_id))

    async def room(self) -> None:
        """Wait while the shard does not read. Returns at once when the connection is lost."""
        while self._paused and self._transport is not None:
            if self._room is None:
                self._room = self._loop.create_future()
            await asyncio.shield(self._room)

    def close(self, why: str, error: type[PoolError] = ConnectionLost) -> None:
        """Close the connection. All events in flight fail with this error."""
        self._why, self._error = self._why or why, error
        if self._transport is not None:
            self._transport.abort()

    # --- callbacks of the loop ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the hello. Requests must wait for the welcome."""
        # uvloop's transports have the same methods but are not subclasses.
        transport = cast("asyncio.Transport", transport)
        transport.set_write_buffer_limits(high=_TRANSPORT_BUFFER)
        self._transport = transport
        transport.write(self._hello)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail all events in flight at once."""
        self._transport = None
        if self._sweeper is not None:
            self._sweeper.cancel()
        if exc is not None and not self._why:
            self._why = exc.strerror or "" if isinstance(exc, OSError) else str(exc)
        if not self.welcomed.done():
            self.welcomed.set_exception(self._lost(None, retry_safe=True))
            self.welcomed.exception()  # Marks it as retrieved, since there may be no task that awaits it.
        waiters, self._waiters = self._waiters, {}
        self._out.clear()
        self.in_flight = 0
        for first in waiters.values():
            waiter: _Waiter | None = first
            while waiter is not None:
                _fail(waiter, self._lost(waiter.agent_id, retry_safe=waiter.number >= self._flushed))
                waiter = waiter.next
        self._make_room()
        self.closed.set()
        self._on_close(self)

    def pause_writing(self) -> None:
        """Hold frames in this object from now on."""
        self._paused = True

    def resume_writing(self) -> None:
        """Write the held frames."""
        self._paused = False
        self._flush()
        if not self._paused:
            self._make_room()

    def data_received(self, data: bytes) -> None:
        """Give each answer in this read to the future of its event."""
        try:
            frames = self._decoder.feed(data)
        except FrameError as error:
            self._handle(error.frames)
            self.close(f"its stream is out of step: {error}")
        else:
            self._handle(frames)

    def _handle(self, frames: Sequence[tuple[int, bytes]]) -> None:
        self.doubtful = False
        for frame_type, payload in frames:
            try:
                got = decode_from_shard(frame_type, payload)
            except ProxyWireError as error:
                self._unreadable(error)
                continue
            if type(got) is Answer:
                self._answered(got)
            elif type(got) is Failure:
                self._failed(got)
            elif type(got) is Welcome:
                self._welcome(got)

    # --- answers ---

    def _take(self, request_id: int) -> _Waiter | None:
        """Remove and return the event that an answer for this request belongs to: the oldest unanswered one."""
        waiter = self._waiters.get(request_id)
        if waiter is None:
            self.late_answers += 1
            return None
        if waiter.next is None:
            del self._waiters[request_id]
        else:
            self._waiters[request_id] = waiter.next
        self.in_flight -= 1
        return waiter

    def _answered(self, answer: Answer) -> None:
        waiter = self._take(answer.request_id)
        if waiter is not None and not waiter.future.done():
            waiter.future.set_result(Response.of(answer))

    def _failed(self, failure: Failure) -> None:
        if failure.error_code == FailureCode.SHUTTING_DOWN:
            self.doubtful = True
        waiter = self._take(failure.request_id)
        if waiter is not None:
            error = pool_error(
                failure.error_code,
                failure.error or failure.error_code,
                agent_id=waiter.agent_id,
                retry_safe=bool(failure.flags & RETRY_SAFE),
                shard=self.shard if failure.shard is None else failure.shard,
                policy=failure.policy,
            )
            _fail(waiter, error)

    def _unreadable(self, error: ProxyWireError) -> None:
        if error.request_id is None:
            self.close(str(error))
            return
        waiter = self._take(error.request_id)
        if waiter is not None:
            _fail(waiter, BadAnswer(str(error), agent_id=waiter.agent_id, shard=self.shard))

    def _welcome(self, welcome: Welcome) -> None:
        if welcome.error or welcome.protocol != PROXY_PROTOCOL:
            self.close(welcome.error or f"it speaks version {welcome.protocol} of the protocol, not {PROXY_PROTOCOL}")
        elif welcome.going_away:
            self._on_leave(self)
            # This ping stands behind all requests of this channel. The shard closes when they are answered.
            self._queue(encode_ping(GOING_AWAY))
        elif not self.welcomed.done():
            self.epoch = welcome.epoch
            self.welcomed.set_result(None)

    # --- time ---

    def _sweep(self) -> None:
        """Give up events that are past both their deadline and the shard's margin."""
        self._sweeper = None
        limit = self._clock.time() - _MARGIN
        late = []
        for request_id, first in self._waiters.items():
            waiter: _Waiter | None = first
            while waiter is not None and waiter.deadline > limit:
                waiter = waiter.next
            if waiter is not None:
                late.append((request_id, waiter))
        for request_id, waiter in late:
            self._give_up(request_id, waiter)
            self._queue(encode_cancel(request_id, waiter.agent_id, CancelReason.TIMEOUT))
        if late:
            self.doubtful = True
            self._queue(encode_ping(b"{}"))
        if self._waiters:
            self._sweeper = self._loop.call_later(_SWEEP, self._sweep)

    def _give_up(self, request_id: int, late: _Waiter | None) -> bool:
        """Fail all events of a request, ``late`` with RequestTimeout. Returns False if there are none."""
        waiter = self._waiters.pop(request_id, None)
        if waiter is None:
            return False
        while waiter is not None:
            self.in_flight -= 1
            if waiter is late:
                error: PoolError = RequestTimeout(
                    f"no answer in time, and no word from shard {self.shard}",
                    agent_id=waiter.agent_id,
                    retry_safe=waiter.number >= self._flushed,
                    shard=self.shard,
                )
            else:
                message = "another event of this request was given up"
                error = RequestCancelled(message, agent_id=waiter.agent_id, shard=self.shard)
            _fail(waiter, error)
            waiter = waiter.next
        return True

    # --- writing ---

    def _queue(self, frame: bytes) -> None:
        self._out.append(frame)
        self._out_bytes += len(frame)
        self._queued += 1
        if not self._flush_due and not self._paused:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        transport = self._transport
        if self._paused or transport is None or not self._out or transport.is_closing():
            return
        out, self._out, self._out_bytes = self._out, [], 0
        self._flushed = self._queued
        transport.write(b"".join(out) if len(out) > 1 else out[0])

    def _make_room(self) -> None:
        if self._room is not None:
            self._room.set_result(None)
            self._room = None

    def _lost(self, agent_id: str | None, *, retry_safe: bool) -> PoolError:
        message = f"the connection to shard {self.shard} was lost" + (f": {self._why}" if self._why else "")
        return self._error(message, agent_id=agent_id, retry_safe=retry_safe, shard=self.shard)


def _fail(waiter: _Waiter, error: PoolError) -> None:
    if not waiter.future.done():
        waiter.future.set_exception(error)
