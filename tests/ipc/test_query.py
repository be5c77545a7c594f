"""Questions to processes: every way to get an answer, a refusal or none."""

import contextlib
import json
import os
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.child import StartChild
from support.loop import Loop, scenario

from ipc import query
from ipc.query import NoAnswer, NotReachable, QueryError, Refused, ask, ask_many
from ipc.query_server import QueryServer
from ipc.sockets import is_served

SERVER = """
import asyncio, json, sys
from pathlib import Path
import uvloop
from ipc.query import Refused
from ipc.query_server import QueryServer


def refuse(arguments):
    raise Refused("not now: " + arguments["why"])


async def main():
    errors = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: errors.append(type(context["exception"]).__name__))
    QueryServer(Path(sys.argv[1]), {
        "echo": lambda arguments: [sys.argv[1], arguments],
        "nothing": lambda _: None,
        "refuse": refuse,
        "fails": lambda arguments: arguments["missing"],
        "unspeakable": lambda _: object(),
        "errors": lambda _: errors,
    })
    print("serves", flush=True)
    await loop.create_future()

asyncio.Runner(loop_factory=uvloop.new_event_loop).run(main())
"""

FOR_EVER = 3600.0
"""A timeout that no test waits for: the answer has to come at once."""


@pytest.fixture
def server(folder: Path, start: StartChild) -> Any:
    """A process that answers at *folder*/server."""
    child = start(SERVER, folder / "server")
    assert child.line() == "serves"
    return child


@pytest.fixture
def path(folder: Path, server: Any) -> Path:
    """Where a process answers."""
    return folder / "server"


def test_ask_returns_what_the_method_returns(path: Path) -> None:
    arguments = {"agent": "waf-1", "after": 7, "raw": b"\xff\x00", "list": [1, None, 1.5]}
    assert ask(path, "echo", arguments, timeout=FOR_EVER) == [str(path), arguments]
    assert ask(path, "echo", timeout=FOR_EVER) == [str(path), {}]
    assert ask(path, "nothing", timeout=FOR_EVER) is None


def test_a_refusal_arrives_in_the_words_of_who_refused(path: Path) -> None:
    with pytest.raises(Refused, match=r"^not now: too busy$"):
        ask(path, "refuse", {"why": "too busy"}, timeout=FOR_EVER)


def test_an_unknown_method_is_refused_by_name(path: Path) -> None:
    with pytest.raises(Refused, match=r"unknown query 'sing'.*another version"):
        ask(path, "sing", timeout=FOR_EVER)


@pytest.mark.parametrize(("method", "error"), [("fails", "KeyError"), ("unspeakable", "TypeError")])
def test_a_method_that_fails_is_told_at_once_and_logged_where_it_failed(path: Path, method: str, error: str) -> None:
    with pytest.raises(Refused, match=r"failed.*log"):
        ask(path, method, timeout=FOR_EVER)
    assert ask(path, "errors", timeout=FOR_EVER) == [error]


UNREADABLE = [
    b"",
    b"\xc1",
    b"GET / HTTP/1.1\r\n\r\n",
    msgspec.msgpack.encode(["echo"]),
    msgspec.msgpack.encode({"arguments": {}}),
    msgspec.msgpack.encode({"method": 7}),
    msgspec.msgpack.encode({"method": "echo", "arguments": [1]}),
    msgspec.msgpack.encode({"method": "echo"})[:-1],
    b"\x81" + msgspec.msgpack.encode("method") + b"\xa1\xff",
    b"\x82" + b"".join(map(msgspec.msgpack.encode, ("method", "echo", "more"))) + b"\x91" * 100_000 + b"\xc0",
    json.dumps({"method": "echo"}).encode(),
]


def test_a_question_that_cannot_be_read_gets_an_error_as_answer(path: Path) -> None:
    for payload in UNREADABLE:
        answers = query.request([path], payload, FOR_EVER)
        reply = msgspec.msgpack.decode(answers[path], type=query.Reply)
        assert reply.error is not None, payload
        assert reply.error.startswith("not a query: "), payload
        assert reply.result is None
    assert ask(path, "errors", timeout=FOR_EVER) == []


def test_keys_of_a_newer_version_are_ignored_on_both_sides(path: Path) -> None:
    payload = msgspec.msgpack.encode({"method": "nothing", "arguments": {}, "color": "blue"})
    [answer] = query.request([path], payload, FOR_EVER).values()
    assert msgspec.msgpack.decode(answer) == {}


NEWER = """
import sys
import socket, struct
import msgspec

listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
print("serves", flush=True)
while True:
    peer, _ = listener.accept()
    [length] = struct.unpack(">I", peer.recv(4))
    method = msgspec.msgpack.decode(peer.recv(length))["method"]
    answers = {
        "newer": msgspec.msgpack.encode({"result": 1, "color": "blue"}),
        "garbage": b"\\xc1",
        "text": b"\\x81" + msgspec.msgpack.encode("error") + b"\\xa1\\xff",
        "deep": b"\\x81" + msgspec.msgpack.encode("result") + b"\\x91" * 100_000 + b"\\xc0",
    }
    peer.sendall(struct.pack(">I", len(answers[method])) + answers[method])
    peer.close()
"""


def test_an_answer_that_cannot_be_read_is_a_query_error(folder: Path, start: StartChild) -> None:
    assert start(NEWER, folder / "newer").line() == "serves"
    assert ask(folder / "newer", "newer", timeout=FOR_EVER) == 1
    for method in ("garbage", "text", "deep"):
        with pytest.raises(QueryError, match="cannot be read") as raised:
            ask(folder / "newer", method, timeout=FOR_EVER)
        assert type(raised.value) is QueryError


# ---- nobody, or nobody who talks


def test_a_missing_socket_is_not_reachable_at_once(folder: Path) -> None:
    with pytest.raises(NotReachable, match="nobody listens"):
        ask(folder / "server", "echo", timeout=FOR_EVER)


def test_the_socket_of_a_killed_process_is_not_reachable_at_once(path: Path, server: Any) -> None:
    server.kill()
    assert path.is_socket()
    with pytest.raises(NotReachable, match="nobody listens"):
        ask(path, "echo", timeout=FOR_EVER)


def test_a_stopped_process_gives_no_answer(path: Path, server: Any) -> None:
    os.kill(server.pid, signal.SIGSTOP)
    with pytest.raises(NoAnswer, match=r"no answer within 0\.2 s"):
        ask(path, "echo", timeout=0.2)
    os.kill(server.pid, signal.SIGCONT)
    assert ask(path, "echo", timeout=FOR_EVER) == [str(path), {}]


def test_a_stopped_process_is_there_however_often_it_was_asked(path: Path, server: Any) -> None:
    """Each question stays in its backlog, and a full one must not look like nobody."""
    os.kill(server.pid, signal.SIGSTOP)
    with contextlib.ExitStack() as stack:

        def fill() -> None:
            for _ in range(10_000):
                sock = stack.enter_context(socket.socket(socket.AF_UNIX))
                sock.setblocking(False)
                sock.connect(os.fspath(path))

        with pytest.raises(BlockingIOError):
            fill()
        with pytest.raises(NoAnswer):
            ask(path, "echo", timeout=0.1)


def test_a_process_that_dies_while_asked_is_not_reachable(folder: Path, start: StartChild) -> None:
    child = start(
        """
import socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
print("serves", flush=True)
peer, _ = listener.accept()
peer.recv(4096)
os._exit(1)
""",
        folder / "server",
    )
    assert child.line() == "serves"
    with pytest.raises(NotReachable):
        ask(folder / "server", "echo", timeout=0.5)


# ---- several at once


def test_ask_many_collects_who_answers_and_skips_the_dead_and_the_silent(folder: Path, start: StartChild) -> None:
    paths = {name: folder / name for name in ("one", "two", "stopped", "dead", "missing")}
    children = {name: start(SERVER, path) for name, path in paths.items() if name != "missing"}
    for child in children.values():
        assert child.line() == "serves"
    children["dead"].kill()
    os.kill(children["stopped"].pid, signal.SIGSTOP)

    answers = ask_many(paths.values(), "echo", {"n": 1}, timeout=0.3)
    assert answers == {paths[name]: [str(paths[name]), {"n": 1}] for name in ("one", "two")}
    assert ask_many([paths["dead"], paths["missing"]], "echo", timeout=FOR_EVER) == {}
    assert ask_many([], "echo", timeout=FOR_EVER) == {}
    with pytest.raises(Refused, match="not now"):
        ask_many([paths["one"], paths["two"]], "refuse", {"why": ""}, timeout=FOR_EVER)


@scenario
async def test_a_closed_server_is_not_reachable(loop: Loop, folder: Path) -> None:
    server = QueryServer(folder / "server", {})
    assert is_served(folder / "server")
    server.close()
    await loop.until(lambda: not is_served(folder / "server"), "the end of the server")


# ---- bytes to and fro

ANSWERING = """
import socket, struct, sys

listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
print("serves", flush=True)
while True:
    peer, _ = listener.accept()
    [length] = struct.unpack(">I", peer.recv(4, socket.MSG_WAITALL) or bytes(4))
    answer = peer.recv(length).upper()
    peer.sendall(struct.pack(">I", length) + answer) if answer else None
    peer.close()
"""


def test_request_collects_answers_and_leaves_out_who_is_not_there_or_silent(folder: Path, start: StartChild) -> None:
    paths = {name: folder / name for name in ("one", "two", "stopped", "dead", "missing", "file")}
    children = {name: start(ANSWERING, paths[name]) for name in ("one", "two", "stopped", "dead")}
    for child in children.values():
        assert child.line() == "serves"
    children["dead"].kill()
    os.kill(children["stopped"].pid, signal.SIGSTOP)
    paths["file"].touch()

    assert {name for name, path in paths.items() if is_served(path)} == {"one", "two", "stopped"}
    answers = query.request(paths.values(), b"question", 0.3)
    assert answers == {paths["one"]: b"QUESTION", paths["two"]: b"QUESTION"}
    # Nobody to wait for: the time does not matter.
    assert query.request([paths["dead"], paths["missing"], paths["file"]], b"question", 3600) == {}
    assert paths["dead"].is_socket(), "asking removes nothing"
    # With the first answer of everybody there is nothing to wait for either.
    assert len(query.request([paths["one"], paths["two"]], b"question", 3600)) == 2


@pytest.mark.parametrize("length", [107, 108, 300])
def test_a_path_that_no_socket_can_have_is_served_by_nobody(folder: Path, length: int) -> None:
    path = folder / ("x" * (length - len(str(folder)) - 1))
    assert len(str(path)) == length
    assert not is_served(path)
    assert query.request([path], b"question", 3600) == {}


def test_an_asker_that_was_stopped_past_its_deadline_still_reads_the_answer_that_came(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered = threading.Event()

    def serve(listener: socket.socket) -> None:
        peer, _ = listener.accept()
        with peer:
            peer.recv(1000)
            peer.sendall(query.HEADER.pack(6) + b"answer")
            answered.set()
            peer.recv(1)

    class Clock:
        """Stands for a stop behind its first look, until the answer has come."""

        looks = 0

        def monotonic(self) -> float:
            self.looks += 1
            if self.looks > 1:
                assert answered.wait(10)
            return 0.0 if self.looks == 1 else 1000.0

    with socket.socket(socket.AF_UNIX) as listener, monkeypatch.context() as patch:
        listener.bind(str(folder / "s"))
        listener.listen()
        server = threading.Thread(target=serve, args=(listener,))
        server.start()
        patch.setattr(query, "time", Clock())
        assert query.request([folder / "s"], b"question", 2.0) == {folder / "s": b"answer"}
    server.join(10)
