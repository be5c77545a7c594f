"""Receivers that are full, stopped or dead: no handoff is lost, none blocks the loop, none is done twice."""

import json
import os
import signal
from pathlib import Path

import pytest
from support.channels import End, is_ended, offer, pair, pipes
from support.child import StartChild
from support.loop import Loop, scenario

from ipc import handoff
from ipc.handoff import RECEIVE_BUDGET, HandoffChannel
from ipc.messages import (
    Commit,
    Message,
    Prepare,
    Prepared,
    encode,
)


@scenario
async def test_a_receiver_that_does_not_read_holds_the_sender_up_and_loses_nothing(loop: Loop, folder: Path) -> None:
    total = 1500

    ours, theirs = pair(folder)
    supervisor = End(ours)
    sent = 0
    called: list[int] = []
    with pipes(1) as ([writing], [reading]):

        def send() -> None:
            nonlocal sent
            while sent < total:
                if not supervisor.channel.try_send(Prepare(sent, [offer(sent, residue=bytes(2000))]), [writing]):
                    supervisor.channel.when_writable(again)
                    return
                sent += 1

        def again() -> None:
            called.append(sent)
            send()

        send()
        first = sent
        assert 10 < first < total
        assert not supervisor.channel.try_send(Commit([1]))
        await loop.turns(100)
        assert (sent, called) == (first, []), "nobody has read"

        shard = End(theirs)
        await loop.until(lambda: len(shard.messages) == total, "everything")
        assert [message.batch for message in shard.messages if isinstance(message, Prepare)] == list(range(total))
        assert len(shard.descriptors) == total
        # Each call had made progress possible: it does not spin.
        assert called[0] == first
        assert called == sorted(set(called))
        os.close(writing)
        handoff.close_all(shard.descriptors)
        shard.descriptors.clear()
        assert is_ended(reading)
    assert (supervisor.lost, shard.lost) == ([], [])
    supervisor.close()
    shard.close()


def nothing(*_: object) -> None:
    """Take anything and do nothing."""


@scenario
async def test_when_writable_calls_once_for_each_time_it_is_asked(loop: Loop, folder: Path) -> None:
    looks = 0

    class Channel(HandoffChannel):
        def _writable(self) -> None:
            nonlocal looks
            looks += 1
            super()._writable()

    ours, theirs = pair(folder)
    channel = Channel(ours, nothing, nothing)
    called: list[int] = []
    channel.when_writable(lambda: called.append(1))
    await loop.until(lambda: called, "the call")
    await loop.turns(20)
    assert called == [1]
    assert looks == 1, "the loop still looks at writability, which there always is"
    channel.when_writable(lambda: called.append(2))
    await loop.until(lambda: len(called) > 1, "the next call")
    assert called == [1, 2]

    # Not after a close.
    channel.when_writable(lambda: called.append(3))
    channel.close()
    await loop.turns(20)
    assert called == [1, 2]
    theirs.close()


IN_FLIGHT = """
import asyncio, errno, json, resource, socket, time
import array, os, sys
import uvloop
from ipc import handoff, messages, tickets
from ipc.handoff import HandoffChannel
from ipc.messages import Prepare, decode, encode

TOTAL = 40
OFFERS = decode(bytes.fromhex(sys.argv[1])).offers


def prepare(number):
    return Prepare(number, OFFERS)


async def main():
    loop = asyncio.get_running_loop()
    problems = []
    loop.set_exception_handler(lambda _, context: problems.append(str(context)))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    null = os.open(os.devnull, os.O_RDONLY)
    sender = HandoffChannel(ours, lambda *_: None, problems.append)
    before = open_descriptors()
    sent = 0
    called = []
    got = []

    def send():
        nonlocal sent
        called.append(sent)
        while sent < TOTAL:
            if not sender.try_send(prepare(sent), [null] * 10):
                sender.when_writable(send)
                return
            sent += 1

    async def until(condition):
        while not condition():
            await asyncio.sleep(0.001)

    resource.setrlimit(resource.RLIMIT_NOFILE, (100, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    become_ordinary()
    send()
    first = sent
    try:
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [null]))
        ours.sendmsg([encode(prepare(0))], [rights], socket.MSG_DONTWAIT)
        error = None
    except OSError as raised:
        error = errno.errorcode[raised.errno]

    # It asks again now and then, although the socket is writable all the time.
    started = time.monotonic()
    await until(lambda: len(called) >= 4)
    for _ in range(1000):
        await asyncio.sleep(0)
    calls, elapsed = len(called), time.monotonic() - started
    unread = sent

    def take(message, descriptors):
        got.append((message.batch, len(descriptors)))
        handoff.close_all(descriptors)

    receiver = HandoffChannel(theirs, take, problems.append)
    await until(lambda: len(got) >= TOTAL)
    print(json.dumps({
        "uid": os.getuid(), "first": first, "error": error, "unread": unread, "calls": calls, "elapsed": elapsed,
        "complete": got == [(n, 10) for n in range(TOTAL)], "left": open_descriptors() - before, "problems": problems,
    }), flush=True)
    sender.close()
    receiver.close()

asyncio.Runner(loop_factory=uvloop.new_event_loop).run(main())
"""


def test_too_many_descriptors_in_flight_are_back_pressure_for_an_ordinary_user(start: StartChild) -> None:
    """ETOOMANYREFS, which root never gets: try_send is False, and goes on when the receiver has read."""
    result = json.loads(start(IN_FLIGHT, encode(Prepare(0, [offer(n) for n in range(10)])).hex()).line())

    assert result["uid"] != 0
    assert result["error"] == "ETOOMANYREFS"
    # 100 may be in flight (and others of this user may have some); the message that reaches the limit still leaves.
    assert 1 <= result["first"] <= 11
    assert result["unread"] == result["first"]
    # Three retries of 20 ms each took their time: writability alone would have called a thousand times.
    assert result["calls"] <= 2 + result["elapsed"] / 0.015
    assert result["complete"]
    assert result["left"] == 0
    assert result["problems"] == []


RECEIVER = """
import asyncio, sys, time
from pathlib import Path
import uvloop
from ipc import handoff, messages, tickets


async def main():
    listener = handoff.listen(Path(sys.argv[1]))
    listener.setblocking(True)
    print("listening", flush=True)
    sock, _ = listener.accept()
    if sys.argv[2] == "reads":
        handoff.HandoffChannel(sock, lambda *_: print("holds", flush=True), print)
    else:
        print("does not read", flush=True)
    await asyncio.get_running_loop().create_future()

asyncio.Runner(loop_factory=uvloop.new_event_loop).run(main())
"""


@pytest.mark.parametrize("receiver", ["reads", "does not read"])
@scenario
async def test_a_killed_receiver_is_lost_once_and_leaves_no_copy(
    loop: Loop, folder: Path, start: StartChild, receiver: str
) -> None:
    shard = start(RECEIVER, folder / "handoff", receiver)
    assert shard.line() == "listening"

    end = End(handoff.connect(folder / "handoff"))
    with pipes(3) as (writing, reading):
        assert end.channel.try_send(Prepare(1, [offer(n) for n in range(3)]), writing)
        assert await shard.told() == ("holds" if receiver == "reads" else "does not read")
        shard.kill()
        # The sender's own copies keep the agents connected, so that another shard can have them.
        assert not any(map(is_ended, reading))
        # Two ways to notice: a send that fails, and the end of the stream.
        assert not end.channel.try_send(Commit([0]))
        await loop.until(lambda: end.lost, "the loss")
        assert not end.channel.try_send(Commit([0]))
        await loop.turns(20)
        assert len(end.lost) == 1
        assert end.channel.closed
        handoff.close_all(writing)
        assert all(map(is_ended, reading))
    end.close()


SENDER = """
import socket, sys, time
from pathlib import Path
from ipc import handoff, messages, tickets
from ipc.messages import Commit, encode

sock = handoff.connect(Path(sys.argv[1]))
socket.send_fds(sock, [bytes.fromhex(sys.argv[2])], [int(fd) for fd in sys.argv[3].split(",")])
for number in range(int(sys.argv[4])):
    sock.send(encode(Commit([number])))
print("sent", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("answered", [False, True], ids=["unanswered", "with-unread-answers"])
@pytest.mark.parametrize("answer_late", [False, True], ids=["", "and-answered-too-late"])
@scenario
async def test_what_a_killed_sender_had_sent_is_read_before_it_is_lost_once(
    loop: Loop, folder: Path, start: StartChild, answered: bool, answer_late: bool
) -> None:
    # More than are read in a turn or two.
    commits = 3 * RECEIVE_BUDGET

    with pipes(2) as (writing, reading):
        with handoff.listen(folder / "handoff") as listener:
            for fd in writing:
                os.set_inheritable(fd, True)
            supervisor = start(
                SENDER, folder / "handoff", encode(Prepare(1, [offer(1), offer(2)])).hex(),
                ",".join(map(str, writing)), commits, keep=writing,
            )  # fmt: skip
            handoff.close_all(writing)
            assert await supervisor.told() == "sent"
            theirs, _ = listener.accept()
        if answered:
            # The kernel tells a process whose peer died with unread messages so: once, and before anything else.
            theirs.send(encode(Prepared(1)))
        supervisor.kill()
        end = End(theirs)
        if answer_late:
            assert not end.channel.try_send(Prepared(1))
        await loop.until(lambda: end.lost, "the loss")
        await loop.turns(20)
        assert len(end.lost) == 1
        assert len(end.descriptors) == 2
        assert end.messages[1:] == [Commit([n]) for n in range(commits)]
        # Prepared descriptors belong to whoever got them, and to nobody else.
        assert not any(map(is_ended, reading))
        end.close()
        assert all(map(is_ended, reading))


@scenario
async def test_a_stopped_receiver_costs_the_sender_a_false_and_no_time(
    loop: Loop, folder: Path, start: StartChild
) -> None:
    shard = start(RECEIVER, folder / "handoff", "reads")
    assert shard.line() == "listening"

    end = End(handoff.connect(folder / "handoff"))
    assert end.channel.try_send(Commit([0]))
    assert await shard.told() == "holds"
    os.kill(shard.pid, signal.SIGSTOP)
    sent = 0
    while end.channel.try_send(Commit([sent] * 100)):
        sent += 1
    assert sent > 50
    writable: list[bool] = []
    end.channel.when_writable(lambda: writable.append(True))
    await loop.turns(50)
    assert (writable, end.lost) == ([], [])

    os.kill(shard.pid, signal.SIGCONT)
    await loop.until(lambda: writable, "a shard that runs again")
    assert end.channel.try_send(Commit([0]))
    for _ in range(sent + 1):
        assert await shard.told() == "holds"
    end.close()


@scenario
async def test_closing_a_channel_calls_nobody(loop: Loop, folder: Path) -> None:
    supervisor, shard = map(End, pair(folder))
    with pipes(1) as (writing, [reading]):
        assert supervisor.channel.try_send(Prepare(1, [offer(1)]), writing)
        shard.channel.close()
        shard.channel.close()
        assert not supervisor.channel.try_send(Commit([1]))
        supervisor.channel.close()
        await loop.turns(20)
        assert (supervisor.lost, shard.lost, shard.messages) == ([], [], [])
        assert not supervisor.channel.try_send(Commit([1]))
        # What was in flight went with the channel.
        handoff.close_all(writing)
        assert is_ended(reading)


@scenario
async def test_an_error_of_whoever_takes_a_message_costs_that_message_only(loop: Loop, folder: Path) -> None:
    ours, theirs = pair(folder)
    taken: list[Message] = []

    def take(message: Message, _: list[int]) -> None:
        taken.append(message)
        raise ZeroDivisionError

    lost: list[str] = []
    channel = HandoffChannel(theirs, take, lost.append)
    with ours:
        for n in range(3):
            ours.send(encode(Commit([n])))
        await loop.until(lambda: len(taken) == 3, "the others")
    await loop.until(lambda: lost, "the end")
    assert channel.closed
    assert [type(context["exception"]) for context in loop.errors] == [ZeroDivisionError] * 3
    loop.errors.clear()
