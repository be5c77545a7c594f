"""Shards without processes, on the test's loop: pool, relay and socket for proxies; and proxies that speak frames."""

import asyncio
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from dialout import ALLOWED, AgentEvent, FrameDecoder, encode_frame
from dialout.proxy.wire import (
    FINAL,
    MAX_ANSWER_LENGTH,
    RETRY_SAFE,
    Answer,
    Failure,
    FromShardFrame,
    ProxyRequest,
    Welcome,
    decode_from_proxy,
    decode_from_shard,
    encode_answer,
    encode_hello,
    encode_request,
    encode_welcome,
)
from ipc.options import PoolOptions
from ipc.rundir import RuntimeDir, record_of_this_process
from shards.directory import Directory
from shards.dispatch import Dispatch
from shards.pool import AgentPool
from shards.proxies import ProxyConnection
from shards.proxy_server import ProxyServer
from shards.relay import Relay
from support.engine import pool_of_this_loop
from support.pools import until
from support.product import short_folder


class LocalShard:
    """A shard's pool, directory, relay and proxies' socket."""

    def __init__(self, shard: int, rundir: RuntimeDir, pool: AgentPool) -> None:
        self.shard = shard
        self.pool = pool
        self.directory = Directory()
        self.directory.replace(0, {})
        self.relay = Relay(shard, rundir, self.directory)
        self.dispatch = Dispatch(shard, pool, self.relay)
        self.path = rundir.shard_proxy(shard)
        self.server = ProxyServer(shard, f"e{shard}", self.path, pool.options, self.dispatch, lambda: 1000)

    def hears(self, agent_id: str, counts: dict[int, int]) -> None:
        """Tell it where an agent is."""
        self.directory.change(self.directory._sequence + 1, {agent_id: counts})


@asynccontextmanager
async def local_shard(folder: Path, shard: int = 0, options: PoolOptions | None = None) -> AsyncIterator[LocalShard]:
    """A shard in this process, with its socket and its record in *folder*."""
    rundir = RuntimeDir(folder)
    rundir.create()
    with pool_of_this_loop(options, shard=shard) as pool:
        local = LocalShard(shard, rundir, pool)
        await local.server.start()
        rundir.write_shard(shard, record_of_this_process(f"e{shard}", "0"))
        try:
            yield local
        finally:
            local.server.stop()
            pool.close()
            local.relay.close()
            local.server.close()
            rundir.forget_shard(shard)
            for connection in list(local.server.connections):
                if connection._transport is not None:
                    connection._transport.abort()
            await until(lambda: not local.server.connections)


class RawProxy:
    """A proxy's connection that sends what it is told to, and reads what comes when it is asked for."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._decoder = FrameDecoder(MAX_ANSWER_LENGTH)
        self._frames: list[tuple[int, bytes]] = []

    async def frame(self) -> FromShardFrame | None:
        """The next frame; None at the end of the stream."""
        while not self._frames:
            try:
                data = await self.reader.read(1 << 16)
            except ConnectionResetError:
                return None
            if not data:
                return None
            self._frames += self._decoder.feed(data)
        return decode_from_shard(*self._frames.pop(0))

    async def result(self) -> Answer | Failure:
        """The next answer or failure; AssertionError for anything else."""
        frame = await self.frame()
        assert isinstance(frame, Answer | Failure), frame
        return frame

    def ask(
        self,
        request_id: int,
        event: AgentEvent,
        agent_id: str = "waf",
        *,
        flags: int = FINAL,
        timeout_ms: int = 8000,
    ) -> None:
        """Send an event."""
        self.send(encode_request(event, request_id=request_id, agent_id=agent_id, timeout_ms=timeout_ms, flags=flags))

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.writer.write(data)

    async def close(self) -> None:
        """Hang up."""
        self.writer.close()
        with suppress(BrokenPipeError, ConnectionResetError):
            await self.writer.wait_closed()


@asynccontextmanager
async def raw_proxy(path: Path, *, hello: bool = True) -> AsyncIterator[RawProxy]:
    """A connection to a shard's socket for proxies, welcomed if it says hello."""
    proxy = RawProxy(*await asyncio.open_unix_connection(str(path)))
    try:
        if hello:
            proxy.send(encode_hello("test", "1"))
            welcome = await proxy.frame()
            assert isinstance(welcome, Welcome), welcome
            assert not welcome.error
        yield proxy
    finally:
        await proxy.close()


@asynccontextmanager
async def one_shard(options: PoolOptions | None = None) -> AsyncIterator[tuple[LocalShard, RawProxy]]:
    """Shard 0, and a proxy of it."""
    with short_folder() as folder:
        async with local_shard(folder, 0, options) as shard, raw_proxy(shard.path) as proxy:
            yield shard, proxy


@asynccontextmanager
async def two_shards(options: PoolOptions | None = None) -> AsyncIterator[tuple[LocalShard, LocalShard, RawProxy]]:
    """Shards 0 and 1, and a proxy of shard 0."""
    with short_folder() as folder:
        async with (
            local_shard(folder, 0, options) as zero,
            local_shard(folder, 1, options) as one,
            raw_proxy(zero.path) as proxy,
        ):
            yield zero, one, proxy


def failure(result: Answer | Failure) -> tuple[str, bool]:
    """Its code, and whether a retry is safe; AssertionError for an answer."""
    assert isinstance(result, Failure), result
    return result.error_code, bool(result.flags & RETRY_SAFE)


def event_frame(request_id: int, payload: bytes, frame_type: int = 0x10, agent_id: bytes = b"waf") -> bytes:
    """An event with any bytes for its JSON."""
    header = struct.pack(">QIBB", request_id, 8000, 0, len(agent_id))
    return encode_frame(frame_type, header + agent_id + payload)


def waiting_bytes(connection: ProxyConnection) -> int:
    """What a proxy has not read yet."""
    return 0 if connection._transport is None else connection._transport.get_write_buffer_size()


@asynccontextmanager
async def odd_sibling(
    folder: Path, reply: Callable[[ProxyRequest], bytes | None]
) -> AsyncIterator[list[asyncio.StreamWriter]]:
    """Something that listens as shard 1 and says what *reply* returns."""
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        decoder = FrameDecoder()
        while data := await reader.read(65536):
            for frame_type, payload in decoder.feed(data):
                frame = decode_from_proxy(frame_type, payload)
                said = reply(frame) if isinstance(frame, ProxyRequest) else encode_welcome(1, "e", "0")
                if said:
                    writer.write(said)
        writer.close()

    server = await asyncio.start_unix_server(serve, str(RuntimeDir(folder).shard_proxy(1)))
    try:
        yield writers
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()


def allowed(request: ProxyRequest) -> bytes:
    """An allow, as a shard writes it."""
    return encode_answer(
        request.request_id, ALLOWED, agent_id=request.agent_id, connection_id="c", shard=1, duration_us=1
    )
