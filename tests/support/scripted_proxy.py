"""A proxy that does what a test says: a real listening socket, and a script for each connection that comes."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec

from dialout import (
    AgentEvent,
    ErrorCode,
    FrameDecoder,
    Inbound,
    Registration,
    acceptance_frame,
    codec_for,
    parse_registration,
    rejection_frame,
)
from support.product import short_folder
from support.waiting import PATIENCE


class Peer:
    """One connection of an agent, from the proxy's end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        self.number = number
        self.reader = reader
        self.writer = writer
        self.registration: Registration | None = None
        self._decoder = FrameDecoder()
        self._frames: list[tuple[int, bytes]] = []

    async def frame(self) -> tuple[int, bytes] | None:
        """The next frame; None at the end of the stream, however it ended."""
        while not self._frames:
            try:
                data = await self.reader.read(65536)
            except ConnectionError:
                return None
            if not data:
                return None
            self._frames.extend(self._decoder.feed(data))
        return self._frames.pop(0)

    async def register(self) -> Registration:
        """Read the registration."""
        frame = await self.frame()
        assert frame is not None
        self.registration = parse_registration(*frame)
        return self.registration

    async def accept(self, config: object = None) -> None:
        """Read the registration and accept it."""
        found = await self.register()
        encoded = None if config is None else msgspec.json.encode(config)
        name = f"{found.agent_id}-conn-{self.number}"
        self.send(acceptance_frame(found.answer_type, name, proxy_id="p", proxy_version="1", config=encoded))

    async def refuse(self, code: ErrorCode, error: str = "no", retry_after_ms: int | None = None) -> None:
        """Read the registration and refuse it."""
        answer_type = (await self.register()).answer_type
        refusal = rejection_frame(
            answer_type, error, code, proxy_id="p", proxy_version="1", retry_after_ms=retry_after_ms
        )
        self.send(refusal)

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.writer.write(data)

    def event(self, event: AgentEvent, request_id: int, correlation_id: str = "") -> None:
        """Send an event in the agent's dialect."""
        assert self.registration is not None
        codec = codec_for(self.registration.dialect)
        name = correlation_id or f"c{request_id}"
        self.send(codec.encode_event(event, request_id=request_id, correlation_id=name, now="2026-01-02T03:04:05Z"))

    async def inbound(self) -> Inbound | None:
        """What the agent sends next, pings left out; None at the end of the stream."""
        assert self.registration is not None
        dialect = self.registration.dialect
        while True:
            frame = await self.frame()
            if frame is None:
                return None
            if frame[0] != dialect.ping_type:
                return codec_for(dialect).decode(*frame)

    async def end(self) -> None:
        """Read to the end of the stream, whatever comes."""
        while await self.frame() is not None:
            pass


Script = Callable[[Peer], Awaitable[None]]


class ScriptedProxy:
    """Listens at ``address``; each connection plays ``script``, and is closed at its end."""

    def __init__(self, address: str, script: Script) -> None:
        self.address = address
        self.script = script
        self.peers: list[Peer] = []
        self.arrivals: list[float] = []

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Play the script."""
        self.arrivals.append(asyncio.get_running_loop().time())
        peer = Peer(reader, writer, len(self.arrivals))
        self.peers.append(peer)
        try:
            await self.script(peer)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


@contextlib.asynccontextmanager
async def scripted_proxy(
    script: Script, *, tcp: bool = False, path: Path | None = None
) -> AsyncIterator[ScriptedProxy]:
    """A proxy on a Unix socket of its own, at ``path``, or on a TCP port of 127.0.0.1."""
    with short_folder() as folder:
        proxy = ScriptedProxy(str(path or folder / "s"), script)
        playing: set[asyncio.Task[None]] = set()

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            # No coroutine function: asyncio 3.11 complains about the end of a cancelled one.
            task = asyncio.get_running_loop().create_task(proxy.connected(reader, writer))
            playing.add(task)
            task.add_done_callback(playing.discard)

        if tcp:
            server = await asyncio.start_server(connected, "127.0.0.1", 0)
            proxy.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        else:
            server = await asyncio.start_unix_server(connected, proxy.address, backlog=1024)
        try:
            yield proxy
        finally:
            server.close()
            for task in list(playing):
                task.cancel()
            await asyncio.gather(*playing, return_exceptions=True)


def run(main: Coroutine[Any, Any, None], seconds: float = 2 * PATIENCE) -> None:
    """Run a test with a limit; it must leave no task behind."""

    async def limited() -> None:
        async with asyncio.timeout(seconds):
            await main
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert left == set()

    asyncio.run(limited())


def refused_address() -> str:
    """A TCP address where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"
