"""The bus: no wake-up lost, nobody starved, no send that blocks."""

import asyncio
import os
import select
import signal
import stat
from pathlib import Path

from support.child import StartChild
from support.fences import descriptors
from support.loop import Loop, scenario

from ipc.bus import DRAIN_BUDGET, Bus, close_context
from ipc.sockets import is_served


def nothing(_: list[bytes]) -> None:
    """Take a message and do nothing."""


@scenario
async def test_a_bus_listens_again_where_its_file_is_gone_and_keeps_no_descriptor(loop: Loop, folder: Path) -> None:
    heard: list[bytes] = []
    router = Bus.router(lambda parts: heard.append(parts[-1]))
    router.bind(folder / "bus")
    old = Bus.dealer("shard-0/a", nothing)
    old.connect(folder / "bus")
    await loop.until(lambda: old.send(b"old"), "a connection")
    await loop.until(lambda: heard, "the first message")
    (folder / "bus").unlink()
    router.bind(folder / "bus")
    before = descriptors()
    for _ in range(10):
        (folder / "bus").unlink()
        router.bind(folder / "bus")
        assert is_served(folder / "bus")
    new = Bus.dealer("shard-1/a", nothing)
    new.connect(folder / "bus")
    await loop.until(lambda: new.send(b"new"), "a connection")
    await loop.until(lambda: b"new" in heard, "the message of a new peer")
    # The first of these may go into the connection that has just been cut.
    await loop.until(lambda: old.send(b"old again") and b"old again" in heard, "the other connection again")
    new.close()
    await loop.until(lambda: len(descriptors()) <= len(before), "no descriptor left over")
    router.close()
    old.close()


# ---- the edge trap


@scenario
async def test_a_send_between_arrival_and_wake_up_loses_no_wake_up(loop: Loop, folder: Path) -> None:
    """The descriptor is edge-triggered, and a send on the socket takes the edge of what has arrived by then."""
    heard: list[bytes] = []
    router = Bus.router(lambda parts: heard.append(parts[-1]))
    router.bind(folder / "bus")
    dealer = Bus.dealer("shard-0/a", nothing)
    dealer.connect(folder / "bus")
    await loop.until(lambda: dealer.send(b"first"), "a connection")
    await loop.until(lambda: heard, "the first message")
    for number in range(300):
        heard.clear()
        assert dealer.send(b"%d" % number)
        # It has arrived, and the loop did not turn.
        assert select.select([router._fd], [], [], 10)[0]
        assert router.send(b"shard-0/a", b"takes the edge")
        await loop.until(lambda: heard, f"message {number}")
        assert heard == [b"%d" % number]
    router.close()
    dealer.close()


@scenario
async def test_a_send_to_nobody_between_arrival_and_wake_up_loses_no_wake_up(loop: Loop, folder: Path) -> None:
    heard: list[bytes] = []
    router = Bus.router(lambda parts: heard.append(parts[-1]))
    router.bind(folder / "bus")
    dealer = Bus.dealer("shard-0/a", nothing)
    dealer.connect(folder / "bus")
    await loop.until(lambda: dealer.send(b"first"), "a connection")
    await loop.until(lambda: heard, "the first message")
    for number in range(100):
        heard.clear()
        assert dealer.send(b"%d" % number)
        assert select.select([router._fd], [], [], 10)[0]
        assert not router.send(b"shard-1/b", b"takes the edge as well")
        await loop.until(lambda: heard, f"message {number}")
    router.close()
    dealer.close()


ECHO_CLIENT = """
import sys
import zmq

TOTAL, WINDOW = int(sys.argv[2]), 1000
context = zmq.Context()
peer = context.socket(zmq.DEALER)
peer.connect(f"ipc://{sys.argv[1]}")
sent = got = 0
while got < TOTAL:
    while sent < TOTAL and sent - got < WINDOW:
        peer.send(b"%d" % sent)
        sent += 1
    if not peer.poll(20_000):
        sys.exit(f"stalled: {sent} sent, {got} came back")
    while True:
        try:
            number = int(peer.recv(zmq.DONTWAIT))
        except zmq.Again:
            break
        assert number == got
        got += 1
print("all came back", flush=True)
peer.close(linger=0)
context.term()
"""


@scenario
async def test_an_echoing_router_never_stalls(loop: Loop, folder: Path, start: StartChild) -> None:
    total = 30_000

    echoed = 0

    def echo(parts: list[bytes]) -> None:
        nonlocal echoed
        echoed += router.send(*parts)

    router = Bus.router(echo)
    router.bind(folder / "bus")
    assert await start(ECHO_CLIENT, folder / "bus", total).told() == "all came back"
    assert echoed == total
    router.close()


@scenario
async def test_draining_stops_at_its_budget_and_lets_others_run(loop: Loop, folder: Path) -> None:
    total = 5000

    running = asyncio.get_running_loop()
    heard = in_a_row = longest = 0

    def count(_: list[bytes]) -> None:
        nonlocal heard, in_a_row, longest
        heard += 1
        in_a_row += 1
        longest = max(longest, in_a_row)

    def other() -> None:
        nonlocal in_a_row
        in_a_row = 0
        handle[0] = running.call_soon(other)

    handle = [running.call_soon(other)]
    router = Bus.router(count)
    router.bind(folder / "bus")
    dealer = Bus.dealer("shard-0/a", nothing)
    dealer.connect(folder / "bus")
    await loop.until(lambda: dealer.send(b""), "a connection")
    # The loop does not turn meanwhile: they queue up.
    for _ in range(total):
        assert dealer.send(b"")
    await loop.until(lambda: heard == total + 1, "all messages")
    handle[0].cancel()
    # Two drains fit into one turn: one that was scheduled and one for the descriptor.
    assert longest <= 2 * DRAIN_BUDGET
    router.close()
    dealer.close()


@scenario
async def test_an_error_of_whoever_takes_messages_does_not_silence_the_bus(loop: Loop, folder: Path) -> None:
    heard: list[bytes] = []

    def take(parts: list[bytes]) -> None:
        heard.append(parts[-1])
        if parts[-1] == b"bad":
            raise ZeroDivisionError

    router = Bus.router(take)
    router.bind(folder / "bus")
    dealer = Bus.dealer("shard-0/a", nothing)
    dealer.connect(folder / "bus")
    await loop.until(lambda: dealer.send(b"bad"), "a connection")
    for word in (b"good", b"bad", b"bad", b"good"):
        assert dealer.send(word)
    await loop.until(lambda: len(heard) == 5, "the others")
    assert heard == [b"bad", b"good", b"bad", b"bad", b"good"]
    assert [type(context["exception"]) for context in loop.errors] == [ZeroDivisionError] * 3
    loop.errors.clear()
    router.close()
    dealer.close()


@scenario
async def test_a_bus_closed_by_a_message_hears_no_more(loop: Loop, folder: Path) -> None:
    heard: list[bytes] = []

    def take(parts: list[bytes]) -> None:
        heard.append(parts[-1])
        router.close()

    router = Bus.router(take)
    router.bind(folder / "bus")
    dealer = Bus.dealer("shard-0/a", nothing)
    dealer.connect(folder / "bus")
    await loop.until(lambda: dealer.send(b"0"), "a connection")
    for number in range(1, 50):
        dealer.send(b"%d" % number)
    await loop.until(lambda: heard, "the first message")
    await loop.turns(50)
    assert heard == [b"0"]
    router.close()
    dealer.close()


# ---- peers that are not there


@scenario
async def test_a_dealer_without_a_router_sends_nothing_and_keeps_nothing_for_later(loop: Loop, folder: Path) -> None:
    heard: list[bytes] = []
    dealer = Bus.dealer("shard-0/a", nothing)
    assert not dealer.send(b"not even connected")
    dealer.connect(folder / "bus")
    assert not dealer.send(b"stale")

    def take(parts: list[bytes]) -> None:
        heard.extend(parts)

    router = Bus.router(take)
    router.bind(folder / "bus")
    await loop.until(lambda: dealer.send(b"fresh"), "a connection")
    await loop.until(lambda: heard, "a message")
    assert heard == [b"shard-0/a", b"fresh"]

    # The router's process ends; the next one is found without being told.
    router.close()
    await loop.until(lambda: not dealer.send(b"stale"), "the loss")
    heard.clear()
    router = Bus.router(take)
    router.bind(folder / "bus")
    await loop.until(lambda: dealer.send(b"fresh again"), "a new connection")
    await loop.until(lambda: heard, "a message")
    assert heard == [b"shard-0/a", b"fresh again"]
    router.close()
    dealer.close()


@scenario
async def test_a_router_says_that_nobody_has_that_name(loop: Loop, folder: Path) -> None:
    router = Bus.router(nothing)
    router.bind(folder / "bus")
    assert not router.send(b"shard-0/a", b"command")
    heard: list[list[bytes]] = []
    dealer = Bus.dealer("shard-0/a", heard.append)
    dealer.connect(folder / "bus")
    await loop.until(lambda: dealer.send(b"hello"), "a connection")
    await loop.until(lambda: router.send(b"shard-0/a", b"command"), "a route")
    assert not router.send(b"shard-0/b", b"command")
    await loop.until(lambda: heard, "the command")
    assert heard == [[b"command"]]
    dealer.close()
    await loop.until(lambda: not router.send(b"shard-0/a", b"command"), "the loss of the route")
    router.close()


SHARD = """
import asyncio, sys
from pathlib import Path
import uvloop
from ipc.bus import Bus


async def main():
    bus = Bus.dealer(sys.argv[2], lambda parts: print(parts[-1].decode(), flush=True))
    bus.connect(Path(sys.argv[1]))
    while not bus.send(sys.argv[2].encode()):
        await asyncio.sleep(0.005)
    await asyncio.get_running_loop().create_future()

asyncio.Runner(loop_factory=uvloop.new_event_loop).run(main())
"""


@scenario
async def test_a_restarted_peer_is_heard_under_its_new_name_while_the_old_one_lingers(
    loop: Loop, folder: Path, start: StartChild
) -> None:
    heard: list[list[bytes]] = []
    router = Bus.router(heard.append)
    router.bind(folder / "bus")
    for life in ("shard-0/a", "shard-0/b", "shard-0/c"):
        shard = start(SHARD, folder / "bus", life)
        await loop.until(lambda: heard, life)
        assert heard == [[life.encode(), life.encode()]]
        heard.clear()
        assert router.send(life.encode(), b"command")
        assert await shard.told() == "command"
        # Stuck, killed: the connection of the first lingers, that of the second does not.
        if life == "shard-0/a":
            os.kill(shard.pid, signal.SIGSTOP)
        else:
            shard.kill()
    router.close()


@scenario
async def test_a_stopped_peer_makes_send_false_and_never_blocks(loop: Loop, folder: Path, start: StartChild) -> None:
    heard: list[list[bytes]] = []
    router = Bus.router(heard.append)
    router.bind(folder / "bus")
    shard = start(SHARD, folder / "bus", "shard-0/a")
    await loop.until(lambda: heard, "the shard")
    os.kill(shard.pid, signal.SIGSTOP)
    sent = 0
    while router.send(b"shard-0/a", bytes(100)):
        sent += 1
        assert sent < 200_000, "the queue has no end"
    assert sent >= 10_000
    router.close()


# ---- what is published


@scenario
async def test_published_messages_reach_every_subscriber_of_the_moment_and_the_next_publisher_is_found(
    loop: Loop, folder: Path
) -> None:
    heard: list[list[bytes]] = [[], []]
    subscribers = [
        Bus.subscriber(lambda parts: heard[0].append(parts[-1])),
        Bus.subscriber(lambda parts: heard[1].append(parts[-1])),
    ]
    for subscriber in subscribers:
        subscriber.connect(folder / "counts")

    async def publish(greeting: bytes) -> None:
        publisher = Bus.publisher()
        publisher.bind(folder / "counts")
        assert stat.S_IMODE((folder / "counts").stat().st_mode) == 0o600
        await loop.until(lambda: publisher.send(greeting) and all(greeting in got for got in heard), "subscribers")
        # From now on nothing is missing and everything is in order.
        for number in range(1000):
            assert publisher.send(b"%d" % number)
        await loop.until(lambda: all(b"999" in got for got in heard), "the last number")
        for got in heard:
            assert [int(word) for word in got if word != greeting] == list(range(1000))
            got.clear()
        publisher.close()

    await publish(b"first")
    await publish(b"second")
    for subscriber in subscribers:
        subscriber.close()


# ---- sockets and the end


@scenario
async def test_bind_makes_a_private_socket_whatever_the_umask(loop: Loop, folder: Path) -> None:
    previous = os.umask(0)
    try:
        router = Bus.router(nothing)
        router.bind(folder / "bus")
        assert stat.S_IMODE((folder / "bus").stat().st_mode) == 0o600
        assert os.umask(0) == 0, "the umask is as it was"
    finally:
        os.umask(previous)
    router.close()


@scenario
async def test_the_context_ends_at_once_with_messages_that_nobody_will_take(
    loop: Loop, folder: Path, start: StartChild
) -> None:
    heard: list[list[bytes]] = []
    router = Bus.router(heard.append)
    router.bind(folder / "bus")
    shard = start(SHARD, folder / "bus", "shard-0/a")
    await loop.until(lambda: heard, "the shard")
    os.kill(shard.pid, signal.SIGSTOP)
    for _ in range(100):
        assert router.send(b"shard-0/a", bytes(100_000))
    router.close()
    # It would wait for ever.
    close_context()
    close_context()
    # And the next one works.
    again = Bus.router(heard.append)
    again.bind(folder / "again")
    assert is_served(folder / "again")
    again.close()
