"""Status queries and commands: what a command line asks a supervisor or a shard.

Every process answers on a Unix stream socket of its own in the runtime directory, so that a shard tells its state even
while the supervisor is down, and on another one in the status directory (`ipc.query_server`). A question and its answer
are frames: four bytes of length, big-endian, then a msgpack map. Both sides ignore keys they do not know. A connection
may ask again when it has its answer.
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
"""The longest question that is read."""

MAX_REPLY_BYTES = 64 * 1024 * 1024
"""The longest answer that an asker reads."""

MAX_PAGE = 1000
"""Entries of a list in one answer. A process encodes that many in a few milliseconds, between which it serves."""

MAX_PAGE_BYTES = 1024 * 1024
"""Bytes of a list in one answer, but for its last entry."""

_RETRY_INTERVAL = 0.01
"""Seconds between attempts to connect while the backlog of a process is full."""

_ENDING = 0.1
"""Seconds in which the sockets of a process that ends are closed one after another."""

_Shape = TypeVar("_Shape")


class QueryError(Exception):
    """A query had no useful answer."""


class NotReachable(QueryError):
    """Nobody listens at the socket: the process is not running."""


class NoAnswer(QueryError):
    """The process is there and stayed silent for the whole time, or closed the connection."""


class Refused(QueryError):
    """The process understood and said no; the message is its own."""


class Request(msgspec.Struct):
    """One question: a method's name and its arguments."""

    method: str
    arguments: dict[str, Any] = {}


class Reply(msgspec.Struct, omit_defaults=True):
    """One answer: a result, or the reason why there is none."""

    result: Any = None
    error: str | None = None


_reply_decoder = msgspec.msgpack.Decoder(Reply)


def typed(arguments: Mapping[str, Any], shape: type[_Shape]) -> _Shape:
    """The arguments of a question as a *shape*, a struct. Raises `Refused`, which tells what is wrong with them."""
    try:
        return msgspec.convert(dict(arguments), shape)
    except msgspec.ValidationError as error:
        raise Refused(f"arguments of another kind than this query has: {error}") from None


def page_length(limit: int) -> int:
    """How many entries an asker who wants *limit* gets at most: none to `MAX_PAGE`."""
    return max(0, min(limit, MAX_PAGE))


def ask(path: Path, method: str, arguments: dict[str, Any] | None = None, *, timeout: float = 2.0) -> Any:
    """Ask the process at *path* and return its result.

    Raises `NotReachable` at once when nobody listens there, `NoAnswer` after *timeout* seconds, `Refused`, and
    `QueryError` when the answer cannot be read.
    """
    deadline = time.monotonic() + timeout
    answers = ask_many([path], method, arguments, timeout=timeout)
    if path in answers:
        return answers[path]
    # A process that ends may close a connection a moment before its listening socket.
    deadline = min(deadline, time.monotonic() + _ENDING)
    while is_served(path):
        if time.monotonic() >= deadline:
            raise NoAnswer(f"{path}: no answer within {timeout:g} s")
        time.sleep(_RETRY_INTERVAL)
    raise NotReachable(f"{path}: nobody listens there")


def ask_many(
    paths: Iterable[Path], method: str, arguments: dict[str, Any] | None = None, *, timeout: float = 2.0
) -> dict[Path, Any]:
    """Ask several processes at the same time; who does not answer within *timeout* seconds is left out.

    Raises `Refused` when one of them refuses, and `QueryError` when one answers what cannot be read.
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

    Paths that nobody serves, and peers that stay silent or hang up, are missing from the result; all are asked at the
    same time.
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
            # Once more at the end: a process that was stopped until then has not read what came.
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
        """Connect and ask; False when nobody listens. A full backlog is no error: `is_connected` stays False."""
        try:
            self.sock.connect(os.fspath(self.path))
            # A frame fits into an empty socket: at least 2 KiB is there by socket(7), and 208 KiB by default.
            self.is_connected = self.sock.send(self._frame) == len(self._frame)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return self.is_connected

    def read(self) -> bool:
        """Read what has come; whether there is nothing more to wait for: `answer` is there, or there will be none."""
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
