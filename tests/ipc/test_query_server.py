"""The end of a process that answers queries: what its peers cannot take from it."""

import asyncio
import os
import select
import socket
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.child import StartChild
from support.loop import Loop, scenario

from ipc import query, query_server
from ipc.limited import Limits
from ipc.query import HEADER, MAX_QUESTION_BYTES, Reply, Request, ask
from ipc.query_server import LOOKERS, Access, QueryServer

SERVER = """
import asyncio, os, resource, sys
from pathlib import Path
import uvloop
from ipc.query_server import LOOKERS, QueryServer


async def main():
    loop = asyncio.get_running_loop()
    held = []

    def fill():
        try:
            while True:
                held.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            print("full", flush=True)

    def obey():
        if sys.stdin.readline() == "fill\\n":
            fill()
        else:
            while held:
                os.close(held.pop())
            print("free", flush=True)

    QueryServer(Path(sys.argv[1]), {"echo": lambda a: a, "long": lambda a: bytes(1 << 20)}, access=LOOKERS)
    loop.add_reader(0, obey)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
    print("serves", flush=True)
    await loop.create_future()

asyncio.Runner(loop_factory=uvloop.new_event_loop).run(main())
"""

CROWD = """
import resource, socket, struct, sys
path, number, question = sys.argv[1], int(sys.argv[2]), bytes.fromhex(sys.argv[3])
held = []
for _ in range(number):
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    try:
        sock.sendall(question)
    except OSError:
        pass  # It made room already.
    held.append(sock)
print("connected", flush=True)
sys.stdin.readline()
"""
"""Connections that hold on, each with a question that is asked and not read."""


def asked(method: str, **arguments: Any) -> bytes:
    """A question as bytes."""
    payload = msgspec.msgpack.encode(Request(method, arguments))
    return HEADER.pack(len(payload)) + payload


def resident(pid: int) -> int:
    """Bytes of memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("question", [b"", b"\0", asked("long"), asked("long") * 20])
def test_crowd_of_connections_keeps_no_other_out_and_costs_little(
    folder: Path, start: StartChild, question: bytes
) -> None:
    path = folder / "server"
    server = start(SERVER, path)
    assert server.line() == "serves"
    assert ask(path, "echo", {"n": 1}, timeout=30) == {"n": 1}
    before = resident(server.pid)
    crowds = [start(CROWD, path, 150, question.hex()) for _ in range(2)]
    for crowd in crowds:
        assert crowd.line() == "connected"

    assert ask(path, "echo", {"n": 2}, timeout=30) == {"n": 2}
    assert len(list(Path(f"/proc/{server.pid}/fd").iterdir())) < 60
    assert resident(server.pid) - before < 24 << 20


def test_process_without_descriptors_lives_and_answers_when_it_has_some(folder: Path, start: StartChild) -> None:
    path = folder / "server"
    server = start(SERVER, path)
    assert server.line() == "serves"
    server.say("fill")
    assert server.line() == "full"
    with pytest.raises(query.NoAnswer):
        ask(path, "echo", timeout=0.3)
    server.say("free")
    assert server.line() == "free"
    assert ask(path, "echo", {"n": 1}, timeout=30) == {"n": 1}


@scenario
async def test_question_that_does_not_come_to_its_end_is_cut_off(
    loop: Loop, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query_server, "QUESTION_TIMEOUT", 0.2)
    server = QueryServer(folder / "server", {})
    for part in (b"", b"\0", asked("x")[:-1]):
        reader, writer = await asyncio.open_unix_connection(str(folder / "server"))
        writer.write(part)
        assert await reader.read() == b""
        writer.close()
    server.close()
    await loop.turns(3)


@scenario
async def test_answer_that_is_not_read_is_dropped_in_time(
    loop: Loop, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query_server, "ANSWER_TIMEOUT", 0.2)
    server = QueryServer(folder / "server", {"long": lambda _: bytes(4 << 20)})
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(folder / "server"))
        client.sendall(asked("long"))
        client.setblocking(False)
        poll = select.poll()
        poll.register(client, 0)
        await loop.until(lambda: poll.poll(0) == [(client.fileno(), select.POLLHUP)], "the end of the connection")
        received = 0
        while data := client.recv(1 << 20):
            received += len(data)
        assert received < 4 << 20
    server.close()


@scenario
async def test_connections_are_answered_one_in_a_turn_of_the_loop(loop: Loop, folder: Path) -> None:
    turn, seen = 0, []
    running = asyncio.get_running_loop()

    def count() -> None:
        nonlocal turn
        turn += 1
        running.call_soon(count)

    server = QueryServer(folder / "server", {"when": lambda _: seen.append(turn)})
    clients = [await asyncio.open_unix_connection(str(folder / "server")) for _ in range(10)]
    count()
    for _ in range(3):
        for _, writer in clients:
            writer.write(asked("when"))
        for reader, _ in clients:
            (length,) = HEADER.unpack(await reader.readexactly(HEADER.size))
            assert msgspec.msgpack.decode(await reader.readexactly(length), type=Reply) == Reply()
    assert len(seen) == len(set(seen)) == 30
    for _, writer in clients:
        writer.close()
    server.close()


@scenario
async def test_two_questions_at_once_and_a_long_one_are_answered_with_an_error(loop: Loop, folder: Path) -> None:
    server = QueryServer(folder / "server", {"echo": lambda arguments: arguments})
    for wrong in (asked("echo") * 2, HEADER.pack(MAX_QUESTION_BYTES + 1), b"\xff" + bytes(8) + b"\x7f"):
        reader, writer = await asyncio.open_unix_connection(str(folder / "server"))
        writer.write(wrong)
        reply = msgspec.msgpack.decode((await reader.read())[HEADER.size :], type=Reply)
        assert reply.error is not None
        assert reply.error.startswith("not a query: ")
        writer.close()
    server.close()


@scenario
async def test_one_user_of_many_takes_only_own_places(loop: Loop, folder: Path) -> None:
    """With another limit for one user than for all, the connection that has waited longest makes room."""
    access = Access(Limits(connections=8, each=3, unsent=1 << 20, pending=8), 1.0)
    server = QueryServer(folder / "server", {"echo": lambda arguments: arguments}, access=access)
    clients = [await asyncio.open_unix_connection(str(folder / "server")) for _ in range(5)]
    for reader, _ in clients[:2]:
        assert await reader.read() == b""
    for reader, writer in clients[2:]:
        writer.write(asked("echo"))
        assert len(await reader.readexactly(HEADER.size)) == HEADER.size
    for _, writer in clients:
        writer.close()
    server.close()


def test_lookers_are_few_enough_for_the_reserve_of_descriptors() -> None:
    assert LOOKERS.limits.each < LOOKERS.limits.connections <= 32
    assert LOOKERS.part < 0.5
