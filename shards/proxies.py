"""The socket on which proxies ask: events come in, decisions go out, many requests in flight on one connection.

The protocol is ``dialout.proxy_wire``; each event gets exactly one answer or failure, in the order of its request's
events. An event for an agent that has no usable connection here goes to a shard that has one (`shards.relay`), once.
"""

import asyncio
import os
import socket
import time
from functools import partial
from typing import cast

from dialout import CancelReason, FrameDecoder, FrameError, LocalProtocolError
from dialout.pool_errors import BadRequest, FailureCode, PoolError, ShuttingDown
from dialout.proxy_wire import (
    FINAL,
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
    encode_pong,
    encode_refusal,
    encode_welcome,
)
from ipc.logs import get_logger, printable
from ipc.rundir import RuntimeDir
from ipc.version import __version__
from shards.affinity import RecentTable
from shards.calls import Call, Exchange, Outcome
from shards.pool import AgentPool
from shards.relay import Relay, RelayedExchange

SWEEP_SECONDS = 5.0

NEWS_PAUSE = 0.02
"""Seconds after which a request for an unknown agent is tried again: an agent that has just been accepted by another
shard may be asked for before the word of it is here."""

MOST_IN_FLIGHT = 50_000
"""Events of one proxy connection without an answer; beyond it they fail as overloaded."""

_ELSEWHERE = frozenset(
    {
        FailureCode.AGENT_NOT_FOUND,
        FailureCode.AGENT_UNAVAILABLE,
        FailureCode.OVERLOADED,
        FailureCode.FLOW_CONTROL_PAUSED,
    }
)
"""Failures of a first event that another shard's connections may not have."""


class _Entry:
    """One request of a proxy: the exchange that serves it, here or elsewhere, and what is in flight of it.

    *waiting* counts its events without an answer, *calls* are those of them that are in this shard's pool. After the
    answer to a final event the entry goes.
    """

    __slots__ = ("agent_id", "calls", "exchange", "is_final", "waiting")

    def __init__(self, agent_id: str, exchange: Exchange | RelayedExchange) -> None:
        self.agent_id = agent_id
        self.exchange = exchange
        self.calls: list[Call] = []
        self.waiting = 0
        self.is_final = False


class ProxyConnection(asyncio.Protocol):
    """One proxy's connection."""

    def __init__(self, server: "ProxyServer") -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._decoder = FrameDecoder()
        self._transport: asyncio.Transport | None = None
        self._greeted = False
        self._out: list[bytes] = []
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
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Go on."""
        if self._transport is not None:
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
        try:
            frame = decode_from_proxy(frame_type, payload)
        except ProxyWireError as error:
            if error.request_id is None:
                self.refuse(str(error))
            else:
                self._fail(error.request_id, BadRequest(str(error)), None)
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
                self._write(encode_pong(ping))

    def _request(self, request: ProxyRequest) -> None:
        now = self._loop.time()
        if self._server.stopping:
            self._fail(request.request_id, ShuttingDown("the shard stops", retry_safe=True), None)
            return
        if self._in_flight >= MOST_IN_FLIGHT:
            code = FailureCode.OVERLOADED
            self._write(encode_failure(request.request_id, code, "too many in flight", shard=self._server.shard))
            return
        entry = self._entries.get(request.request_id, now)
        if entry is None:
            entry = _Entry(request.agent_id, self._exchange(request))
            self._entries.put(request.request_id, entry, now)
        elif entry.agent_id != request.agent_id:
            error = BadRequest("the request began with another agent", agent_id=request.agent_id)
            self._fail(request.request_id, error, None)
            return
        self._in_flight += 1
        entry.waiting += 1
        entry.is_final = bool(request.flags & FINAL)
        seconds = request.timeout_ms / 1000 if request.timeout_ms else self._server.pool.options.request_timeout
        self._submit(request, entry, time.monotonic(), seconds)

    def _exchange(self, request: ProxyRequest) -> Exchange | RelayedExchange:
        """Where the request goes: to this shard's pool, unless the agent is known to be elsewhere only."""
        if request.agent_id not in self._server.pool.agents and not request.flags & RELAYED:
            shard = self._server.relay.holder(request.agent_id)
            if shard is not None:
                return self._server.relay.begin(shard, request.agent_id)
        return Exchange(request.agent_id)

    def _submit(self, request: ProxyRequest, entry: _Entry, started: float, seconds: float) -> None:
        final = bool(request.flags & FINAL)
        exchange = entry.exchange
        if isinstance(exchange, RelayedExchange):
            exchange.submit(request.event, partial(self._relayed, request, entry, started), seconds, final=final)
            return
        done = partial(self._done, request, entry, started, seconds)
        call = self._server.pool.submit(exchange, request.event, done, seconds, final=final)
        if not call.done:
            entry.calls.append(call)

    def _done(
        self, request: ProxyRequest, entry: _Entry, started: float, seconds: float, call: Call, outcome: Outcome
    ) -> None:
        if entry.calls and entry.calls[0] is call:
            del entry.calls[0]
        elif call in entry.calls:
            entry.calls.remove(call)
        if isinstance(outcome, PoolError):
            if not self._hand_on(request, entry, started, seconds, call, outcome):
                self._settle(request, entry)
                self._fail(request.request_id, outcome, started)
            return
        self._settle(request, entry)
        connection = call.connection
        assert connection is not None
        try:
            frame = encode_answer(
                request.request_id,
                outcome,
                agent_id=request.agent_id,
                connection_id=connection.connection_id,
                shard=self._server.shard,
                duration_us=_microseconds_since(started),
            )
        except LocalProtocolError as error:
            self._fail(request.request_id, BadRequest(f"the answer cannot be passed on: {error}"), started)
            return
        self._write(frame)

    def _hand_on(
        self, request: ProxyRequest, entry: _Entry, started: float, seconds: float, call: Call, error: PoolError
    ) -> bool:
        """Relay the first event of a request that nobody here can serve, or try it again; whether that was done."""
        if request.flags & RELAYED or call.connection is not None or error.code not in _ELSEWHERE or entry.calls:
            return False
        waited = time.monotonic() - started
        left = seconds - waited
        if left <= 0 or self._transport is None:
            return False
        relay = self._server.relay
        shard = relay.holder(request.agent_id)
        if shard is None:
            if error.code != FailureCode.AGENT_NOT_FOUND or not relay.may_be_news(request.agent_id, waited):
                return False
            entry.exchange = self._exchange(request)
            self._loop.call_later(NEWS_PAUSE, self._try_again, request, entry, started, seconds)
            return True
        entry.exchange = exchange = self._server.relay.begin(shard, request.agent_id)
        final = bool(request.flags & FINAL)
        exchange.submit(request.event, partial(self._relayed, request, entry, started), left, final=final)
        return True

    def _try_again(self, request: ProxyRequest, entry: _Entry, started: float, seconds: float) -> None:
        entry.exchange = self._exchange(request)
        self._submit(request, entry, started, seconds)

    def _relayed(self, request: ProxyRequest, entry: _Entry, started: float, result: Answer | PoolError) -> None:
        self._settle(request, entry)
        if isinstance(result, PoolError):
            self._fail(request.request_id, result, started)
            return
        self._write(
            encode_answer(
                request.request_id,
                result.response,
                agent_id=result.agent_id,
                connection_id=result.connection_id,
                shard=result.shard,
                duration_us=_microseconds_since(started),
                flags=RELAYED,
            )
        )

    def _settle(self, request: ProxyRequest, entry: _Entry) -> None:
        """Note that an event of *entry* has its answer, or failure."""
        self._in_flight -= 1
        entry.waiting -= 1
        if entry.is_final and not entry.waiting:
            self._entries.pop(request.request_id)

    def _finish(self, entry: _Entry) -> None:
        if isinstance(entry.exchange, RelayedExchange):
            entry.exchange.finish()
        else:
            self._server.pool.requests.finish(entry.exchange)

    def _give_up(self, entry: _Entry, reason: CancelReason) -> None:
        if isinstance(entry.exchange, RelayedExchange):
            entry.exchange.cancel(reason)
            return
        for call in list(entry.calls):
            self._server.pool.requests.cancel(call, reason)
        self._server.pool.requests.finish(entry.exchange)

    # Writing.

    def _fail(self, request_id: int, error: PoolError, started: float | None) -> None:
        self._write(
            encode_failure(
                request_id,
                error.code,
                str(error),
                shard=self._server.shard if error.shard is None else error.shard,
                duration_us=0 if started is None else _microseconds_since(started),
                flags=RETRY_SAFE if error.retry_safe else 0,
            )
        )

    def _write(self, frame: bytes) -> None:
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(frame)

    def _flush(self) -> None:
        out, self._out = self._out, []
        if self._transport is not None and out:
            self._transport.write(b"".join(out))

    def refuse(self, reason: str) -> None:
        """Say what is wrong and close the connection."""
        get_logger().warning("proxy connection closed", proxy=self.name, reason=printable(reason, 200))
        self._write(encode_refusal(reason))
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def sweep(self, now: float) -> None:
        """Forget requests that were idle for too long."""
        for entry in self._entries.sweep(now):
            self._finish(entry)


def _microseconds_since(started: float) -> int:
    # uvloop's own clock has milliseconds.
    return int((time.monotonic() - started) * 1_000_000)


class ProxyServer:
    """Takes proxies' connections for one shard."""

    def __init__(self, shard: int, epoch: str, rundir: RuntimeDir, pool: AgentPool, relay: Relay) -> None:
        self.shard = shard
        self.epoch = epoch
        self.pool = pool
        self.relay = relay
        self.stopping = False
        self.connections: set[ProxyConnection] = set()
        self._path = rundir.shard_proxy(shard)
        self._server: asyncio.Server | None = None
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(SWEEP_SECONDS, self._sweep)

    async def start(self) -> None:
        """Listen, in place of a dead predecessor."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._path.unlink(missing_ok=True)
            previous = os.umask(0o177)
            try:
                sock.bind(os.fspath(self._path))
            finally:
                os.umask(previous)
            self._server = await self._loop.create_unix_server(lambda: ProxyConnection(self), sock=sock)
        except BaseException:
            sock.close()
            raise

    def close(self) -> None:
        """Take no more connections and no more events, and close the connections after what they were told."""
        self.stopping = True
        self._timer.cancel()
        if self._server is not None:
            self._server.close()
        for connection in list(self.connections):
            connection.refuse("the shard stops")

    def _sweep(self) -> None:
        self._timer = self._loop.call_later(SWEEP_SECONDS, self._sweep)
        now = self._loop.time()
        for connection in self.connections:
            connection.sweep(now)
