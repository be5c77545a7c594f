"""Dialling and registering against proxies that behave as real ones do, well and badly: with real sockets."""

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from support.deciding import allows
from support.fences import descriptors, new_descriptors
from support.scripted_proxy import Peer, refused_address, run, scripted_proxy
from support.waiting import until

from dialout import (
    ALLOWED,
    Agent,
    AuthFailed,
    BadRegistration,
    Capabilities,
    ConnectionLimit,
    Decision,
    Dialect,
    ErrorCode,
    FrameDecoder,
    LocalProtocolError,
    NotAllowed,
    NotConnected,
    ProxyConnection,
    ProxyHungUp,
    ProxyOverloaded,
    ProxyShuttingDown,
    ProxyUnreachable,
    RegistrationError,
    RegistrationRequest,
    RegistrationTimeout,
    RequestHeaders,
    UnreadableAnswer,
    VersionMismatch,
    codec_for,
    connect_to_proxy,
    encode_frame,
    read_registration_response,
    write_registration_request,
)
from dialout.agent.lifecycle import Kind
from dialout.agent.registering import MOST_ANSWER

Script = Callable[[Peer], Awaitable[None]]


@pytest.fixture(autouse=True)
def no_descriptor_is_left() -> object:
    before = descriptors()
    yield
    assert new_descriptors(before) == []


@pytest.mark.parametrize("dialect", list(Dialect))
@pytest.mark.parametrize("tcp", [False, True], ids=["uds", "tcp"])
def test_registration_says_everything_and_its_answer_is_there(dialect: Dialect, tcp: bool) -> None:
    async def script(peer: Peer) -> None:
        await peer.accept({"rules": 1})
        await peer.end()

    async def main() -> None:
        async with scripted_proxy(script, tcp=tcp) as proxy:
            connection = await connect_to_proxy(
                proxy.address,
                "waf-1",
                Capabilities(max_concurrent=7),
                auth_token="open sesame",
                metadata={"version": "1"},
                dialect=dialect,
            )
            registration = proxy.peers[0].registration
            assert registration is not None
            assert (registration.dialect, registration.agent_id) == (dialect, "waf-1")
            assert (registration.auth_token, registration.metadata) == ("open sesame", b'{"version":"1"}')
            assert registration.capabilities.max_concurrent == 7
            assert (connection.connection_id, connection.response.config) == ("waf-1-conn-1", {"rules": 1})
            assert "sesame" not in str(vars(connection))
            connection.close()
            await connection.wait_closed()

    run(main())


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (ErrorCode.VERSION_MISMATCH, VersionMismatch),
        (ErrorCode.AUTH_FAILED, AuthFailed),
        (ErrorCode.NOT_ALLOWED, NotAllowed),
        (ErrorCode.CONNECTION_LIMIT, ConnectionLimit),
        (ErrorCode.TIMEOUT, RegistrationTimeout),
        (ErrorCode.BAD_REGISTRATION, BadRegistration),
        (ErrorCode.OVERLOADED, ProxyOverloaded),
        (ErrorCode.SHUTTING_DOWN, ProxyShuttingDown),
    ],
)
def test_each_refusal_is_an_error_of_its_own(code: ErrorCode, kind: type[RegistrationError]) -> None:
    async def script(peer: Peer) -> None:
        await peer.refuse(code, "because", 2500)
        await peer.end()

    async def main() -> None:
        async with scripted_proxy(script) as proxy:
            with pytest.raises(kind, match="because") as raised:
                await connect_to_proxy(proxy.address, "waf-1", auth_token="open sesame")
            assert (raised.value.error_code, raised.value.retry_after) == (code, 2.5)
            assert "sesame" not in str(raised.value)

    run(main())


async def closes_in_silence(peer: Peer) -> None:
    await peer.register()


async def closes_at_once(peer: Peer) -> None:
    pass


async def resets(peer: Peer) -> None:
    await peer.register()
    peer.writer.transport.abort()


async def stops_in_the_answer(peer: Peer) -> None:
    await peer.register()
    peer.send(encode_frame(0x04, b'{"accepted":true}')[:-3])


@pytest.mark.parametrize("script", [closes_in_silence, closes_at_once, resets, stops_in_the_answer])
@pytest.mark.parametrize("tcp", [False, True], ids=["uds", "tcp"])
def test_proxy_that_closes_without_an_answer_hung_up(script: Script, tcp: bool) -> None:
    async def main() -> None:
        async with scripted_proxy(script, tcp=tcp) as proxy:
            with pytest.raises(ProxyHungUp) as raised:
                await connect_to_proxy(proxy.address, "waf-1")
            assert raised.value.error_code is None

    run(main())


@pytest.mark.parametrize(
    "garbage",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\x00\x00\x00\x00",
        b"\xff" * 64,
        encode_frame(0x20, b'{"accepted":true}'),
        encode_frame(0x04, b"nonsense"),
        encode_frame(0x04, b'{"accepted":"yes"}'),
        encode_frame(0x04, b'{"accepted":true,"success":false}'),
        encode_frame(0x04, b'{"accepted":true,"config":[1]}'),
    ],
)
def test_garbage_is_no_answer_and_is_not_repeated(garbage: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.register()
        peer.send(garbage)
        await peer.end()

    async def main() -> None:
        async with scripted_proxy(script) as proxy:
            with pytest.raises(UnreadableAnswer) as raised:
                await connect_to_proxy(proxy.address, "waf-1")
            assert str(raised.value).isascii()
            assert "nonsense" not in str(raised.value)
            assert "HTTP" not in str(raised.value)

    run(main())


def test_refusal_of_an_old_proxy_says_what_it_says() -> None:
    async def script(peer: Peer) -> None:
        await peer.register()
        peer.send(encode_frame(0x02, b'{"success":false,"error":"Authentication\\u001b required","connection_id":""}'))

    async def main() -> None:
        async with scripted_proxy(script) as proxy:
            with pytest.raises(RegistrationError, match=r"^refused: Authentication\\x1b required$") as raised:
                await connect_to_proxy(proxy.address, "waf-1", dialect=Dialect.CORE)
            assert type(raised.value) is RegistrationError

    run(main())


@pytest.mark.parametrize("late", [False, True], ids=["never", "late"])
def test_answer_that_does_not_come_in_time_is_a_timeout_and_comes_too_late(late: bool) -> None:
    gave_up = asyncio.Event()
    ended: list[bool] = []

    async def script(peer: Peer) -> None:
        await peer.register()
        await gave_up.wait()
        if late:
            peer.send(encode_frame(0x04, b'{"accepted":true}'))
        await peer.end()
        ended.append(True)

    async def main() -> None:
        async with scripted_proxy(script) as proxy:
            with pytest.raises(RegistrationTimeout, match=r"within 0\.05 s") as raised:
                await connect_to_proxy(proxy.address, "waf-1", timeout=0.05)
            assert raised.value.error_code is ErrorCode.TIMEOUT
            gave_up.set()
            await until(lambda: ended, "the proxy to see the end")

    run(main())


def test_nobody_at_the_address_is_unreachable() -> None:
    async def main() -> None:
        for address in ("/nowhere/agents.sock", refused_address(), "host.invalid:9090"):
            with pytest.raises(ProxyUnreachable, match=r"nowhere|127\.0\.0\.1|invalid"):
                await connect_to_proxy(address, "waf-1")

    run(main())


def test_cancelled_dialling_leaves_nothing_open() -> None:
    async def main() -> None:
        registered = asyncio.Event()

        async def script(peer: Peer) -> None:
            await peer.register()
            registered.set()
            await peer.end()
            ended.set()

        ended = asyncio.Event()
        async with scripted_proxy(script) as proxy:
            dialling = asyncio.create_task(connect_to_proxy(proxy.address, "waf-1"))
            await registered.wait()
            dialling.cancel()
            await asyncio.wait({dialling})
            assert dialling.cancelled()
            await ended.wait()

    run(main())


@pytest.mark.parametrize("arguments", [("/s", "bad id"), ("no-address", "waf-1")])
def test_what_makes_no_registration_is_the_callers_mistake(arguments: tuple[str, str]) -> None:
    async def main() -> None:
        with pytest.raises(LocalProtocolError):
            await connect_to_proxy(*arguments)

    run(main())


# --- what follows the answer ---------------------------------------------------------------------------


def test_events_right_behind_the_answer_wait_for_the_one_who_serves() -> None:
    async def script(peer: Peer) -> None:
        registration = await peer.register()
        codec = codec_for(registration.dialect)
        events = [
            codec.encode_event(RequestHeaders("GET", "/", {}), request_id=n, correlation_id="", now="") for n in (1, 2)
        ]
        peer.send(encode_frame(0x04, b'{"accepted":true}') + events[0] + events[1][:9])
        await asyncio.sleep(0)
        peer.send(events[1][9:])
        answered.append([await peer.frame(), await peer.frame()])

    answered: list[object] = []

    async def main() -> None:
        async with scripted_proxy(script) as proxy:
            connection = await connect_to_proxy(proxy.address, "waf-1", ping_interval=0)
            for _ in range(20):
                await asyncio.sleep(0)
            ending = await connection.serve(allows())
            assert (ending.kind, ending.served) == (Kind.LOST, 2)

    run(main())
    assert answered == [[(0x20, b'{"request_id":%d,"decision":"allow"}' % n) for n in (1, 2)]]


async def accepts_and_closes(peer: Peer) -> None:
    await peer.accept()


async def accepts_and_talks_nonsense(peer: Peer) -> None:
    await peer.accept()
    peer.event(RequestHeaders("GET", "/", {}), 1)
    peer.send(b"\x00\x00\x00\x00 and more")
    await peer.end()


async def accepts_and_stops_inside_a_frame(peer: Peer) -> None:
    await peer.accept()
    peer.send(b"\x00\x00\x01\x00\x10{")


async def accepts_and_resets(peer: Peer) -> None:
    await peer.accept()
    await peer.writer.drain()
    peer.writer.transport.abort()


@pytest.mark.parametrize(
    ("script", "reason", "served"),
    [
        (accepts_and_closes, "closed by the proxy", 0),
        (accepts_and_talks_nonsense, "garbage from the proxy: the peer sent a frame of length 0", 1),
        (accepts_and_stops_inside_a_frame, "broken off: the stream ended inside a frame, 6 bytes after it began", 0),
        (accepts_and_resets, None, 0),
    ],
)
def test_connection_that_ends_after_its_acceptance_says_how(script: Script, reason: str | None, served: int) -> None:
    async def main() -> None:
        async with scripted_proxy(script) as proxy:
            connection = await connect_to_proxy(proxy.address, "waf-1", ping_interval=0)
            ending = await connection.serve(allows())
            assert ending.kind is Kind.LOST
            assert reason is None or ending.reason == reason
            assert ending.served == served
            assert connection.is_closed

    run(main())


def test_proxy_that_reads_nothing_is_not_read_either_until_it_does() -> None:
    big = Agent()

    @big.hook
    def on_request_headers(event: RequestHeaders) -> object:
        return ALLOWED.set_request_header("x-big", "x" * 100_000)

    read = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.accept()
        for number in range(1, 1001):
            peer.event(RequestHeaders("GET", "/" + "y" * 1000, {}), number)
        await read.wait()
        for _ in range(1000):
            assert await peer.inbound() is not None

    async def main() -> None:
        async with scripted_proxy(script) as proxy:
            connection = await connect_to_proxy(proxy.address, "waf-1", ping_interval=0)
            serving = asyncio.create_task(connection.serve(big))
            seen: list[int] = []

            def stuck() -> bool:
                seen.append(big.counters.requests)
                return seen[-1] > 0 and seen[-20:].count(seen[-1]) == 20

            await until(stuck, "the agent to stop reading")
            assert seen[-1] < 1000
            read.set()
            assert (await serving).served == 1000

    run(main())


def test_dead_proxy_is_noticed_by_pings_once_it_has_answered_one() -> None:
    async def script(peer: Peer) -> None:
        await peer.accept()
        frame = await peer.frame()
        assert frame is not None
        assert frame[0] == peer.registration.dialect.ping_type  # type: ignore[union-attr]
        if answers:
            peer.send(encode_frame(peer.registration.dialect.pong_type, frame[1]))  # type: ignore[union-attr]
        for _ in range(5):
            if await peer.frame() is None:
                return
        peer.writer.close()

    async def main(dialect: Dialect, reason: str) -> None:
        async with scripted_proxy(script) as proxy:
            connection = await connect_to_proxy(
                proxy.address, "waf-1", dialect=dialect, ping_interval=0.02, ping_timeout=0.02
            )
            assert (await connection.serve(allows())).reason == reason

    for dialect in (Dialect.SDK, Dialect.CORE):
        answers = True
        run(main(dialect, "no answer to a ping within 0.02 s"))
        answers = False
        run(main(dialect, "closed by the proxy"))


# --- over streams of one's own -----------------------------------------------------------------------


def test_registration_goes_over_a_stream_of_ones_own() -> None:
    async def script(peer: Peer) -> None:
        await peer.accept({"rules": 1})
        peer.send(b"what follows")

    async def main() -> None:
        async with scripted_proxy(script) as proxy:
            reader, writer = await asyncio.open_unix_connection(proxy.address)
            await write_registration_request(writer, RegistrationRequest(agent_id="waf-1"), Dialect.CORE)
            response = await read_registration_response(reader)
            assert (response.accepted, response.config) == (True, {"rules": 1})
            assert await reader.read() == b"what follows"
            assert proxy.peers[0].registration.dialect is Dialect.CORE  # type: ignore[union-attr]
            writer.close()
            await writer.wait_closed()

    run(main())


@pytest.mark.parametrize(
    ("sent", "kind"),
    [
        (b"", ProxyHungUp),
        (b"\x00\x00", ProxyHungUp),
        (b"\x00\x00\x00\x09\x04{", ProxyHungUp),
        (b"\x00\x00\x00\x00", UnreadableAnswer),
        (struct.pack(">I", MOST_ANSWER + 1), UnreadableAnswer),
        (encode_frame(0x10), UnreadableAnswer),
    ],
)
def test_stream_without_an_answer_is_told_apart(sent: bytes, kind: type[NotConnected]) -> None:
    async def main() -> None:
        reader = asyncio.StreamReader()
        reader.feed_data(sent)
        reader.feed_eof()
        with pytest.raises(kind):
            await read_registration_response(reader)

    run(main())


def test_refusal_on_a_stream_is_a_value() -> None:
    async def main() -> None:
        reader = asyncio.StreamReader()
        reader.feed_data(encode_frame(0x04, b'{"accepted":false,"error_code":"connection_limit"}'))
        response = await read_registration_response(reader)
        assert (response.accepted, response.error_code) == (False, ErrorCode.CONNECTION_LIMIT)

    run(main())


# --- the hot path ------------------------------------------------------------------------------------


class CountingTransport(asyncio.Transport):
    """Keeps what is written, and whether reading is paused."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.paused = False

    def write(self, data: Any) -> None:
        """Keep it."""
        self.writes.append(bytes(data))

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """A socket of no kind that has options."""
        return SimpleNamespace(family=socket.AF_UNIX)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Take them."""

    def is_closing(self) -> bool:
        """It never is."""
        return False

    def pause_reading(self) -> None:
        """Note it."""
        self.paused = True

    def resume_reading(self) -> None:
        """Note it."""
        self.paused = False

    def close(self) -> None:
        """Nothing to close."""

    abort = close


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_answers_to_one_read_leave_in_one_write_and_none_while_the_proxy_does_not_read(kind: str) -> None:
    agent = Agent()

    def plain(event: RequestHeaders) -> Decision:
        return ALLOWED

    async def asynchronous(event: RequestHeaders) -> Decision:
        return ALLOWED

    hook = plain if kind == "plain" else asynchronous
    hook.__name__ = "on_request_headers"
    agent.hook(hook)
    codec = codec_for(Dialect.SDK)

    def events(first: int) -> bytes:
        event = RequestHeaders("GET", "/", {})
        return b"".join(
            codec.encode_event(event, request_id=n, correlation_id="", now="") for n in range(first, first + 64)
        )

    async def main() -> None:
        transport = CountingTransport()
        connection = ProxyConnection(RegistrationRequest(agent_id="waf-1"), Dialect.SDK, ping_interval=0)
        connection.connection_made(transport)
        connection.data_received(encode_frame(0x04, b'{"accepted":true}'))
        assert transport.paused
        serving = asyncio.create_task(connection.serve(agent))
        await until(lambda: not transport.paused, "it to serve")
        transport.writes.clear()

        connection.data_received(events(1))
        await until(lambda: transport.writes, "the answers")
        assert len(FrameDecoder().feed(transport.writes.pop())) == 64
        connection.pause_writing()
        assert transport.paused
        connection.data_received(events(65))
        for _ in range(5):
            await asyncio.sleep(0)
        assert transport.writes == []
        connection.resume_writing()
        assert not transport.paused
        assert [len(FrameDecoder().feed(write)) for write in transport.writes] == [64]
        connection.connection_lost(None)
        assert (await serving).served == 128

    run(main())


def test_tcp_connections_notice_dead_peers() -> None:
    async def main() -> None:
        async def script(peer: Peer) -> None:
            await peer.accept()
            await peer.end()

        async with scripted_proxy(script, tcp=True) as proxy:
            connection = await connect_to_proxy(proxy.address, "waf-1")
            assert connection._transport is not None
            sock = connection._transport.get_extra_info("socket")
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 60_000
            connection.close()
            await connection.wait_closed()

    run(main())
