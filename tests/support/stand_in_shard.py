"""The shard's end of a proxies' socket, for tests of the client's connections only.

It is made of the shard side of ``dialout.proxy.wire`` and says what a test tells it to, when the test tells it to; a
real shard could not be made to lose a connection between two given frames. What agents and pools do is tested with
real ones.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dialout import ALLOWED, Decision, FrameDecoder, HeaderOp
from dialout.decisions import ALLOW
from dialout.proxy.wire import (
    FromProxyFrame,
    ProxyCancel,
    ProxyHello,
    ProxyPing,
    ProxyRequest,
    decode_from_proxy,
    encode_answer,
    encode_failure,
    encode_pong,
    encode_welcome,
)
from support.waiting import PATIENCE

Reply = Callable[[ProxyRequest], bytes | None]


def allowed(request: ProxyRequest, shard: int = 0, flags: int = 0) -> bytes:
    """An allow that names what it answers: the URI, or the index of a chunk."""
    event: Any = request.event
    asked = str(getattr(event, "uri", getattr(event, "chunk_index", "")))
    response = Decision(ALLOW, (HeaderOp.set("asked", asked),))
    return answered(request, response, shard, flags)


def answered(request: ProxyRequest, response: Decision = ALLOWED, shard: int = 0, flags: int = 0) -> bytes:
    """An answer to a request."""
    return encode_answer(
        request.request_id,
        response,
        agent_id=request.agent_id,
        connection_id=f"on-{shard}",
        shard=shard,
        duration_us=1500,
        flags=flags,
    )


def failed(request: ProxyRequest, code: str, shard: int = 0, flags: int = 0) -> bytes:
    """A failure of a request."""
    return encode_failure(request.request_id, code, f"said shard {shard}", shard=shard, flags=flags)


async def until(condition: Callable[[], object], what: str, timeout: float = PATIENCE) -> None:  # noqa: ASYNC109 - of polling
    """Wait for a condition; AssertionError after *timeout* seconds."""
    deadline = asyncio.get_running_loop().time() + timeout
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, f"waited {timeout:g} s for {what}"
        await asyncio.sleep(0.002)


class _Connection(asyncio.Protocol):
    def __init__(self, shard: "StandInShard") -> None:
        self.shard = shard
        self.decoder = FrameDecoder()
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.shard.connections.append(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.shard.connections.remove(self)

    def data_received(self, data: bytes) -> None:
        self.shard.reads += 1
        for frame in self.decoder.feed(data):
            self.shard.serve(self, decode_from_proxy(*frame))


class StandInShard:
    """Listens as shard *shard* in *folder*. *reply* makes the answer to an event; None leaves it open.

    *frames* keeps what came, *reads* counts how many pieces it came in.
    """

    def __init__(self, folder: Path, shard: int = 0, reply: Reply | None = None) -> None:
        self.shard = shard
        self.path = folder / f"shard-{shard}.proxy"
        self.reply: Reply = reply or (lambda request: allowed(request, shard))
        self.welcome: bytes | None = encode_welcome(shard, "epoch", "0")
        self.connections: list[_Connection] = []
        self.frames: list[FromProxyFrame] = []
        self.reads = 0
        self._server: asyncio.AbstractServer | None = None

    async def __aenter__(self) -> "StandInShard":
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: _Connection(self), str(self.path))
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.path.unlink(missing_ok=True)
        self.drop()
        await until(lambda: not self.connections, "the connections to close")
        await self._server.wait_closed()

    def serve(self, connection: _Connection, frame: FromProxyFrame) -> None:
        """Answer one frame."""
        if isinstance(frame, ProxyHello):
            if self.welcome is not None:
                connection.transport.write(self.welcome)
            return
        self.frames.append(frame)
        if isinstance(frame, ProxyPing):
            connection.transport.write(encode_pong(frame.payload))
        elif isinstance(frame, ProxyRequest) and (data := self.reply(frame)) is not None:
            connection.transport.write(data)

    @property
    def requests(self) -> list[ProxyRequest]:
        """The events that came."""
        return [frame for frame in self.frames if isinstance(frame, ProxyRequest)]

    @property
    def cancels(self) -> list[ProxyCancel]:
        """The cancels that came."""
        return [frame for frame in self.frames if isinstance(frame, ProxyCancel)]

    def write(self, data: bytes) -> None:
        """Send bytes to the one client."""
        [connection] = self.connections
        connection.transport.write(data)

    def drop(self) -> None:
        """Lose all connections."""
        for connection in self.connections:
            connection.transport.abort()

    def stop_reading(self) -> None:
        """Read no more from those that are connected."""
        for connection in self.connections:
            connection.transport.pause_reading()

    def read_again(self) -> None:
        """Read again."""
        for connection in self.connections:
            connection.transport.resume_reading()
