"""The admin endpoint's HTTP, on real sockets: what it answers, and what it bounds."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop
from support.fences import descriptors, new_descriptors
from support.waiting import until

from supervisor.admin import http
from supervisor.admin.http import HttpServer, Response, Stream
from supervisor.admin.request import Request

asked: list[Request] = []


def run(main: Coroutine[Any, Any, None]) -> None:
    before = descriptors()
    asked.clear()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(main, 30))
    assert new_descriptors(before) == []


def answer(request: Request) -> Response:
    asked.append(request)
    return Response(200, http.TEXT, f"you asked for {request.path}\n".encode())


@contextlib.asynccontextmanager
async def served(handler: Callable[[Request], Response | Awaitable[Response]] = answer) -> AsyncIterator[int]:
    """A server on a loopback port."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        server = HttpServer(handler)
        server.accept_on(sock)
        try:
            yield port
        finally:
            server.close()
            await until(lambda: not server.connections, "all connections to be gone")


async def send(port: int, data: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    return reader, writer


async def said(port: int, data: bytes) -> bytes:
    """All that is answered until the server closes."""
    reader, writer = await send(port, data)
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


def get(path: str, *headers: str, method: str = "GET") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", *headers, "", ""]).encode()


def last(path: str, *headers: str, method: str = "GET") -> bytes:
    return get(path, "Connection: close", *headers, method=method)


def test_server_answers_a_get_with_headers_that_bind_browsers() -> None:
    async def main() -> None:
        async with served() as port:
            found = await said(port, last("/x?a=1&b=two&broken"))
        head, _, body = found.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert body == b"you asked for /x\n"
        for line in (b"Cache-Control: no-store", b"X-Content-Type-Options: nosniff", b"X-Frame-Options: DENY"):
            assert line in head
        assert asked[0].query == {"a": "1", "b": "two", "broken": ""}

    run(main())


def test_server_answers_a_head_without_the_body() -> None:
    async def main() -> None:
        async with served() as port:
            with_body = await said(port, last("/x"))
            without = await said(port, last("/x", method="HEAD"))
        assert without == with_body.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"

    run(main())


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "CONNECT", "get"])
def test_server_refuses_every_other_method(method: str) -> None:
    async def main() -> None:
        async with served() as port:
            found = await said(port, get("/x", "Content-Length: 3", method=method) + b"abc")
        assert found.startswith(b"HTTP/1.1 405 Method Not Allowed\r\n")
        assert b"Allow: GET, HEAD, OPTIONS\r\n" in found
        assert asked == []

    run(main())


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x00\x00\x00\x10hello there\r\n\r\n", 400),
        (b"GET /\r\n\r\n", 400),
        (get("/", "Content-Length: 1") + b"x", 413),
        (get("/", "Transfer-Encoding: chunked") + b"1\r\nx\r\n0\r\n\r\n", 413),
        (get("/" + "x" * 10_000), 431),
        (get("/", "X: " + "y" * 20_000), 431),
        (get("/", "Content-Length: 1", "Content-Length: 2"), 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
    ],
)
def test_server_refuses_what_it_does_not_understand(data: bytes, status: int) -> None:
    async def main() -> None:
        async with served() as port:
            found = await said(port, data)
        assert found.split(b" ")[1] == str(status).encode()
        assert asked == []

    run(main())


def test_server_answers_many_requests_on_one_connection_in_their_order() -> None:
    async def main() -> None:
        async with served() as port:
            found = await said(port, b"".join(get(f"/{i}") for i in range(50)) + last("/end"))
        assert [r.path for r in asked] == [*(f"/{i}" for i in range(50)), "/end"]
        assert found.count(b"HTTP/1.1 200 OK") == 51
        assert found.endswith(b"you asked for /end\n")

    run(main())


def test_requests_in_a_row_leave_the_loop_to_others() -> None:
    async def main() -> None:
        turns = 0
        seen: list[int] = []

        def handler(request: Request) -> Response:
            seen.append(turns)
            return answer(request)

        async with served(handler) as port:
            reader, writer = await send(port, b"".join(get(f"/{i}") for i in range(20)) + last("/end"))
            while not reader.at_eof():
                turns += 1
                await reader.read(1) if turns % 50 == 0 else await asyncio.sleep(0)
            writer.close()
        assert len(set(seen)) == len(seen) == 21

    run(main())


def test_server_answers_later_where_an_answer_takes_time() -> None:
    async def main() -> None:
        go = asyncio.Event()

        async def slow(request: Request) -> Response:
            await go.wait()
            return answer(request)

        async with served(slow) as port:
            first, first_writer = await send(port, last("/a"))
            second, second_writer = await send(port, get("/b") + last("/c"))
            await asyncio.sleep(0)
            go.set()
            assert (await first.read()).endswith(b"/a\n")
            assert (await second.read()).endswith(b"/c\n")
            first_writer.close()
            second_writer.close()

    run(main())


def test_client_that_hangs_up_while_its_answer_is_made_costs_nothing() -> None:
    async def main() -> None:
        ended = []

        async def slow(request: Request) -> Response:
            try:
                await asyncio.sleep(20)
            finally:
                ended.append(request.path)
            return answer(request)

        async with served(slow) as port:
            _, writer = await send(port, get("/a"))
            await asyncio.sleep(0.05)
            writer.transport.abort()
        assert ended in ([], ["/a"])

    run(main())


@pytest.mark.parametrize("later", [False, True])
def test_defect_in_an_answer_costs_that_answer_only(later: bool) -> None:
    async def main() -> None:
        errors = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context["exception"]))

        async def bad_later(_: Request) -> Response:
            raise ZeroDivisionError

        def handler(request: Request) -> Response | Awaitable[Response]:
            if request.path == "/good":
                return answer(request)
            return bad_later(request) if later else 1 // 0  # type: ignore[return-value]

        async with served(handler) as port:
            found = await said(port, get("/bad") + last("/good"))
        assert found.startswith(b"HTTP/1.1 500 ")
        assert found.endswith(b"you asked for /good\n")
        assert [type(error) for error in errors] == [ZeroDivisionError]

    run(main())


def test_request_that_does_not_come_to_its_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "REQUEST_SECONDS", 0.3)

    async def main() -> None:
        async with served() as port:
            reader, writer = await send(port, b"GET / HTTP/1.1\r\nHost: x\r\n")
            silent, silent_writer = await send(port, b"")
            stopped = False

            async def drip() -> None:
                # A byte now and then does not extend it.
                while not stopped:
                    writer.write(b"X")
                    await asyncio.sleep(0.02)

            dripping = asyncio.create_task(drip())
            for one in (reader, silent):
                with contextlib.suppress(ConnectionResetError):
                    assert await one.read() == b""
            stopped = True
            await dripping
            writer.close()
            silent_writer.close()

    run(main())


async def is_over(reader: asyncio.StreamReader) -> bool:
    """Whether the server has closed a connection, waiting for it if need be."""
    with contextlib.suppress(ConnectionResetError):
        await reader.read()
    return True


def test_newcomer_takes_the_place_of_the_connection_with_the_longest_incomplete_header(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http, "MOST_CONNECTIONS", 3)

    async def main() -> None:
        async with served() as port:
            idle, idle_writer = await send(port, get("/idle"))
            await idle.readuntil(b"you asked for /idle\n")
            silent, silent_writer = await send(port, b"")
            half, half_writer = await send(port, b"GET / HT")
            assert (await said(port, last("/1"))).endswith(b"/1\n")
            assert await is_over(silent)
            # The newcomer has gone, and this takes its place.
            fresh, fresh_writer = await send(port, b"G")
            assert (await said(port, last("/2"))).endswith(b"/2\n")
            assert await is_over(half)
            fresh_writer.write(last("/3")[1:])
            assert (await fresh.read()).endswith(b"/3\n")
            idle_writer.write(last("/4"))
            assert (await idle.read()).endswith(b"/4\n")
            for writer in (idle_writer, silent_writer, half_writer, fresh_writer):
                writer.close()

    run(main())


def test_newcomer_is_answered_while_all_places_are_taken_by_connections_at_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http, "MOST_CONNECTIONS", 3)

    async def main() -> None:
        async def never(_: Request) -> Response:
            await asyncio.get_running_loop().create_future()
            raise AssertionError

        def handler(request: Request) -> Response | Awaitable[Response]:
            return never(request) if request.path == "/never" else answer(request)

        async with served(handler) as port:
            at_work = [await send(port, get("/never")) for _ in range(3)]
            for number in range(3):
                assert (await said(port, last(f"/{number}"))).endswith(f"/{number}\n".encode())
            for _, writer in at_work:
                writer.close()

    run(main())


def test_one_peer_cannot_take_the_last_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MOST_OF_A_PEER", 2)

    async def main() -> None:
        async with served() as port:
            loop = asyncio.get_running_loop()
            other = socket.socket()
            other.setblocking(False)
            other.bind(("127.0.0.2", 0))
            await loop.sock_connect(other, ("127.0.0.1", port))
            many = [await send(port, b"G") for _ in range(5)]
            for reader, _ in many[:3]:
                assert await is_over(reader)
            await loop.sock_sendall(other, last("/other"))
            assert (await loop.sock_recv(other, 1000)).startswith(b"HTTP/1.1 200 ")
            other.close()
            for _, writer in many:
                writer.close()

    run(main())


def test_health_check_is_answered_while_more_connections_than_places_drip_bytes() -> None:
    async def main() -> None:
        async with served() as port:
            slow = [await send(port, b"G") for _ in range(2 * http.MOST_CONNECTIONS)]
            stopped = False

            async def drip() -> None:
                while not stopped:
                    for _, writer in slow:
                        # Those that made room are gone.
                        if not writer.is_closing():
                            writer.write(b"E")
                    await asyncio.sleep(0.001)

            dripping = asyncio.create_task(drip())
            for _ in range(20):
                assert (await said(port, last("/livez"))).endswith(b"/livez\n")
            stopped = True
            await dripping
            for _, writer in slow:
                writer.close()

    run(main())


def test_options_are_told_to_a_check_without_a_host() -> None:
    async def main() -> None:
        async with served() as port:
            for target in ("/", "*", "/livez"):
                found = await said(port, f"OPTIONS {target} HTTP/1.0\r\n\r\n".encode())
                assert found.startswith(b"HTTP/1.1 200 OK\r\n")
                assert b"Allow: GET, HEAD, OPTIONS\r\n" in found
            assert (await said(port, b"GET /x HTTP/1.0\r\n\r\n")).endswith(b"you asked for /x\n")

    run(main())


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("//[/", "//[/"), ("//metrics/livez", "//metrics/livez"), ("//", "//"), ("/a//b", "/a//b"), ("/?//[", "/"),
        ("http://a.example/livez?x", "/livez"), ("http://[/livez", "/livez"), ("http://a.example", "/"),
        ("http://a.example?x=1", "/"),
    ],
)  # fmt: skip
def test_target_is_taken_by_its_form_and_nothing_in_it_is_an_error(target: str, path: str) -> None:
    async def main() -> None:
        async with served() as port:
            assert (await said(port, last(target))).startswith(b"HTTP/1.1 200 OK\r\n")
        assert [request.path for request in asked] == [path]

    run(main())


@pytest.mark.parametrize("target", ["*", "livez", "a.example:80", "?x", "[", "://"])
def test_target_of_another_form_is_a_bad_request(target: str) -> None:
    async def main() -> None:
        async with served() as port:
            assert (await said(port, last(target))).startswith(b"HTTP/1.1 400 ")
        assert asked == []

    run(main())


def test_stream_is_written_until_its_client_is_gone() -> None:
    async def main() -> None:
        streams: list[Stream] = []
        lost = []

        def follow(stream: Stream) -> None:
            streams.append(stream)
            stream.on_lost = lambda: lost.append(stream)

        async with served(lambda _: Response(200, "text/event-stream", b"first\n", follow=follow)) as port:
            reader, writer = await send(port, get("/live"))
            await reader.readuntil(b"first\n")
            assert streams[0].write(b"second\n")
            await reader.readuntil(b"second\n")
            writer.close()
            await until(lambda: lost == streams, "the loss to be told")
            assert not streams[0].write(b"third\n")
            assert (await said(port, last("/live", method="HEAD"))).endswith(b"\r\n\r\n")
            assert len(streams) == 1

    run(main())


def test_stream_whose_client_does_not_read_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MOST_UNREAD", 100_000)

    async def main() -> None:
        streams: list[Stream] = []
        async with served(lambda _: Response(200, "text/event-stream", b"", follow=streams.append)) as port:
            loop = asyncio.get_running_loop()
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.sendall(get("/live"))
                await until(lambda: streams, "the stream")
                for _ in range(1000):
                    if not streams[0].write(b"x" * 50_000):
                        break
                    await asyncio.sleep(0)
                assert not streams[0].write(b"x")
            assert loop.is_running()

    run(main())


def test_server_listens_on_a_unix_socket_too(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "s"
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(path))
            sock.listen()
            server = HttpServer(answer)
            server.accept_on(sock)
            reader, writer = await asyncio.open_unix_connection(str(path))
            writer.write(last("/x"))
            assert (await reader.read()).endswith(b"/x\n")
            writer.close()
            server.close()
            await until(lambda: not server.connections, "all connections to be gone")

    run(main())


def test_requests_behind_a_slow_one_wait_in_the_kernel(tmp_path: Path) -> None:
    async def main() -> None:
        go = asyncio.Event()

        async def slow(request: Request) -> Response:
            await go.wait()
            return answer(request)

        path = tmp_path / "s"
        with socket.socket(socket.AF_UNIX) as sock, socket.socket(socket.AF_UNIX) as client:
            sock.bind(str(path))
            sock.listen()
            server = HttpServer(slow)
            server.accept_on(sock)
            client.connect(str(path))
            client.setblocking(False)
            sent, many = 0, get("/x") * 1000
            for _ in range(200):
                with contextlib.suppress(BlockingIOError):
                    while sent < 50_000_000:
                        sent += client.send(many)
                await asyncio.sleep(0.001)
            # One read, and what the socket's buffers hold.
            assert sent < 5_000_000
            server.close()
            await until(lambda: not server.connections, "all connections to be gone")

    run(main())
