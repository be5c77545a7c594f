"""The clock that stands still while a process does not run."""

import asyncio
import os
import time

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from dialout import awake
from dialout.awake import LOOK_SECONDS, MOST_SECONDS, SETTLE_SECONDS, AwakeTime

Gaps = list[float]

STOP = MOST_SECONDS + 0.3


@given(st.lists(st.floats(0, 1000)))
def test_it_never_goes_backwards_and_never_runs_ahead(gaps: Gaps) -> None:
    now = before = 50.0
    clock = AwakeTime(now)
    for gap in gaps:
        now += gap
        at = clock.at(now)
        assert before <= at + 1e-6
        assert at <= now + 1e-6
        assert at == pytest.approx(now - clock.slept)
        before = at


@given(st.lists(st.floats(0, MOST_SECONDS)))
def test_a_loop_that_is_late_has_not_been_stopped(gaps: Gaps) -> None:
    now = 50.0
    clock = AwakeTime(now)
    for gap in gaps:
        now += gap
        assert clock.at(now) == pytest.approx(now)


@given(st.floats(2 * MOST_SECONDS, 1e6))
def test_a_stop_counts_for_nothing_until_what_came_is_read_and_for_little_afterwards(stop: float) -> None:
    clock = AwakeTime(0.0)
    assert clock.at(LOOK_SECONDS) == LOOK_SECONDS
    woken = LOOK_SECONDS + stop
    assert clock.at(woken) == pytest.approx(LOOK_SECONDS)
    assert clock.at(woken + SETTLE_SECONDS / 2) == pytest.approx(LOOK_SECONDS)
    later = woken + SETTLE_SECONDS + LOOK_SECONDS
    assert clock.at(later) <= LOOK_SECONDS + MOST_SECONDS + SETTLE_SECONDS + LOOK_SECONDS


def test_in_a_loop_whose_turns_are_long_time_passes_all_the_same() -> None:
    clock, now = AwakeTime(0.0), 0.0
    for _ in range(20):
        now += 3 * MOST_SECONDS
        clock.at(now)
    assert clock.at(now) >= 15 * MOST_SECONDS


def test_what_came_during_a_stop_is_read_before_a_timer_is_due() -> None:
    happened: list[str] = []
    ours, theirs = os.pipe()

    def read() -> None:
        os.read(ours, 10)
        happened.append("read")

    async def stopped() -> None:
        loop = asyncio.get_running_loop()
        loop.add_reader(ours, read)
        over = asyncio.Event()

        def late() -> None:
            happened.append("late")
            over.set()

        clock = awake.clock()
        assert awake.clock() is clock
        clock.call_later(STOP / 2, late)
        await asyncio.sleep(0)
        os.write(theirs, b"mail")
        time.sleep(STOP)  # noqa: ASYNC251 - the loop is to stand still, as in a process that is stopped
        await over.wait()
        loop.remove_reader(ours)

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(stopped())
    finally:
        os.close(ours)
        os.close(theirs)
    assert happened == ["read", "late"]


def test_timeout_ends_what_takes_too_long_and_nothing_else() -> None:
    async def both() -> None:
        clock = awake.clock()
        async with clock.timeout(30):
            await asyncio.sleep(0)
        with pytest.raises(TimeoutError):
            async with clock.timeout(0.02):
                await asyncio.Event().wait()

    asyncio.run(both())
