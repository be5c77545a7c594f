"""Descriptors and messages that do not arrive whole: declined, or the channel is lost, and nothing is kept."""

from pathlib import Path

import pytest
from support.channels import End, is_ended, offer, pair, pipes, send_raw
from support.child import StartChild
from support.loop import Loop, scenario

from ipc import handoff
from ipc.messages import (
    MAX_BATCH,
    Commit,
    Declined,
    Entrust,
    Hello,
    Kept,
    KeptListener,
    Message,
    Prepare,
    Prepared,
    Revoke,
    encode,
)

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
@scenario
async def test_a_receiver_at_its_descriptor_limit_declines_and_holds_nothing(
    loop: Loop, folder: Path, start: StartChild, room: int
) -> None:
    shard = start(LIMITED, folder / "handoff")
    assert shard.line() == "listening"

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


@pytest.mark.parametrize(("offers", "sent"), [(3, 2), (2, 3), (0, 1), (1, 0), (MAX_BATCH, MAX_BATCH + 1), (65, 65)])
@scenario
async def test_an_offer_with_another_number_of_descriptors_is_declined(
    loop: Loop, folder: Path, offers: int, sent: int
) -> None:
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


@pytest.mark.parametrize("sent", [0, 1, 3])
@scenario
async def test_listeners_that_come_with_another_number_of_descriptors_are_all_let_go(
    loop: Loop, folder: Path, sent: int
) -> None:
    two = [KeptListener("uds", "/s", (1, 2, 3)), KeptListener("tcp", "127.0.0.1:1", inherited=True)]

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
@scenario
async def test_a_message_that_makes_no_sense_loses_the_channel_and_closes_what_came(
    loop: Loop, folder: Path, data: bytes, descriptors: int, reason: str
) -> None:
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


@scenario
async def test_a_message_beyond_the_buffer_loses_the_channel(
    loop: Loop, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nobody but root can send what the real buffer cannot hold: net.core.wmem_max.
    monkeypatch.setattr(handoff, "MAX_MESSAGE", 10_000)

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


@scenario
async def test_a_message_whose_rest_did_not_fit_loses_the_channel_although_the_part_makes_sense(
    loop: Loop, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handoff, "MAX_MESSAGE", len(encode(Commit([1, 2]))))

    theirs, ours = pair(folder)
    end = End(ours)
    with theirs:
        theirs.send(encode(Commit([1, 2])) + b"\x00")
        await loop.until(lambda: end.lost, "the loss")
        assert end.messages == []
    end.close()
