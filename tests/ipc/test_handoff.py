"""Connections on their way to another process: messages, descriptors, and what goes wrong with both."""

import contextlib
import json
import os
import select
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.product import environment

from dialout import Capabilities, Dialect, HealthState
from ipc import handoff, messages, tickets
from ipc.handoff import RECEIVE_BUDGET, HandoffChannel
from ipc.messages import (
    MAX_BATCH,
    ChannelError,
    Commit,
    Declined,
    Entrust,
    Established,
    Hello,
    Kept,
    KeptListener,
    Message,
    MoveOut,
    Moving,
    Offer,
    Prepare,
    Prepared,
    Refuse,
    Revoke,
    Staying,
    TakeBack,
    decode,
    encode,
)
from ipc.readiness import Readiness


def offer(number: int, residue: bytes = b"", acceptance: bytes = b"") -> Offer:
    return Offer(
        number=number, agent_id="waf-1", dialect=Dialect.SDK, capabilities=Capabilities(), transport="uds",
        metadata=b"{}", residue=residue, unsent=acceptance,
    )  # fmt: skip


@contextlib.contextmanager
def pipes(count: int) -> Iterator[tuple[list[int], list[int]]]:
    """Writing ends to hand over and reading ends, which see the end of the stream when no copy is left anywhere."""
    pairs = [os.pipe() for _ in range(count)]
    writing = [pair[1] for pair in pairs]
    try:
        yield writing, [pair[0] for pair in pairs]
    finally:
        handoff.close_all(writing)
        handoff.close_all([pair[0] for pair in pairs])


def is_ended(fd: int) -> bool:
    """Whether the stream has ended: nobody holds its other end any more."""
    return bool(select.select([fd], [], [], 0)[0]) and os.read(fd, 1) == b""


def send_raw(sock: socket.socket, data: bytes, descriptors: list[int]) -> None:
    socket.send_fds(sock, [data], descriptors)


def pair(folder: Path) -> tuple[socket.socket, socket.socket]:
    """The two ends of a channel as the product opens it: the one that connected, the one that was accepted."""
    with handoff.listen(folder / "handoff") as listener:
        connected = handoff.connect(folder / "handoff")
        accepted, _ = listener.accept()
    return connected, accepted


class End:
    """A channel's end that keeps what arrives."""

    def __init__(self, sock: socket.socket) -> None:
        self.messages: list[Message] = []
        self.descriptors: list[int] = []
        self.lost: list[str] = []
        self.channel = HandoffChannel(sock, self._take, self.lost.append)

    def _take(self, message: Message, descriptors: list[int]) -> None:
        self.messages.append(message)
        self.descriptors += descriptors

    def close(self) -> None:
        """Close the channel and what it brought."""
        self.channel.close()
        handoff.close_all(self.descriptors)


# ---- what travels

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


def test_a_connection_arrives_in_another_process_with_residue_unread_bytes_and_options(
    loop: Any, folder: Path, start: Any
) -> None:
    shard = start(SHARD, folder / "handoff")
    assert shard.line() == "listening"

    async def scenario() -> None:
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

    loop.run(scenario())


def test_a_full_batch_arrives_whole_and_in_order(loop: Any, folder: Path) -> None:
    async def scenario() -> None:
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

    loop.run(scenario())


# The wrong order (close, then forget) is not tested: what it does to a loop is a matter of which number comes next.
# Measured with the descriptor still registered at its close: uvloop called back 1,091,864 times in one second.
def test_forget_send_close_leaves_no_ghost_behind(loop: Any, folder: Path) -> None:
    """The order of `Readiness.forget`, send and close: not one event of a connection that somebody else has now."""

    class Owner:
        def __init__(self) -> None:
            self.calls = 0

        def on_ready(self, events: int) -> None:
            self.calls += 1

    async def scenario() -> None:
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

    loop.run(scenario())


# ---- descriptors that do not arrive

LIMITED = """
import asyncio, os, resource, socket, sys
from pathlib import Path
import uvloop
from ipc import handoff, messages, tickets
from ipc.messages import Commit, Hello, Prepare, Prepared, Revoke

UNLIMITED = resource.getrlimit(resource.RLIMIT_NOFILE)


def leave_room_for(count):
    # The limit is on numbers: *count* free ones lie below it.
    number = free = 0
    while True:
        try:
            os.fstat(number)
        except OSError:
            if free == count:
                break
            free += 1
        number += 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, UNLIMITED[1]))


async def main():
    listener = handoff.listen(Path(sys.argv[1]))
    listener.setblocking(True)
    print("listening", flush=True)
    sock, _ = listener.accept()
    listener.close()
    lost = asyncio.get_running_loop().create_future()
    held = []

    def take(message, descriptors):
        if isinstance(message, Prepare):
            held.extend(descriptors)
            channel.try_send(Prepared(message.batch))
        elif isinstance(message, Revoke):
            leave_room_for(message.numbers[0])
        elif isinstance(message, Commit):
            resource.setrlimit(resource.RLIMIT_NOFILE, UNLIMITED)
            channel.try_send(Hello(len(held), "", open_descriptors()))

    channel = handoff.HandoffChannel(sock, take, lost.set_result)
    await lost

asyncio.Runner(loop_factory=uvloop.new_event_loop).run(main())
"""


@pytest.mark.parametrize("room", [0, 2])
def test_a_receiver_at_its_descriptor_limit_declines_and_holds_nothing(
    loop: Any, folder: Path, start: Any, room: int
) -> None:
    shard = start(LIMITED, folder / "handoff")
    assert shard.line() == "listening"

    async def scenario() -> None:
        end = End(handoff.connect(folder / "handoff"))

        async def ask(message: Message, descriptors: list[int] | None = None) -> Message:
            end.messages.clear()
            assert end.channel.try_send(message, descriptors or [])
            await loop.until(lambda: end.messages, "an answer")
            return end.messages[0]

        with pipes(5) as (writing, reading):
            # Commit: lift the limit and report.
            at_first = await ask(Commit([]))
            assert end.channel.try_send(Revoke([room]))
            assert await ask(Prepare(1, [offer(n) for n in range(5)]), writing) == Declined(1, "out of descriptors")
            assert await ask(Commit([])) == at_first

            # It takes connections again as soon as it can.
            assert await ask(Prepare(2, [offer(n) for n in range(5)]), writing) == Prepared(2)
            assert isinstance(at_first, Hello)
            assert await ask(Commit([])) == Hello(5, "", at_first.pid + 5)

            # And what it had declined it has no copy of: these five copies were the only ones.
            handoff.close_all(writing)
            assert not any(map(is_ended, reading))
            shard.kill()
            assert all(map(is_ended, reading))
        await loop.until(lambda: end.lost, "the loss")
        end.close()

    loop.run(scenario())


@pytest.mark.parametrize(("offers", "sent"), [(3, 2), (2, 3), (0, 1), (1, 0), (MAX_BATCH, MAX_BATCH + 1), (65, 65)])
def test_an_offer_with_another_number_of_descriptors_is_declined(
    loop: Any, folder: Path, offers: int, sent: int
) -> None:
    async def scenario() -> None:
        ours, theirs = pair(folder)
        supervisor, shard = End(ours), End(theirs)
        with pipes(sent) as (writing, reading):
            assert supervisor.channel.try_send(Prepare(4, [offer(n) for n in range(offers)]), writing)
            handoff.close_all(writing)
            await loop.until(lambda: supervisor.messages, "the answer")
            assert supervisor.messages == [Declined(4, "out of descriptors")]
            assert all(map(is_ended, reading))
        assert (shard.messages, shard.lost) == ([], [])
        supervisor.close()
        shard.close()

    loop.run(scenario())


@pytest.mark.parametrize("sent", [0, 1, 3])
def test_listeners_that_come_with_another_number_of_descriptors_are_all_let_go(
    loop: Any, folder: Path, sent: int
) -> None:
    two = [KeptListener("uds", "/s", (1, 2, 3)), KeptListener("tcp", "127.0.0.1:1", inherited=True)]

    async def scenario() -> None:
        supervisor, shard = map(End, pair(folder))
        with pipes(sent) as (writing, reading):
            assert supervisor.channel.try_send(Entrust(two, 60.0), writing)
            assert supervisor.channel.try_send(Kept(two), writing)
            handoff.close_all(writing)
            await loop.until(lambda: len(shard.messages) == 2, "both messages")
            assert shard.messages == [Entrust([], 60.0), Kept([])]
            assert all(map(is_ended, reading))
        with pipes(2) as (writing, reading):
            assert supervisor.channel.try_send(Entrust(two, 60.0), writing)
            await loop.until(lambda: len(shard.messages) == 3, "the message that is whole")
            assert shard.messages[-1] == Entrust(two, 60.0)
            assert len(shard.descriptors) == 2
        supervisor.close()
        shard.close()

    loop.run(scenario())


WHOLE = encode(Prepare(1, [offer(1)]))


@pytest.mark.parametrize(
    ("data", "descriptors", "reason"),
    [
        pytest.param(encode(Commit([1])), 1, "descriptors came with a message that has none", id="descriptors"),
        pytest.param(b"\x01" + WHOLE[1:], 1, "version 01, this is version 02", id="version"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", 2, "version 47", id="another-protocol"),
        pytest.param(WHOLE[:-1], 1, "cannot be read", id="truncated"),
        pytest.param(WHOLE[:1], 1, "cannot be read", id="version-only"),
        pytest.param(WHOLE + b"\xc0", 1, "cannot be read", id="trailing"),
        pytest.param(b"\x02" + bytes(range(200, 230)), 3, "cannot be read", id="garbage"),
        pytest.param(b"\x02\x94\x00\x00\xa1\xff\x01", 1, "cannot be read", id="bad-utf8"),
        pytest.param(b"\x02\x95\x00\x00\xa0\x01" + b"\x91" * 100_000 + b"\xc0", 1, "cannot be read", id="deep"),
        pytest.param(b"\x02\x92\x02\xdd\xff\xff\xff\xff", 1, "cannot be read", id="endless-list"),
        pytest.param(b"", 2, "closed by the other end", id="empty"),
    ],
)
def test_a_message_that_makes_no_sense_loses_the_channel_and_closes_what_came(
    loop: Any, folder: Path, data: bytes, descriptors: int, reason: str
) -> None:
    async def scenario() -> None:
        theirs, ours = pair(folder)
        end = End(ours)
        with theirs, pipes(descriptors) as (writing, reading):
            send_raw(theirs, data, writing)
            send_raw(theirs, encode(Commit([1])), [])
            handoff.close_all(writing)
            await loop.until(lambda: end.lost, "the loss")
            await loop.turns(10)
            [said] = end.lost
            assert reason in said
            assert end.channel.closed
            assert end.messages == []
            assert all(map(is_ended, reading))
            with pytest.raises(ConnectionError):
                theirs.send(encode(Commit([1])))
        end.close()

    loop.run(scenario())


def test_a_message_beyond_the_buffer_loses_the_channel(
    loop: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nobody but root can send what the real buffer cannot hold: net.core.wmem_max.
    monkeypatch.setattr(handoff, "MAX_MESSAGE", 10_000)

    async def scenario() -> None:
        theirs, ours = pair(folder)
        end = End(ours)
        with theirs, pipes(1) as (writing, [reading]):
            send_raw(theirs, encode(Prepare(1, [offer(1, residue=bytes(9_000))])), writing)
            await loop.until(lambda: end.messages, "a message that fits")
            send_raw(theirs, encode(Prepare(2, [offer(2, residue=bytes(11_000))])), writing)
            await loop.until(lambda: end.lost, "the loss")
            assert len(end.messages) == 1
            end.close()
            handoff.close_all(writing)
            assert is_ended(reading)

    loop.run(scenario())


def test_a_message_whose_rest_did_not_fit_loses_the_channel_although_the_part_makes_sense(
    loop: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handoff, "MAX_MESSAGE", len(encode(Commit([1, 2]))))

    async def scenario() -> None:
        theirs, ours = pair(folder)
        end = End(ours)
        with theirs:
            theirs.send(encode(Commit([1, 2])) + b"\x00")
            await loop.until(lambda: end.lost, "the loss")
            assert end.messages == []
        end.close()

    loop.run(scenario())


# ---- back-pressure


def test_a_receiver_that_does_not_read_holds_the_sender_up_and_loses_nothing(loop: Any, folder: Path) -> None:
    total = 1500

    async def scenario() -> None:
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

    loop.run(scenario())


def nothing(*_: object) -> None:
    """Take anything and do nothing."""


def test_when_writable_calls_once_for_each_time_it_is_asked(loop: Any, folder: Path) -> None:
    async def scenario() -> None:
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

    loop.run(scenario())


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


def test_too_many_descriptors_in_flight_are_back_pressure_for_an_ordinary_user(start: Any) -> None:
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


# ---- death

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
def test_a_killed_receiver_is_lost_once_and_leaves_no_copy(loop: Any, folder: Path, start: Any, receiver: str) -> None:
    shard = start(RECEIVER, folder / "handoff", receiver)
    assert shard.line() == "listening"

    async def scenario() -> None:
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

    loop.run(scenario())


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
def test_what_a_killed_sender_had_sent_is_read_before_it_is_lost_once(
    loop: Any, folder: Path, start: Any, answered: bool, answer_late: bool
) -> None:
    # More than are read in a turn or two.
    commits = 3 * RECEIVE_BUDGET

    async def scenario() -> None:
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

    loop.run(scenario())


def test_a_stopped_receiver_costs_the_sender_a_false_and_no_time(loop: Any, folder: Path, start: Any) -> None:
    shard = start(RECEIVER, folder / "handoff", "reads")
    assert shard.line() == "listening"

    async def scenario() -> None:
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

    loop.run(scenario())


def test_closing_a_channel_calls_nobody(loop: Any, folder: Path) -> None:
    async def scenario() -> None:
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

    loop.run(scenario())


def test_an_error_of_whoever_takes_a_message_costs_that_message_only(loop: Any, folder: Path) -> None:
    async def scenario() -> None:
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

    loop.run(scenario())


# ---- sockets


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


# ---- tickets

TAKER = """
import os, sys
from ipc.tickets import take_ticket
fd, transport, ticket = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
print(take_ticket(fd, transport, ticket), flush=True)
"""


@contextlib.contextmanager
def connected(transport: str) -> Iterator[int]:
    """One end of a connection, non-blocking, as all that are handed over."""
    if transport == "uds":
        ours, theirs = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            theirs = socket.create_connection(listener.getsockname())
            ours, _ = listener.accept()
    ours.setblocking(False)
    with ours, theirs:
        yield ours.fileno()


@pytest.mark.parametrize("transport", ["uds", "tcp"])
def test_ticket_is_taken_once_through_whichever_copy(transport: str) -> None:
    with connected(transport) as fd:
        copy = os.dup(fd)
        ticket = tickets.leave_ticket(fd, transport)
        assert not tickets.take_ticket(copy, transport, ticket + 1)
        assert tickets.take_ticket(copy, transport, ticket)
        assert not tickets.take_ticket(fd, transport, ticket)
        newer = tickets.leave_ticket(copy, transport)
        assert not tickets.take_ticket(fd, transport, ticket), "that of an earlier move"
        assert tickets.take_ticket(fd, transport, newer)
        with pytest.raises(BlockingIOError):
            os.read(fd, 1)
        os.close(copy)


@pytest.mark.parametrize("transport", ["uds", "tcp"])
def test_one_of_many_processes_gets_the_ticket_even_when_the_one_that_left_it_is_gone(transport: str) -> None:
    with connected(transport) as fd:
        leaver = "import sys; from ipc.tickets import leave_ticket; print(leave_ticket(int(sys.argv[1]), sys.argv[2]))"
        done = subprocess.run(
            [sys.executable, "-c", leaver, str(fd), transport],
            env=environment(), pass_fds=[fd], capture_output=True, text=True, check=True,
        )  # fmt: skip
        takers = [
            subprocess.Popen(
                [sys.executable, "-c", TAKER, str(fd), transport, done.stdout.strip()],
                env=environment(), pass_fds=[fd], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )
            for _ in range(4)
        ]  # fmt: skip
        for taker in takers:
            assert taker.stdout is not None
            assert taker.stdout.readline() == "ready\n"
        for taker in takers:
            assert taker.stdin is not None
            taker.stdin.write("\n")
            taker.stdin.flush()
        assert sorted(taker.communicate()[0] for taker in takers) == ["False\n"] * 3 + ["True\n"]


# ---- encoding

numbers = st.integers(0, 2**63 - 1)
texts = st.text(max_size=20)
blobs = st.binary(max_size=40)
capabilities = st.builds(
    Capabilities, events=st.integers(0, 255), max_concurrent=st.none() | numbers, websocket=st.booleans()
)
states = st.builds(
    Established,
    left_at=st.floats(0, 1e9), ticket=numbers, connected_at=st.floats(0, 1e10), frames=numbers, frames_ignored=numbers,
    errors=numbers, health=st.none() | st.sampled_from(HealthState), paused=st.booleans(), pinged_at=st.floats(0, 1e9),
    ping_mark=numbers, answers_pings=st.booleans(),
)  # fmt: skip
offers = st.builds(
    Offer,
    number=numbers, agent_id=texts, dialect=st.sampled_from(Dialect), capabilities=capabilities, transport=texts,
    metadata=blobs, residue=blobs, unsent=blobs, state=st.none() | states,
)  # fmt: skip
kept_listeners = st.lists(
    st.builds(
        KeptListener,
        kind=st.sampled_from(["uds", "tcp"]), address=texts, file=st.none() | st.tuples(numbers, numbers, numbers),
        inherited=st.booleans(),
    ),
    max_size=3,
)  # fmt: skip
any_message: st.SearchStrategy[Message] = st.one_of(
    st.builds(Hello, shard=numbers, epoch=texts, pid=numbers),
    st.builds(Prepare, batch=numbers, offers=st.lists(offers, max_size=3)),
    st.builds(Commit, numbers=st.lists(numbers)),
    st.builds(Revoke, numbers=st.lists(numbers)),
    st.builds(Refuse, numbers=st.lists(numbers)),
    st.builds(Prepared, batch=numbers),
    st.builds(Declined, batch=numbers, reason=texts),
    st.builds(MoveOut, numbers=st.lists(numbers), seconds=st.floats(0, 1e6), force=st.booleans()),
    st.builds(Moving, offers=st.lists(offers, max_size=3)),
    st.builds(Staying, numbers=st.lists(numbers)),
    st.builds(Entrust, listeners=kept_listeners, orphan_timeout=st.floats(0, 1e6)),
    st.just(TakeBack()),
    st.builds(Kept, listeners=kept_listeners),
)


@given(any_message)
def test_decoding_what_was_encoded_gives_the_message(message: Message) -> None:
    assert decode(encode(message)) == message
    # The channel's buffer is used again for the next message.
    buffer = bytearray(encode(message))
    decoded = decode(memoryview(buffer))
    buffer[:] = bytes(len(buffer))
    assert decoded == message
    assert type(decoded) is type(message)


@given(st.one_of(st.binary(max_size=60), st.binary(max_size=60).map(lambda data: messages.VERSION + data)))
@example(b"")
@example(b"\x02\x94\x00\x00\xa1\xff\x01")
@example(b"\x02\x95\x00\x00\xa0\x01" + b"\x91" * 100_000)
def test_decoding_any_bytes_raises_channel_error_or_gives_a_message(data: bytes) -> None:
    with contextlib.suppress(ChannelError):
        assert isinstance(decode(data), Message)


@given(any_message, st.data())
def test_decoding_a_damaged_message_raises_channel_error_or_gives_a_message(message: Message, data: Any) -> None:
    encoded = bytearray(encode(message))
    position = data.draw(st.integers(0, len(encoded) - 1))
    with pytest.raises(ChannelError):
        decode(encoded[:position])
    encoded[position] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(ChannelError):
        assert isinstance(decode(encoded), Message)
