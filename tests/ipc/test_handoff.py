"""Connections on their way to another process: what arrives, in which order, and over which socket."""

import contextlib
import json
import os
import select
import socket
import stat
from pathlib import Path

import pytest
from support.channels import End, offer, pair, pipes
from support.child import StartChild
from support.loop import Loop, scenario

from ipc import handoff
from ipc.messages import (
    MAX_BATCH,
    Commit,
    Declined,
    Hello,
    Message,
    Prepare,
    Prepared,
    Refuse,
    Revoke,
    TakeBack,
)
from ipc.readiness import Readiness

SHARD = """
import asyncio, fcntl, json, os, socket, sys
from pathlib import Path
import uvloop
from ipc import handoff, messages, tickets


async def main():
    listener = handoff.listen(Path(sys.argv[1]))
    listener.setblocking(True)
    print("listening", flush=True)
    sock, _ = listener.accept()
    lost = asyncio.get_running_loop().create_future()

    def take(message, descriptors):
        for offer, fd in zip(message.offers, descriptors, strict=True):
            connection = socket.socket(fileno=fd)
            facts = {
                "close_on_exec": bool(fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC),
                "non_blocking": not os.get_blocking(fd),
                "no_delay": bool(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)),
                "keep_idle": connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
                "unread": connection.recv(100).decode(),
            }
            connection.sendall(offer.unsent + offer.residue)
            connection.close()
            print(json.dumps(facts), flush=True)

    handoff.HandoffChannel(sock, take, lost.set_result)
    await lost

asyncio.Runner(loop_factory=uvloop.new_event_loop).run(main())
"""


@scenario
async def test_a_connection_arrives_in_another_process_with_residue_unread_bytes_and_options(
    loop: Loop, folder: Path, start: StartChild
) -> None:
    shard = start(SHARD, folder / "handoff")
    assert shard.line() == "listening"

    end = End(handoff.connect(folder / "handoff"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        agent = socket.create_connection(listener.getsockname())
        connection, _ = listener.accept()
    with agent, connection:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 37)
        agent.sendall(b"not read yet")
        await loop.until(lambda: select.select([connection], [], [], 0)[0], "the agent's bytes")
        # A blocking descriptor number must not be what makes it close-on-exec over there.
        os.set_inheritable(connection.fileno(), True)

        message = Prepare(1, [offer(1, residue=b"residue", acceptance=b"accepted,")])
        assert end.channel.try_send(message, [connection.fileno()])
        connection.close()

        assert json.loads(await shard.told()) == {
            "close_on_exec": True,
            "non_blocking": True,
            "no_delay": True,
            "keep_idle": 37,
            "unread": "not read yet",
        }
        assert agent.makefile("rb").read() == b"accepted,residue"
    end.close()


@scenario
async def test_a_full_batch_arrives_whole_and_in_order(loop: Loop, folder: Path) -> None:
    supervisor, shard = map(End, pair(folder))
    with pipes(MAX_BATCH) as (writing, reading):
        message = Prepare(7, [offer(n) for n in range(MAX_BATCH)])
        assert supervisor.channel.try_send(message, writing)
        await loop.until(lambda: shard.messages, "the batch")
        assert shard.messages == [message]
        for n, fd in enumerate(shard.descriptors):
            os.write(fd, b"%d" % n)
        assert [int(os.read(fd, 10)) for fd in reading] == list(range(MAX_BATCH))

        # The other direction, and every message without descriptors.
        answers: list[Message] = [
            Hello(3, "epoch", 99), Prepared(7), Declined(8, "y"), Commit([1, 2]), Revoke([3]), Refuse([4]),
            TakeBack(),
        ]  # fmt: skip
        assert [shard.channel.try_send(answer) for answer in answers] == [True] * len(answers)
        await loop.until(lambda: len(supervisor.messages) == len(answers), "the answers")
        assert supervisor.messages == answers
        assert supervisor.descriptors == []
    supervisor.close()
    shard.close()


# The wrong order (close, then forget) is not tested: what it does to a loop is a matter of which number comes next.
# Measured with the descriptor still registered at its close: uvloop called back 1,091,864 times in one second.
@scenario
async def test_forget_send_close_leaves_no_ghost_behind(loop: Loop, folder: Path) -> None:
    """The order of `Readiness.forget`, send and close: not one event of a connection that somebody else has now."""

    class Owner:
        def __init__(self) -> None:
            self.calls = 0

        def on_ready(self, events: int) -> None:
            self.calls += 1

    readiness = Readiness()
    supervisor, shard = map(End, pair(folder))
    agent, connection = socket.socketpair()
    other, innocent = socket.socketpair()
    owner, heir = Owner(), Owner()
    number = connection.fileno()
    readiness.watch(number, owner)

    readiness.forget(number)
    assert supervisor.channel.try_send(Prepare(1, [offer(1)]), [number])
    connection.close()
    # The number goes to an innocent connection, which stays silent while the agent talks to the shard.
    os.dup2(innocent.fileno(), number)
    readiness.watch(number, heir)
    await loop.until(lambda: shard.descriptors, "the connection")
    agent.send(b"for the shard")
    assert select.select(shard.descriptors, [], [], 10)[0]

    assert select.select([readiness._epoll.fileno()], [], [], 0)[0] == [], "the loop would spin"
    await loop.turns(100)
    assert (owner.calls, heir.calls) == (0, 0)

    other.send(b"for the innocent one")
    await loop.until(lambda: heir.calls, "the innocent connection's own event")
    readiness.forget(number)
    os.close(number)
    for sock in (agent, other, innocent):
        sock.close()
    supervisor.close()
    shard.close()
    readiness.close()


def test_listen_makes_a_private_socket_in_place_of_a_dead_one(folder: Path) -> None:
    path = folder / "handoff"
    previous = os.umask(0)
    try:
        handoff.listen(path).close()
        assert stat.S_ISSOCK(path.lstat().st_mode), "left by a dead process"
        with pytest.raises(ConnectionRefusedError):
            handoff.connect(path)
        with handoff.listen(path) as listener, handoff.connect(path) as connected:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            for sock in (listener, connected):
                assert (sock.get_inheritable(), sock.getblocking()) == (False, False)
        assert os.umask(0) == 0, "the umask is as it was"
    finally:
        os.umask(previous)


def test_connect_fails_at_once_when_nobody_listens_or_nobody_accepts(folder: Path) -> None:
    with pytest.raises(FileNotFoundError):
        handoff.connect(folder / "handoff")
    with contextlib.ExitStack() as stack:
        stack.enter_context(handoff.listen(folder / "handoff"))

        def fill() -> None:
            for _ in range(100):
                stack.enter_context(handoff.connect(folder / "handoff"))

        with pytest.raises(BlockingIOError):
            fill()
