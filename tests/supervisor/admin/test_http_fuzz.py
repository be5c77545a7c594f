"""Any bytes, in any pieces: the admin endpoint answers, or closes, and nothing is an exception."""

import asyncio
import re
import socket
from typing import Any

import uvloop
from hypothesis import example, given
from hypothesis import strategies as st

from ipc.turns import Turns
from supervisor.admin.http import HttpServer, Response
from supervisor.admin.metrics import content_type
from supervisor.admin.request import Request
from supervisor.admin.server import is_own_host

STATUS = re.compile(rb"HTTP/1\.1 ([1-5]\d\d) [A-Za-z -]+\r\n")


def handler(request: Request) -> Response:
    """Looks at everything that the real one looks at."""
    is_own_host(request.headers.get("host", ""))
    limit = request.query.get("limit", "")
    body = f"{request.path} {request.query.get('after', '')} {limit}".encode()
    return Response(200, content_type(request.headers.get("accept", "")), body)


async def exchange(pieces: list[bytes]) -> tuple[bytes, list[Any]]:
    """What is answered to *pieces*, sent one after another, until the server has nothing more to say."""
    errors: list[Any] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: errors.append(context))
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as client:
        # An address of the kernel's choice (unix(7), autobind).
        listening.bind("")
        listening.listen()
        client.connect(listening.getsockname())
        client.setblocking(False)
        turns = Turns()
        server = HttpServer(handler, turns)
        server.accept_on(listening)
        answer = b""
        for piece in [*pieces, b""]:
            try:
                client.send(piece)
                for _ in range(8 + 2 * piece.count(b"\n")):
                    await asyncio.sleep(0)
            except OSError:
                break
        try:
            while data := client.recv(1 << 16):
                answer += data
        except OSError:
            pass
        server.close()
    return answer, errors


REQUEST = st.builds(
    lambda method, target, version, headers: b"\r\n".join(
        [b" ".join((method, target, version)), *(name + b": " + value for name, value in headers), b"", b""]
    ),
    st.sampled_from([b"GET", b"HEAD", b"OPTIONS", b"POST", b"CONNECT", b"\xff"]),
    st.one_of(
        st.binary(min_size=1, max_size=30).map(lambda text: b"/" + text),
        st.text("/[]?#&=%:@.*;aA1 \\\u00e9", min_size=1, max_size=20).map(lambda text: text.encode("latin-1")),
    ),
    st.sampled_from([b"HTTP/1.1", b"HTTP/1.0", b"HTTP/1.2", b"HTTP/9", b""]),
    st.lists(
        st.tuples(
            st.sampled_from([
                b"Host", b"Accept", b"Content-Length", b"Transfer-Encoding", b"Connection", b"Expect", b"Upgrade", b"X",
            ]),
            st.one_of(
                st.binary(max_size=12),
                st.sampled_from([
                    b"localhost", b"[", b"[::1]:1", b"1", b"chunked", b"close", b"keep-alive", b"100-continue", b"h2c",
                    b"application/openmetrics-text; version=1.0.0; escaping=x", b"text/plain; version=1.0.0.\xb2",
                    b"application/openmetrics-text; version=", b"text/plain;version;escaping=",
                ]),
            ),
        ),
        max_size=5,
    ),
)  # fmt: skip


@given(st.lists(st.one_of(REQUEST, REQUEST, st.binary(max_size=200)), min_size=1, max_size=5), st.data())
@example([b"GET //[/ HTTP/1.1\r\nHost: x\r\n\r\n"], None)
@example([b"GET http://[/ HTTP/1.1\r\nHost: [\r\n\r\n"], None)
@example([b"GET / HTTP/1.1\r\nHost: x\r\nAccept: application/openmetrics-text; version=1.0.0.\xb2\r\n\r\n"], None)
def test_bytes_are_answered_or_end_the_connection(parts: list[bytes], data: st.DataObject | None) -> None:
    whole = b"".join(parts)
    cuts = [] if data is None else sorted(data.draw(st.sets(st.integers(1, max(1, len(whole))), max_size=6)))
    pieces = [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        answer, errors = runner.run(exchange(pieces))
    assert errors == []
    if answer:
        assert STATUS.match(answer), answer[:200]
    if data is None:
        assert answer.startswith(b"HTTP/1.1 200 ")
