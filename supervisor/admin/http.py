"""HTTP for the admin endpoint: GET and HEAD, with limits on all resources. h11 reads and writes the protocol.

A client gets a bounded header, a bounded time, and one of `MOST_CONNECTIONS` places. With all places taken a new
connection takes the place of another one. So no number of connections keeps a health check out.
`HttpConnection.rank` decides which connection is closed, in this order: an incomplete header, an idle connection, an
unread answer, a request at work, a stream.

Reading, answering and rendering share `PART` of a processor (`ipc.turns`), with one request in a turn of the
loop. So many requests in a row do not delay agents.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Hashable
from http import HTTPStatus
from time import monotonic
from typing import NamedTuple

import h11

from ipc.limited import LimitedConnection, LimitedListener, Limits
from ipc.logs import get_logger
from ipc.turns import Share, Turns
from supervisor.admin.request import Request, plain

HEADER_LIMIT = 8192
"""Bytes of a request. A request has only a header."""

MOST_CONNECTIONS = 32
"""The most open connections. They count against the supervisor's descriptors."""

MOST_OF_A_PEER = 24
"""The most open connections of one address, or of one user of a Unix socket."""

MOST_PENDING = 64
"""Connections that wait for their turn to begin: more than one client has that asks for as much as it can."""

MOST_UNREAD = 1 << 20
"""Bytes of a stream that may wait for its client to read."""

MOST_UNREAD_IN_ALL = 16 << 20
"""Bytes of all answers that may wait for clients to read. Above it the connection with most of them is closed."""

REQUEST_SECONDS = 10.0
"""The most time from the first byte of a request, or from accept, to the end of its header."""

IDLE_SECONDS = 75.0
"""The most time between two requests, and for reading an answer. A client that asks each minute stays connected."""

LINGER_SECONDS = 1.0
"""The time for reading a refusal. Bytes that still arrive are dropped meanwhile."""

PART = 0.03
"""Part of a processor that the endpoint may use, enough for some 200 requests per second."""

BURST_SECONDS = 0.05
"""Seconds of processor time that may be saved up. All metrics of 64 shards take 40 ms."""

TEXT = "text/plain; charset=utf-8"

_ALLOWED = "GET, HEAD, OPTIONS"

_ALWAYS = (
    ("Cache-Control", "no-store"),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
)


class Response(NamedTuple):
    """An answer. With *follow* it is a stream that begins with *body*. *follow* gets a `Stream` to write the rest."""

    status: int
    content_type: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    follow: "Callable[[Stream], None] | None" = None


# HAProxy sends OPTIONS, without a Host, as the default of "option httpchk".
_OPTIONS = Response(200, TEXT, f"{_ALLOWED}\n".encode(), (("Allow", _ALLOWED),))

Handler = Callable[[Request], Response | Awaitable[Response]]


class Stream:
    """The rest of an answer without an end. *on_lost* is called when the client is gone."""

    def __init__(self, write: Callable[[bytes], bool]) -> None:
        self.write = write
        """Sends more bytes. Returns False when the client is gone, or is closed because it does not read."""
        self.on_lost: Callable[[], None] | None = None


def admin_turns() -> Turns:
    """The turns for all work of the endpoint, on the running loop."""
    return Turns(Share(PART, BURST_SECONDS, monotonic()))


class HttpServer:
    """Answers requests on a listening socket by calling *handler* in *turns*. *handler* must not block."""

    def __init__(self, handler: Handler, turns: Turns | None = None) -> None:
        self.handler = handler
        self._turns = turns or admin_turns()
        self._listeners: list[LimitedListener] = []

    @property
    def connections(self) -> list[LimitedConnection]:
        """The open connections."""
        return [connection for listener in self._listeners for connection in listener.connections]

    def accept_on(self, sock: socket.socket) -> None:
        """Accept on *sock*, and stop accepting on the socket before it."""
        old, self._listeners = self._listeners, [LimitedListener(sock, self._connection, admin_limits, self._turns)]
        for listener in old:
            listener.close()

    def close(self) -> None:
        """Stop accepting, and close every connection, including streams."""
        for listener in self._listeners:
            listener.close()
        self._turns.close()

    def _connection(self, listener: LimitedListener, sock: socket.socket, peer: Hashable) -> "HttpConnection":
        return HttpConnection(listener, sock, peer, self.handler)


class HttpConnection(LimitedConnection):
    """One client."""

    def __init__(self, listener: LimitedListener, sock: socket.socket, peer: Hashable, handler: Handler) -> None:
        super().__init__(listener, sock, peer)
        self._handler = handler
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEADER_LIMIT)
        self._request: h11.Request | None = None
        self._task: asyncio.Task[None] | None = None
        self._stream: Stream | None = None
        self._answered = 0
        self._has_part = self._is_at_work = self._is_refused = False
        self._since = monotonic()
        self.expire_in(REQUEST_SECONDS)

    @property
    def rank(self) -> tuple[float, ...]:
        """The connection with the lowest rank makes room for a new one; see the module."""
        if self._stream is not None:
            return (4, self._since)
        if self._is_at_work:
            # Lowest is the connection with the most answers. A check that asks once ranks higher.
            return (3, -self._answered)
        if self.unsent:
            return (2, self._since)
        is_idle = self._answered > 0 and not self._has_part
        return (1 if is_idle else 0, self._since)

    def received(self, data: bytes) -> None:
        """Take bytes of a request."""
        if self._is_refused or self._stream is not None:
            # Keep reading, to notice that the client closes.
            self.read()
            return
        if not self._has_part:
            self._has_part = True
            self.expire_in(REQUEST_SECONDS)
        self._http.receive_data(data)
        self._advance()

    def sent(self) -> None:
        """Continue after an answer was sent."""
        if self._stream is not None:
            return
        if self._is_refused:
            # A close with unread bytes sends a reset, which may destroy the answer (RFC 1122, 4.2.2.13).
            self.end()
            self.expire_in(LINGER_SECONDS)
            self.read()
            return
        if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
            self.close()
            return
        self._http.start_next_cycle()
        self._request = None
        self._since = monotonic()
        self._has_part = self._is_at_work = bool(self._http.trailing_data[0])
        if self._has_part:
            self.expire_in(REQUEST_SECONDS)
            self.turn(self._advance)
        else:
            self.expire_in(IDLE_SECONDS)
            self.read()

    def lost(self) -> None:
        """Cancel the task and the stream of the connection."""
        if self._task is not None:
            self._task.cancel()
        if self._stream is not None and self._stream.on_lost is not None:
            self._stream.on_lost()

    # Inside.

    def _advance(self) -> None:
        """Parse the received bytes, up to the end of one request."""
        self._is_at_work = False
        try:
            while True:
                event = self._http.next_event()
                if isinstance(event, h11.Request):
                    self._request = event
                    if event.method not in (b"GET", b"HEAD", b"OPTIONS"):
                        self._refuse(405, "GET and HEAD only: nothing can be changed here", ("Allow", _ALLOWED))
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
                    self.read()
                    return
        except h11.RemoteProtocolError as error:
            self._refuse(error.error_status_hint, "not a request that this server understands")

    def _answer(self) -> None:
        assert self._request is not None
        self._is_at_work = True
        if self._request.method == b"OPTIONS":
            self._respond(_OPTIONS)
            return
        request = plain(self._request)
        if request is None:
            self._refuse(400, "ask for a path: it begins with /")
            return
        try:
            response = self._handler(request)
        except Exception as error:  # noqa: BLE001 - a defect in an answer must not cost more than this answer
            self._fail(error)
            return
        if isinstance(response, Response):
            self._respond(response)
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
        # Writing takes a turn, like reading.
        self.turn(lambda: self._respond(response))

    def _fail(self, error: Exception) -> None:
        self._loop.call_exception_handler({"message": "an admin request could not be answered", "exception": error})
        self._respond(Response(500, TEXT, b"this could not be answered; the log says why\n"))

    def _refuse(self, status: int, message: str, *headers: tuple[str, str]) -> None:
        """Answer with *status*. Close when the client has read it, or after `LINGER_SECONDS`."""
        get_logger().debug("admin request refused", status=status)
        if self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.close()
            return
        self._is_refused, self._is_at_work = True, False
        self.expire_in(LINGER_SECONDS)
        self._write(Response(status, TEXT, f"{message}\n".encode(), (*headers, ("Connection", "close"))))

    def _respond(self, response: Response) -> None:
        if self.is_closed:
            return
        self._answered += 1
        self._is_at_work, self._since = False, monotonic()
        is_head = self._request is not None and self._request.method == b"HEAD"
        if response.follow is None or is_head:
            self.expire_in(IDLE_SECONDS)
            self._write(response)
            return
        self.expire_in(None)
        self._stream = Stream(self._write_more)
        self._write(response)
        if not self.is_closed:
            self.read()
            response.follow(self._stream)

    def _write(self, response: Response) -> None:
        """Write an answer, or the beginning of a stream."""
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
        self.write(b"".join(part for part in parts if part))

    def _write_more(self, data: bytes) -> bool:
        if self.is_closed:
            return False
        if self.unsent > MOST_UNREAD:
            self.close()
            return False
        self.write(self._http.send(h11.Data(data=data)) or b"")
        return not self.is_closed


def admin_limits() -> Limits:
    """What all clients together may take."""
    return Limits(MOST_CONNECTIONS, MOST_OF_A_PEER, MOST_UNREAD_IN_ALL, MOST_PENDING)
