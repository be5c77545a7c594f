"""HTTP for the admin endpoint: GET and HEAD, small, bounded in every direction. h11 reads and writes the protocol.

Whoever connects gets a bounded header, a bounded time and one place of `MOST_CONNECTIONS`; with all places taken the
connection that has been idle for longest makes room. Each connection has one timer and answers one request in a turn of
the loop, so that requests in a row cannot keep the loop from agents.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import NamedTuple, cast
from urllib.parse import parse_qsl, urlsplit

import h11

from ipc.logs import get_logger

HEADER_LIMIT = 8192
"""Bytes of a request, which is nothing but its header."""

MOST_CONNECTIONS = 32
"""Open connections. They count against the supervisor's descriptors."""

REQUEST_SECONDS = 10.0
"""From the first byte of a request, or from connecting, to the end of its header."""

IDLE_SECONDS = 75.0
"""Between requests; and from an answer until it must have been read. Who comes each minute stays connected."""

LINGER_SECONDS = 1.0
"""From a refusal until it must have been read; what still comes is thrown away meanwhile."""

MOST_UNREAD = 1 << 20
"""Bytes of a stream that may wait for a client which does not read."""

TEXT = "text/plain; charset=utf-8"

_ALWAYS = (
    ("Cache-Control", "no-store"),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
)


class Request(NamedTuple):
    """A request without a body; HEAD is a GET here. Names in *headers* are lower case, the last of equal ones stays."""

    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]


class Response(NamedTuple):
    """An answer. With *follow* it is a stream that begins with *body*, and *follow* gets what writes the rest of it."""

    status: int
    content_type: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    follow: "Callable[[Stream], None] | None" = None


Handler = Callable[[Request], Response | Awaitable[Response]]


class Stream:
    """The rest of an answer that has no end of its own. *on_lost* is called when the client is gone."""

    def __init__(self, write: Callable[[bytes], bool]) -> None:
        self.write = write
        """Send more; False when the client is gone, or is cut off because it does not read."""
        self.on_lost: Callable[[], None] | None = None


class HttpServer:
    """Answers on listening sockets that it is given, with *handler*, which must not block."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.connections: dict[HttpConnection, None] = {}
        self._servers: list[asyncio.Server] = []

    async def listen(self, sock: socket.socket) -> None:
        """Accept on a listening socket."""
        loop = asyncio.get_running_loop()
        # When descriptors run out uvloop closes newcomers in silence. Scrapers come again.
        if sock.family == socket.AF_UNIX:
            self._servers.append(await loop.create_unix_server(lambda: HttpConnection(self), sock=sock))
        else:
            self._servers.append(await loop.create_server(lambda: HttpConnection(self), sock=sock))

    def close(self) -> None:
        """Accept no more, and close every connection, streams too."""
        for server in self._servers:
            server.close()
        for connection in list(self.connections):
            connection.abort()

    def enter(self, connection: "HttpConnection") -> bool:
        """Give *connection* a place; False when all are taken by others at work."""
        if len(self.connections) >= MOST_CONNECTIONS:
            idle = next((other for other in self.connections if other.is_idle), None)
            if idle is None:
                return False
            idle.abort()
            self.leave(idle)
        self.connections[connection] = None
        return True

    def leave(self, connection: "HttpConnection") -> None:
        """Free the place of *connection*."""
        self.connections.pop(connection, None)

    def served(self, connection: "HttpConnection") -> None:
        """Note that *connection* has just become idle: others have been so for longer."""
        if self.connections.pop(connection, self) is not self:
            self.connections[connection] = None


class HttpConnection(asyncio.Protocol):
    """One client."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEADER_LIMIT)
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._timer: asyncio.TimerHandle | None = None
        self._request: h11.Request | None = None
        self._task: asyncio.Task[None] | None = None
        self._stream: Stream | None = None
        self.is_idle = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, or say that there is no place."""
        # uvloop's transports are no subclass of asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        self._arm(REQUEST_SECONDS)
        if not self._server.enter(self):
            self._refuse(503, "too many connections; come again")
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        """Take bytes of a request."""
        if self._stream is not None or self._http.our_state in (h11.MUST_CLOSE, h11.CLOSED, h11.ERROR):
            return
        if self.is_idle:
            self.is_idle = False
            self._arm(REQUEST_SECONDS)
        self._http.receive_data(data)
        if self._task is None:
            self._advance()

    def eof_received(self) -> None:
        """Close: a client that has hung up wants no answer any more."""
        self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Free everything."""
        del exc
        self._server.leave(self)
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
        if self._stream is not None and self._stream.on_lost is not None:
            self._stream.on_lost()

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()

    # Inside.

    def _arm(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(seconds, self.abort)

    def _advance(self) -> None:
        """Go on with what has been received, to the end of one request at most."""
        if self._transport.is_closing():
            return
        try:
            while True:
                event = self._http.next_event()
                if isinstance(event, h11.Request):
                    self._request = event
                    if event.method not in (b"GET", b"HEAD"):
                        self._refuse(405, "GET and HEAD only: nothing can be changed here", ("Allow", "GET, HEAD"))
                        return
                    # h11 bounds a header only while it is incomplete.
                    if len(event.target) + sum(len(name) + len(value) for name, value in event.headers) > HEADER_LIMIT:
                        self._refuse(431, "the header is too long")
                        return
                elif isinstance(event, h11.Data):
                    self._refuse(413, "a request has no body here")
                    return
                elif isinstance(event, h11.EndOfMessage):
                    self._answer()
                    return
                else:
                    self._transport.resume_reading()
                    return
        except h11.RemoteProtocolError as error:
            self._refuse(error.error_status_hint, "not a request that this server understands")

    def _answer(self) -> None:
        assert self._request is not None
        # What comes behind it waits in the kernel until all that is here is answered.
        self._transport.pause_reading()
        try:
            response = self._server.handler(_plain(self._request))
        except Exception as error:  # noqa: BLE001 - a defect in an answer must not cost more than this answer
            self._fail(error)
            return
        if isinstance(response, Response):
            self._send(response)
        else:
            self._task = self._loop.create_task(self._send_later(response))

    async def _send_later(self, pending: Awaitable[Response]) -> None:
        try:
            response = await pending
        except Exception as error:  # noqa: BLE001 - see _answer
            self._task = None
            self._fail(error)
            return
        self._task = None
        self._send(response)

    def _fail(self, error: Exception) -> None:
        self._loop.call_exception_handler({"message": "an admin request could not be answered", "exception": error})
        self._send(Response(500, TEXT, b"this could not be answered; the log says why\n"))

    def _refuse(self, status: int, message: str, *headers: tuple[str, str]) -> None:
        """Answer whatever this is with *status*, and close when the client has read it, or has not for a moment."""
        get_logger().debug("admin request refused", status=status)
        if self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self._transport.close()
            return
        self._write(Response(status, TEXT, f"{message}\n".encode(), (*headers, ("Connection", "close"))))
        # A close with unread bytes would make TCP reset the answer away (RFC 1122, 4.2.2.13).
        self._transport.write_eof()
        self._arm(LINGER_SECONDS)

    def _send(self, response: Response) -> None:
        if self._transport.is_closing():
            return
        self._arm(IDLE_SECONDS)
        self._write(response)
        if response.follow is not None and self._http.our_state is h11.SEND_BODY:
            self._begin_stream(response.follow)
        elif self._http.our_state is h11.MUST_CLOSE or self._http.their_state is not h11.DONE:
            self._transport.close()
        else:
            self._http.start_next_cycle()
            self._request = None
            self.is_idle = not self._http.trailing_data[0]
            self._server.served(self)
            self._loop.call_soon(self._advance)

    def _write(self, response: Response) -> None:
        """Write an answer, or the beginning of one that is a stream."""
        is_stream = response.follow is not None
        headers = [*_ALWAYS, ("Content-Type", response.content_type), *response.headers]
        if not is_stream:
            headers.append(("Content-Length", str(len(response.body))))
        reason = HTTPStatus(response.status).phrase.encode()
        parts = [self._http.send(h11.Response(status_code=response.status, headers=headers, reason=reason))]
        is_head = self._request is not None and self._request.method == b"HEAD"
        if not is_head:
            parts.append(self._http.send(h11.Data(data=response.body)))
        if is_head or not is_stream:
            parts.append(self._http.send(h11.EndOfMessage()))
        self._transport.write(b"".join(part for part in parts if part))

    def _begin_stream(self, follow: Callable[[Stream], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        # What it may still send is read and dropped; that is how its end is noticed.
        self._transport.resume_reading()
        self._stream = Stream(self._write_more)
        follow(self._stream)

    def _write_more(self, data: bytes) -> bool:
        if self._transport.is_closing():
            return False
        if self._transport.get_write_buffer_size() > MOST_UNREAD:
            self.abort()
            return False
        self._transport.write(self._http.send(h11.Data(data=data)) or b"")
        return True


def _plain(request: h11.Request) -> Request:
    target = urlsplit(request.target.decode("ascii", "replace"))
    # A few short parameters; what is broken in them is left out.
    try:
        query = dict(parse_qsl(target.query, keep_blank_values=True, max_num_fields=10))
    except ValueError:
        query = {}
    headers = {name.decode("ascii", "replace"): value.decode("latin-1") for name, value in request.headers}
    return Request(target.path, query, headers)
