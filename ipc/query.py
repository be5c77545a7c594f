"""Status queries and commands: what a command line asks a supervisor or a shard.

Every process answers on a socket of its own in the runtime directory, so that a shard tells its state even while
the supervisor is down. Requests and replies are msgpack maps; both sides ignore keys they do not know.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from ipc import bus


class QueryError(Exception):
    """A query had no useful answer."""


class NotReachable(QueryError):
    """Nobody listens at the socket: the process is not running."""


class NoAnswer(QueryError):
    """The process is there and stayed silent for the whole time."""


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


_request_decoder = msgspec.msgpack.Decoder(Request)
_reply_decoder = msgspec.msgpack.Decoder(Reply)

Method = Callable[[dict[str, Any]], Any]


class QueryServer:
    """Answers queries on one socket with the functions in *methods*.

    Whoever asks for another one hears *refusal*, where there is one. A method takes the arguments and returns what
    msgspec can encode; a `Refused` that it raises reaches the asker. What else it raises goes to the loop's exception
    handler, and the asker hears that there is no answer to wait for.
    """

    def __init__(self, path: Path, methods: Mapping[str, Method], *, mode: int = 0o600, refusal: str = "") -> None:
        self._methods = methods
        self._refusal = refusal
        self._bus = bus.Bus.router(self._answer)
        self.path = path
        self._mode = mode
        self.bind()

    def bind(self) -> None:
        """Listen, or listen again where the socket's file is gone; OSError when that is not possible."""
        self._bus.bind(self.path, self._mode)

    def close(self) -> None:
        """Stop answering."""
        self._bus.close()

    def _answer(self, parts: list[bytes]) -> None:
        try:
            reply = msgspec.msgpack.encode(self._reply_to(parts[-1]))
        except Exception:
            failed = Reply(error="the query failed; the log of the process that was asked says why")
            self._bus.send(parts[0], msgspec.msgpack.encode(failed))
            raise
        self._bus.send(parts[0], reply)

    def _reply_to(self, payload: bytes) -> Reply:
        try:
            request = _request_decoder.decode(payload)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            return Reply(error=f"not a query: {error}")
        method = self._methods.get(request.method)
        if method is None:
            unknown = f"unknown query {request.method!r}; this process may be of another version"
            return Reply(error=self._refusal or unknown)
        try:
            return Reply(result=method(request.arguments))
        except Refused as refusal:
            return Reply(error=str(refusal))


def ask(path: Path, method: str, arguments: dict[str, Any] | None = None, *, timeout: float = 2.0) -> Any:
    """Ask the process at *path* and return its result.

    Raises `NotReachable` at once when nobody listens there, `NoAnswer` after *timeout* seconds, `Refused`, and
    `QueryError` when the answer cannot be read.
    """
    answers = ask_many([path], method, arguments, timeout=timeout)
    if path in answers:
        return answers[path]
    if bus.is_served(path):
        raise NoAnswer(f"{path}: no answer within {timeout:g} s")
    raise NotReachable(f"{path}: nobody listens there")


def ask_many(
    paths: Iterable[Path], method: str, arguments: dict[str, Any] | None = None, *, timeout: float = 2.0
) -> dict[Path, Any]:
    """Ask several processes at the same time; who does not answer within *timeout* seconds is left out.

    Raises `Refused` when one of them refuses, and `QueryError` when one answers what cannot be read.
    """
    payload = msgspec.msgpack.encode(Request(method, arguments or {}))
    results = {}
    for path, answer in bus.request(paths, payload, timeout).items():
        try:
            reply = _reply_decoder.decode(answer)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise QueryError(f"{path}: an answer that cannot be read: {error}") from error
        if reply.error is not None:
            raise Refused(reply.error)
        results[path] = reply.result
    return results
