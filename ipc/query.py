"""Status queries and commands from a command line to a supervisor or a shard.

Every process answers on a Unix stream socket of its own in the runtime directory. So a shard reports its state even
while the supervisor is down. It answers on a second socket in the status directory (`ipc.query_server`). A question and
its answer are frames: four bytes of length, big-endian, then a msgpack map. Both sides ignore unknown keys. An asker
may send the next question on a connection after it has received the answer.
"""

import contextlib
import os
import selectors
import socket
import struct
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from ipc.sockets import is_served

HEADER = struct.Struct(">I")

MAX_QUESTION_BYTES = 16 * 1024
"""The longest question that a process reads."""

MAX_REPLY_BYTES = 64 * 1024 * 1024
"""The longest answer that an asker reads."""

MAX_PAGE = 1000
"""Entries of a list in one answer. A process encodes them in a few milliseconds, and serves agents between answers."""

MAX_PAGE_BYTES = 1024 * 1024
"""Bytes of a list in one answer, not counting its last entry."""

_RETRY_INTERVAL = 0.01
"""Seconds between attempts to connect while the backlog of a process is full."""

_ENDING = 0.1
"""Seconds that a process may need at its end to close its sockets one after another."""

_Shape = TypeVar("_Shape")


class QueryError(Exception):
    """A query had no useful answer."""


class NotReachable(QueryError):
    """No process listens on the socket: the process is not running."""


class NoAnswer(QueryError):
    """The process is running, but sent no answer in time or closed the connection."""


class Refused(QueryError):
    """The process refused the query. The message comes from the process."""


class Request(msgspec.Struct):
    """One question: a method's name and its arguments."""

    method: str
    arguments: dict[str, Any] = {}


class Reply(msgspec.Struct, omit_defaults=True):
    """One answer: a result or an error."""

    result: Any = None
    error: str | None = None


_reply_decoder = msgspec.msgpack.Decoder(Reply)


def typed(arguments: Mapping[str, Any], shape: type[_Shape]) -> _Shape:
    """Convert the arguments of a question to *shape*, a struct. Raises `Refused` with the reason."""
    try:
        return msgspec.convert(dict(arguments), shape)
    except msgspec.ValidationError as error:
        raise Refused(f"arguments of another kind than this query has: {error}") from None


def page_length(limit: int) -> int:
    """The number of entries for an asker that wants *limit*: between 0 and `MAX_PAGE`."""
    return max(0, min(limit, MAX_PAGE))


def ask(path: Path, method: str, arguments: dict[str, Any] | None = None, *, timeout: float = 2.0) -> Any:
    """Ask the process at *path* and return its result.

    Raises `NotReachable` at once when no process listens there. Raises `NoAnswer` when there is no answer within
    *timeout* seconds, or the process closes the connection. Raises `Refused`, and `QueryError` for an answer that
    cannot be decoded.
    """
    deadline = time.monotonic() + timeout
    answers = ask_many([path], method, arguments, timeout=timeout)
    if path in answers:
        return answers[path]
    # A process may at its end close a connection a moment before its listening socket.
    deadline = min(deadline, time.monotonic() + _ENDING)
    while is_served(path):
        if time.monotonic() >= deadline:
            raise NoAnswer(f"{path}: no answer within {timeout:g} s")
        time.sleep(_RETRY_INTERVAL)
    raise NotReachable(f"{path}: nobody listens there")


def ask_many(
    paths: Iterable[Path], method: str, arguments: dict[str, Any] | None = None, *, timeout: float = 2.0
) -> dict[Path, Any]:
    """Ask several processes at the same time. A process without an answer after *timeout* seconds is left out.

    Raises `Refused` when one of them refuses, and `QueryError` when an answer cannot be decoded.
    """
    payload = msgspec.msgpack.encode(Request(method, arguments or {}))
    results = {}
    for path, answer in request(paths, payload, timeout).items():
        try:
            reply = _reply_decoder.decode(answer)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise QueryError(f"{path}: an answer that cannot be read: {error}") from error
        if reply.error is not None:
            raise Refused(reply.error)
        results[path] = reply.result
    return results


def request(paths: Iterable[Path], payload: bytes, timeout: float) -> Mapping[Path, bytes]:
    """Send *payload* to the process at each of *paths* and collect the answers for at most *timeout* seconds.

    All processes are asked at the same time. A path is missing from the result when no process serves it, or its
    process stays silent or hangs up.
    """
    deadline = time.monotonic() + timeout
    frame = HEADER.pack(len(payload)) + payload
    waiting = {path: _Question(path, frame) for path in paths}
    answers: dict[Path, bytes] = {}
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as stack:
        for question in waiting.values():
            stack.enter_context(question.sock)
        while waiting:
            unconnected = False
            for path, question in list(waiting.items()):
                if not question.is_connected:
                    if not question.connect():
                        del waiting[path]
                    elif question.is_connected:
                        selector.register(question.sock, selectors.EVENT_READ, question)
                    unconnected |= not question.is_connected
            left = deadline - time.monotonic()
            if not waiting:
                break
            # Read once more after the deadline: this process may have been stopped, with answers waiting.
            for key, _ in selector.select(max(0.0, min(left, _RETRY_INTERVAL) if unconnected else left)):
                asked: _Question = key.data
                if asked.read():
                    if asked.answer is not None:
                        answers[asked.path] = asked.answer
                    selector.unregister(asked.sock)
                    del waiting[asked.path]
            if left <= 0:
                break
    return answers


class _Question:
    """A question on its way to one process."""

    def __init__(self, path: Path, frame: bytes) -> None:
        self.path = path
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self.is_connected = False
        self.answer: bytes | None = None
        self._frame = frame
        self._received = bytearray()

    def connect(self) -> bool:
        """Connect and send the question. Returns False on failure. With a full backlog `is_connected` stays False."""
        try:
            self.sock.connect(os.fspath(self.path))
            # A frame fits into the buffer of an empty socket: 208 KiB by default, at least 2 KiB (socket(7)).
            self.is_connected = self.sock.send(self._frame) == len(self._frame)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return self.is_connected

    def read(self) -> bool:
        """Read the received bytes. Returns True when the answer is complete, or will never be."""
        try:
            data = self.sock.recv(1 << 20)
        except BlockingIOError:
            return False
        except OSError:
            return True
        self._received += data
        if len(self._received) >= HEADER.size:
            (length,) = HEADER.unpack_from(self._received)
            if length > MAX_REPLY_BYTES:
                return True
            if len(self._received) >= HEADER.size + length:
                self.answer = bytes(self._received[HEADER.size : HEADER.size + length])
                return True
        return not data
