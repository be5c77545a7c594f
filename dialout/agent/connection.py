"""One registered connection to a proxy, on any asyncio loop.

It is an asyncio protocol and not a pair of streams, because this is the agent's hot path. One read brings many frames,
plain hooks answer at once, and all answers of one turn of the loop leave in one write. There is no task for reading or
writing.

It is a ``BufferedProtocol`` because of small reads. For other protocols asyncio allocates 256 KiB for each read and
shrinks them to the received size. With one request in flight that took up to half of the agent's CPU.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, Final, cast

from dialout.agent.address import keep_alive
from dialout.agent.agent import Agent
from dialout.agent.draining import all_read, until_idle
from dialout.agent.errors import NotConnected, ProxyHungUp, UnreadableAnswer, registration_error
from dialout.agent.lifecycle import Ending, Kind
from dialout.agent.liveness import Liveness, Look
from dialout.agent.reporting import INTERVAL
from dialout.agent.serving import Serving
from dialout.answers import RegistrationResponse, parse_registration_response
from dialout.awake import Timer, clock
from dialout.codec import codec_for
from dialout.decisions import Block, Decision
from dialout.dialects import Dialect
from dialout.errors import FrameError, LocalProtocolError, RemoteProtocolError
from dialout.frames import FrameDecoder
from dialout.registration import RegistrationRequest

__all__ = ["ProxyConnection"]

_log = logging.getLogger("dialout.agent")

_WRITE_BUFFER: Final = 256 * 1024
"""Bytes of unsent output above which the connection is not read any more. A proxy that does not take answers gets no
further requests served."""

_READ_SIZE: Final = 64 * 1024
"""Bytes of one read, and of the read buffer that each connection keeps."""

_GRACE: Final = 5.0
"""Seconds for requests in flight on a connection that is given up for its errors."""

_LAST_WRITE: Final = 0.5
"""Minimum time for the last answers to leave, in seconds."""


class ProxyConnection(asyncio.BufferedProtocol):
    """A connection to a proxy. ``connect_to_proxy`` makes one and returns it registered.

    ``response`` is the proxy's answer. Nothing after it is read until ``serve`` begins. ``ping_interval`` and
    ``ping_timeout`` are seconds, see ``Liveness``. An interval of 0 sends no pings.
    """

    def __init__(
        self,
        request: RegistrationRequest,
        dialect: Dialect,
        *,
        ping_interval: float = 15.0,
        ping_timeout: float = 15.0,
        on_dialled: Callable[[], None] | None = None,
    ) -> None:
        self.dialect = dialect
        self.agent_id = request.agent_id
        self.registered: asyncio.Future[RegistrationResponse] = asyncio.get_running_loop().create_future()
        self._registration = request.encode(dialect)
        self._codec = codec_for(dialect)
        self._ping_interval = ping_interval
        self._ping_timeout = ping_timeout
        self._on_dialled = on_dialled
        self._loop = asyncio.get_running_loop()
        self._decoder = FrameDecoder()
        self._view = memoryview(bytearray(_READ_SIZE))
        self._transport: asyncio.Transport | None = None
        self._early: list[tuple[int, bytes]] = []
        self._broken: FrameError | None = None
        self._serving: Serving | None = None
        self._out: list[bytes] = []
        self._flush_due = False
        self._begun = False
        self._taking = False
        # Reasons not to read: the proxy does not take answers, too many events wait, or the connection is about to
        # close.
        self._full = False
        self._held = False
        self._giving_up: asyncio.Task[bool] | None = None
        self._heard = False
        self._liveness: Liveness | None = None
        self._pings = 0
        self._timers: dict[str, asyncio.TimerHandle | Timer] = {}
        self._clock = clock()
        self._made_at = self._loop.time()
        self._registered_at = 0.0
        # The end of the stream has been written. Input is not served any more.
        self._ended = False
        self._closed: asyncio.Future[None] = self._loop.create_future()
        self._kind = Kind.LOST
        self._why = ""

    # --- public interface ---

    @property
    def response(self) -> RegistrationResponse:
        """The proxy's answer to the registration."""
        return self.registered.result()

    @property
    def connection_id(self) -> str:
        """The proxy's name for this connection, or the agent's id if it gave no name. Escape it for a log."""
        return self.response.assigned_id or self.agent_id

    @property
    def in_flight(self) -> int:
        """Requests that a coroutine works on, or that wait for one."""
        return 0 if self._serving is None else self._serving.in_flight

    @property
    def is_closed(self) -> bool:
        """Whether the connection is over."""
        return self._closed.done()

    async def serve(self, agent: Agent) -> Ending:
        """Serve events with the hooks of ``agent`` until the connection ends; returns how it ended.

        The configuration that came with the registration is applied first. A cancelled ``serve`` closes the connection.
        Raises LocalProtocolError for an agent without any hook, and for a failure answer that the dialect cannot carry.
        """
        if self._serving is not None:
            raise LocalProtocolError("this connection is being served already")
        try:
            self._serving = Serving(
                agent,
                self._codec,
                self.agent_id,
                self.connection_id,
                send=self._send,
                hold=self._hold,
                give_up=self._give_up,
                since=self._made_at,
            )
            await self._configure(self._serving)
            if not self.is_closed and not self._begun:
                self._begin(self._serving)
            await self.wait_closed()
        finally:
            self.close()
            if self._serving is not None:
                self._serving.close()
        return Ending(
            kind=self._kind,
            reason=self._why or "closed by the proxy",
            lasted=self._loop.time() - self._registered_at,
            served=self._serving.served,
        )

    async def _configure(self, serving: Serving) -> None:
        """Apply the configuration that came with the registration, and tell the proxy if the agent refuses it."""
        outcome = serving.configure(self.response.config)
        if not isinstance(outcome, Decision):
            applying = asyncio.ensure_future(outcome)
            both: set[asyncio.Future[Any]] = {applying, self._closed}
            try:
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
                if not applying.done():
                    return
                outcome = applying.result()
            finally:
                applying.cancel()
        if isinstance(outcome.verdict, Block):
            serving.reporter.say_refusal(outcome.verdict.body or "refused")

    async def drain(self, timeout: float) -> bool:  # noqa: ASYNC109 - at its end requests are failed, not cancelled
        """Finish all requests in flight, then close; returns whether all were finished within ``timeout`` seconds.

        A ping tells the proxy to send no new requests. Its pong comes after all events that the proxy had sent before.
        A proxy that understands the ping loses no request. Events that come meanwhile are served, too, because other
        proxies go on until the end. Requests that are not finished in time get the agent's failure answer.
        """
        finished, end = True, self._loop.time() + timeout
        serving = self._serving
        if serving is not None and not self.is_closed:
            serving.reporter.say_draining(timeout)
            if not self._begun:
                # The agent is being configured. The proxy's frames until it hears of the drain have to be read.
                serving.serve_nothing()
                self._begin(serving)
            if self._giving_up is None:
                # In the same form as the other pings, and after all of them.
                self._pings += 1
                await all_read(serving, self._codec, self._send, self._pings, self._closed, timeout)
            finished = await until_idle(serving, self._closed, end - self._loop.time())
            if not finished:
                serving.fail_all()
        self._end()
        await self._until_closed(end)
        return finished

    async def _until_closed(self, end: float) -> None:
        """Wait until the proxy has taken the last answers and closed; abort shortly after ``end``."""
        # The output may need some time. A proxy that does not read would block this for ever.
        while self._transport is not None and self._transport.get_write_buffer_size():
            left = max(end - self._loop.time(), _LAST_WRITE)
            await asyncio.wait({self._closed}, timeout=min(left, _LAST_WRITE))
            if left <= _LAST_WRITE:
                self.abort("the proxy does not read")
        await asyncio.wait({self._closed}, timeout=_LAST_WRITE)
        self.abort("closed by the agent")
        await self.wait_closed()

    async def wait_closed(self) -> None:
        """Wait until the connection is over."""
        await asyncio.shield(self._closed)

    def close(self, why: str = "closed by the agent") -> None:
        """Close the connection after the pending output. A second call does nothing."""
        if self._transport is not None and not self._transport.is_closing():
            self._why = self._why or why
            self._full = False
            self._flush()
            self._transport.close()

    def _end(self) -> None:
        """Write the end of the stream after the pending output, and close once the proxy has closed, too.

        A close with unread input would reset the connection, and the last answers could be lost (tcp(7)).
        """
        transport = self._transport
        if transport is None or transport.is_closing() or self._ended:
            return
        self._why = self._why or "closed by the agent"
        self._full = False
        self._flush()
        self._ended = True
        try:
            transport.write_eof()
        except OSError:
            self.close()
        else:
            transport.resume_reading()

    def abort(self, why: str) -> None:
        """Close the connection at once, without the pending output."""
        self._why = self._why or why
        if self._transport is not None:
            self._transport.abort()

    # --- callbacks of the loop ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the registration."""
        # uvloop's transports have the same methods without being subclasses.
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=_WRITE_BUFFER)
        keep_alive(transport.get_extra_info("socket"))
        if self._on_dialled is not None:
            self._on_dialled()
        self._transport.write(self._registration)
        self._registration = b""  # It holds the token.

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's signature
        """The buffer for the next read."""
        return self._view

    def buffer_updated(self, nbytes: int) -> None:
        """Serve the bytes of a read."""
        self.data_received(bytes(self._view[:nbytes]))

    def data_received(self, data: bytes) -> None:
        """Serve every frame of a read."""
        if self._ended:
            return
        self._heard = True
        frames: Sequence[tuple[int, bytes]]
        try:
            frames = self._decoder.feed(data)
        except FrameError as error:
            frames, self._broken = error.frames, error
        serving = self._serving
        if serving is None or not self._begun:
            self._take_early(frames)
            return
        self._taking = True
        for frame_type, payload in frames:
            serving.take(frame_type, payload)
        self._taking = False
        if self._out:
            self._flush()
        if self._broken is not None:
            self._out_of_step(self._broken)

    def eof_received(self) -> None:
        """Close the connection: a proxy that ends its stream has no more requests."""
        try:
            self._decoder.feed_eof()
        except FrameError as error:
            self._why = self._why or f"broken off: {error}"

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop serving at once."""
        self._transport = None
        if isinstance(exc, OSError) and not isinstance(exc, BrokenPipeError):
            # A broken pipe means that a write found the connection closed before a read did.
            self._why = self._why or exc.strerror or ""
        for timer in self._timers.values():
            timer.cancel()
        self._out.clear()
        if not self.registered.done():
            how = f": {self._why}" if self._why else ""
            self._not_registered(ProxyHungUp(f"the proxy closed the connection without an answer{how}"))
        if self._serving is not None:
            self._serving.close()
        if not self._closed.done():
            self._closed.set_result(None)

    def pause_writing(self) -> None:
        """Stop reading, because the proxy does not read."""
        self._full = True
        self._set_reading()

    def resume_writing(self) -> None:
        """Write the pending output, and read again."""
        self._full = False
        self._flush()
        self._set_reading()

    # --- registering ---

    def _take_early(self, frames: Sequence[tuple[int, bytes]]) -> None:
        """Take the answer to the registration, and keep the frames that follow it."""
        self._early.extend(frames)
        if self.registered.done():
            return
        if self._early:
            self._answered(*self._early.pop(0))
        elif self._broken is not None:
            self._not_registered(UnreadableAnswer(f"the proxy's answer is no frame: {self._broken}"))
            self.abort("no answer")

    def _answered(self, frame_type: int, payload: bytes) -> None:
        try:
            response = parse_registration_response(frame_type, payload)
        except RemoteProtocolError as error:
            self._not_registered(UnreadableAnswer(str(error)))
            self.abort("no answer")
            return
        if not response.accepted:
            self._not_registered(registration_error(response))
            self.abort("refused")
            return
        self._registered_at = self._loop.time()
        self.registered.set_result(response)
        # Further frames stay in the kernel's buffer until ``serve`` begins.
        self._set_reading()

    def _not_registered(self, error: NotConnected) -> None:
        self.registered.set_exception(error)
        self.registered.exception()  # Marked as retrieved, even if no task waits for it.

    # --- serving ---

    def _begin(self, serving: Serving) -> None:
        """Serve the frames that came early, and begin to read."""
        early, self._early = self._early, []
        self._begun = True
        for frame_type, payload in early:
            serving.take(frame_type, payload)
        if self._broken is not None:
            self._out_of_step(self._broken)
            return
        self._set_reading()
        if self._ping_interval > 0:
            self._liveness = Liveness(self._clock.time(), self._ping_interval, self._ping_timeout)
            self._look()
        if serving.reporter.reports_unasked:
            self._report()

    def _out_of_step(self, error: FrameError) -> None:
        self._why = self._why or f"garbage from the proxy: {error}"
        self.close()

    def _hold(self, on: bool) -> None:
        self._held = on
        self._set_reading()

    def _set_reading(self) -> None:
        transport = self._transport
        if transport is None or transport.is_closing() or self._ended:
            return
        not_yet = self.registered.done() and not self._begun
        if not_yet or self._full or self._held or self._giving_up is not None:
            transport.pause_reading()
        else:
            transport.resume_reading()

    def _give_up(self) -> None:
        self._kind, self._why = Kind.ERRORS, "too many errors in a row"
        self._giving_up = self._loop.create_task(self.drain(_GRACE))
        self._set_reading()

    # --- time ---

    def _look(self) -> None:
        serving, liveness = self._serving, self._liveness
        if serving is None or liveness is None or self._transport is None:
            return
        if serving.ponged:
            liveness.ponged()
        now = self._clock.time()
        # Silence does not count while this side does not read.
        look = liveness.look(now, heard=self._heard or self._held or self._full)
        self._heard = False
        if look is Look.DEAD:
            self.abort(f"no answer to a ping within {self._ping_timeout:g} s")
            return
        if look is Look.PING:
            self._pings += 1
            self._send(self._codec.encode_ping(sequence=self._pings, timestamp_ms=int(now * 1000)))
        self._timers["look"] = self._clock.call_later(max(0.0, liveness.next_look - now), self._look)

    def _report(self) -> None:
        if self._serving is not None and self._transport is not None:
            self._serving.reporter.report()
            self._timers["report"] = self._loop.call_later(INTERVAL, self._report)

    # --- writing ---

    def _send(self, frame: bytes) -> None:
        self._out.append(frame)
        if not (self._taking or self._flush_due or self._full):
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        transport = self._transport
        if self._full or self._ended or not self._out or transport is None or transport.is_closing():
            return
        out, self._out = self._out, []
        transport.write(b"".join(out) if len(out) > 1 else out[0])
