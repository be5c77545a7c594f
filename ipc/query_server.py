"""Answers queries (`ipc.query`) on a Unix socket, for operators or for users with read-only access.

The socket of the runtime directory is for the user of shardgate, which may act. The socket of the status directory is
for other users, which may only read. They get a tenth of a processor, few connections each, and a bounded number of
unread bytes. So a query socket is a `LimitedListener` and no ZeroMQ socket. ZeroMQ aborts its process when it accepts
at the descriptor limit, and its high water mark counts messages, not bytes.
"""

import asyncio
import socket
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import msgspec

from ipc.limited import LimitedConnection, LimitedListener, Limits
from ipc.query import HEADER, MAX_QUESTION_BYTES, Refused, Reply, Request
from ipc.sockets import bind_private
from ipc.turns import Share, Turns

BACKLOG = 128

QUESTION_TIMEOUT = 10.0
"""Seconds from connecting, or from an answer, to the end of the next question."""

ANSWER_TIMEOUT = 10.0
"""Seconds that a peer has to read an answer."""

MAX_ANSWER_BYTES = 16 * 1024 * 1024
"""A longer answer is replaced by an error. Askers get lists in pages, see `ipc.query.MAX_PAGE`."""


class Access(NamedTuple):
    """Resources for the peers of one socket: `Limits`, and a part of the processor (1: no limit beside the turns)."""

    limits: Limits
    part: float


OPERATORS = Access(Limits(connections=32, each=32, unsent=64 * 1024 * 1024, pending=16), 1.0)
"""For the user of shardgate. Its descriptors come out of the reserve of `ipc.process.DescriptorBudget`."""

LOOKERS = Access(Limits(connections=32, each=8, unsent=8 * 1024 * 1024, pending=32), 0.1)
"""For users with read-only access. A `DescriptorBudget` counts these connections as expected."""

_BURST = 0.1
"""Seconds of processor time that a share may save up."""

_TOO_MUCH = msgspec.msgpack.encode(
    Reply(error=f"not a query: one question at a time, of at most {MAX_QUESTION_BYTES} bytes")
)

_decoder = msgspec.msgpack.Decoder(Request)

Method = Callable[[dict[str, Any]], Any]


class QueryServer:
    """Answers queries on one socket with the functions in *methods*.

    An unknown method is answered with *refusal*, or with a general error when *refusal* is empty. A method takes the
    arguments and returns a value that msgspec can encode. The asker gets the message of a `Refused`. Any other
    exception goes to the loop's exception handler, and the asker gets an error. *mode* is called whenever the socket is
    made.

    The constructor raises OSError when the socket cannot be made. With *may_wait* it does not, and the server answers
    once `bind` has succeeded.
    """

    def __init__(
        self,
        path: Path,
        methods: Mapping[str, Method],
        *,
        mode: Callable[[], int] = lambda: 0o600,
        refusal: str = "",
        access: Access = OPERATORS,
        may_wait: bool = False,
    ) -> None:
        self.path = path
        self._methods = methods
        self._refusal = refusal
        self._mode = mode
        self._limits = access.limits
        share = None if access.part >= 1 else Share(access.part, _BURST, monotonic())
        self._turns = Turns(share)
        self._open: tuple[socket.socket, LimitedListener] | None = None
        try:
            self.bind()
        except OSError:
            if not may_wait:
                raise

    def bind(self) -> None:
        """Listen, or listen again after the socket's file was removed. Raises OSError when that is not possible."""
        opened = self._listen()
        self._close_socket()
        self._open = opened

    def _close_socket(self) -> None:
        if self._open is not None:
            sock, listener = self._open
            listener.close()
            sock.close()
            self._open = None

    def _listen(self) -> tuple[socket.socket, LimitedListener]:
        sock = bind_private(self.path, socket.SOCK_STREAM, self._mode())
        sock.listen(BACKLOG)
        return sock, LimitedListener(sock, self._connection, lambda: self._limits, self._turns)

    def close(self) -> None:
        """Stop answering. The socket's file stays, because a successor may have bound the path by now."""
        self._close_socket()
        self._turns.close()

    def answer(self, payload: bytes) -> bytes:
        """Return the encoded reply to a question. *payload* may be any bytes."""
        try:
            answer = msgspec.msgpack.encode(self._reply_to(payload))
        except Exception as error:  # noqa: BLE001 - a defect in one answer must not cost more than this answer
            loop = asyncio.get_running_loop()
            loop.call_exception_handler({"message": "a query could not be answered", "exception": error})
            failed = Reply(error="the query failed; the log of the process that was asked says why")
            return msgspec.msgpack.encode(failed)
        if len(answer) > MAX_ANSWER_BYTES:
            return msgspec.msgpack.encode(Reply(error="the answer is too large; ask for a shorter list"))
        return answer

    def _connection(self, listener: LimitedListener, sock: socket.socket, peer: Hashable) -> "_QueryConnection":
        return _QueryConnection(listener, sock, peer, self.answer)

    def _reply_to(self, payload: bytes) -> Reply:
        try:
            request = _decoder.decode(payload)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            return Reply(error=f"not a query: {error}")
        method = self._methods.get(request.method)
        if method is None:
            unknown = f"unknown query {request.method[:64]!r}; this process may be of another version"
            return Reply(error=self._refusal or unknown)
        try:
            return Reply(result=method(request.arguments))
        except Refused as refusal:
            return Reply(error=str(refusal))


class _QueryConnection(LimitedConnection):
    """One asker. The server reads a question only after it has sent the answer before it."""

    def __init__(
        self, listener: LimitedListener, sock: socket.socket, peer: Hashable, answer: Callable[[bytes], bytes]
    ) -> None:
        super().__init__(listener, sock, peer)
        self._answer = answer
        self._received = b""
        self._is_last = False
        self._since = monotonic()
        self.expire_in(QUESTION_TIMEOUT)

    @property
    def rank(self) -> tuple[float, ...]:
        """Lowest is the connection that asked nothing for longest. One with an unread answer ranks above the others."""
        return (self.unsent > 0, self._since)

    def received(self, data: bytes) -> None:
        """Take bytes of a question. A question that is too long gets an error, and so do two questions at a time."""
        self._received += data
        if len(self._received) < HEADER.size:
            self.read()
            return
        (length,) = HEADER.unpack_from(self._received)
        missing = HEADER.size + length - len(self._received)
        if length > MAX_QUESTION_BYTES or missing < 0:
            self._is_last = True
            self._reply(_TOO_MUCH)
        elif missing:
            self.read()
        else:
            self._reply(self._answer(self._received[HEADER.size :]))

    def sent(self) -> None:
        """Wait for the next question."""
        if self._is_last:
            self.close()
            return
        self._since = monotonic()
        self.expire_in(QUESTION_TIMEOUT)
        self.read()

    def _reply(self, answer: bytes) -> None:
        self._received = b""
        self.expire_in(ANSWER_TIMEOUT)
        self.write(HEADER.pack(len(answer)) + answer)
