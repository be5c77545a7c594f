"""One epoll set for many descriptors."""

import asyncio
import contextlib
import os
import select
import socket
from collections.abc import Callable, Iterator

import pytest
from support.loop import Loop, scenario

from ipc.readiness import BATCH, READ, WRITE, Readiness


class Owner:
    """Counts the events that it gets, and does something on each."""

    def __init__(self, act: Callable[[], object] = lambda: None) -> None:
        self.events: list[int] = []
        self.act = act

    def on_ready(self, events: int) -> None:
        """Take note, then act."""
        self.events.append(events)
        self.act()


@contextlib.contextmanager
def readable(count: int) -> Iterator[list[int]]:
    """So many descriptors that stay readable."""
    fds = [os.eventfd(1) for _ in range(count)]
    try:
        yield fds
    finally:
        for fd in fds:
            os.close(fd)


@scenario
async def test_owner_hears_what_it_asked_for_until_it_is_forgotten(loop: Loop) -> None:
    readiness = Readiness()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        owner = Owner()
        readiness.watch(ours.fileno(), owner)
        await loop.turns(20)
        assert owner.events == []

        readiness.change(ours.fileno(), READ | WRITE)
        await loop.until(lambda: owner.events, "writability")
        assert owner.events[0] == select.EPOLLOUT

        readiness.change(ours.fileno(), READ)
        owner.events.clear()
        theirs.shutdown(socket.SHUT_WR)
        await loop.until(lambda: owner.events, "the end of the stream")
        assert owner.events[0] == select.EPOLLIN | select.EPOLLRDHUP

        assert len(readiness) == 1
        readiness.forget(ours.fileno())
        owner.events.clear()
        await loop.turns(20)
        assert owner.events == []
        assert len(readiness) == 0
    readiness.close()


@scenario
async def test_an_owner_that_raises_keeps_nobody_else_waiting(loop: Loop) -> None:
    readiness = Readiness()
    with readable(5) as fds:
        owners = {}
        for fd in fds:

            def fail(fd: int = fd) -> None:
                readiness.forget(fd)
                raise ZeroDivisionError(fd)

            owners[fd] = Owner(fail)
            readiness.watch(fd, owners[fd])
        await loop.until(lambda: len(readiness) == 0, "all owners")
        assert [len(owner.events) for owner in owners.values()] == [1] * 5
        assert sorted(context["fd"] for context in loop.errors) == fds
        assert {type(context["exception"]) for context in loop.errors} == {ZeroDivisionError}
        loop.errors.clear()
    readiness.close()


@scenario
async def test_descriptors_forgotten_within_a_batch_report_nothing_more(loop: Loop) -> None:
    readiness = Readiness()
    with readable(20) as fds:

        def forget_all() -> None:
            for fd in fds:
                readiness.forget(fd)

        owner = Owner(forget_all)
        for fd in fds:
            readiness.watch(fd, owner)
        await loop.until(lambda: owner.events, "the first event")
        await loop.turns(20)
        assert len(owner.events) == 1
    readiness.close()


@scenario
async def test_closing_the_set_within_a_batch_ends_the_batch_and_leaves_descriptors_open(loop: Loop) -> None:
    readiness = Readiness()
    with readable(20) as fds:
        owner = Owner(readiness.close)
        for fd in fds:
            readiness.watch(fd, owner)
        await loop.until(lambda: owner.events, "the first event")
        await loop.turns(20)
        assert len(owner.events) == 1
        assert [os.eventfd_read(fd) for fd in fds] == [1] * 20
    readiness.close()


@scenario
async def test_a_turn_of_the_loop_takes_one_batch_and_nobody_starves(loop: Loop) -> None:
    readiness = Readiness()
    in_a_row = longest = 0
    running = asyncio.get_running_loop()

    def count() -> None:
        nonlocal in_a_row, longest
        in_a_row += 1
        longest = max(longest, in_a_row)

    def other() -> None:
        nonlocal in_a_row
        in_a_row = 0
        handle[0] = running.call_soon(other)

    handle = [running.call_soon(other)]
    # Nobody reads: all of them stay ready, and those beyond the batch have to get their turn nevertheless.
    with readable(BATCH + 100) as fds:
        owners = [Owner(count) for _ in fds]
        for fd, owner in zip(fds, owners, strict=True):
            readiness.watch(fd, owner)
        await loop.until(lambda: all(owner.events for owner in owners), "everybody's turn")
        readiness.close()
    handle[0].cancel()
    assert longest == BATCH


@scenario
async def test_events_are_only_a_hint_for_whoever_got_a_number_within_the_batch(loop: Loop) -> None:
    """The number of a closed descriptor goes to a newcomer while an event of its predecessor is still in the batch."""
    readiness = Readiness()
    first, second = os.eventfd(1), os.eventfd(1)
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    number = second
    received: list[bytes] = []

    def read() -> None:
        with contextlib.suppress(BlockingIOError):
            received.append(os.read(number, 100))

    newcomer, predecessor = Owner(read), Owner()

    def replace() -> None:
        readiness.forget(first)
        os.close(first)
        readiness.forget(second)
        os.dup2(ours.fileno(), number)
        readiness.watch(number, newcomer)

    readiness.watch(first, Owner(replace))
    readiness.watch(second, predecessor)
    await loop.until(lambda: len(readiness) == 1, "the newcomer")
    await loop.turns(20)
    assert (predecessor.events, received) == ([], [])
    # The hint was a false one (the batch had an event for the number), and did no harm.
    assert newcomer.events == [select.EPOLLIN]

    theirs.send(b"hello")
    await loop.until(lambda: received, "the newcomer's data")
    assert received == [b"hello"]
    readiness.forget(number)
    os.close(number)
    ours.close()
    theirs.close()
    readiness.close()


@scenario
async def test_watching_a_descriptor_twice_is_an_error_and_keeps_its_owner(loop: Loop) -> None:
    readiness = Readiness()
    with readable(1) as [fd]:
        owner, intruder = Owner(), Owner()
        readiness.watch(fd, owner)
        with pytest.raises(FileExistsError):
            readiness.watch(fd, intruder)
        await loop.until(lambda: owner.events, "an event")
        assert intruder.events == []
        readiness.forget(fd)
    readiness.close()
    readiness.close()
