"""Timers go on, and last steps are all done, whatever fails on the way."""

import pytest
from support.loop import Loop, scenario

from ipc.timers import Every, all_of


@pytest.fixture
def loop() -> Loop:
    return Loop()


class Failing:
    """Fails each time that it is called, and counts."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> None:
        """Fail."""
        self.calls += 1
        raise OSError("it fails")


@scenario
async def test_a_timer_goes_on_after_it_failed_and_says_so_once(loop: Loop) -> None:
    act = Failing()
    timer = Every(0.001, act)
    await loop.until(lambda: act.calls > 5, "some turns")
    timer.cancel()
    calls = act.calls
    await loop.turns(20)
    assert act.calls == calls
    assert len(loop.errors) == 1
    assert isinstance(loop.errors.pop()["exception"], OSError)


@scenario
async def test_a_timer_can_begin_at_once_and_be_cancelled_by_its_own_turn(loop: Loop) -> None:
    turns = []

    def act() -> None:
        turns.append(1)
        timer.cancel()

    timer = Every(0.001, act, at_once=True)
    await loop.until(lambda: turns, "the first turn")
    await loop.turns(50)
    assert turns == [1]


@scenario
async def test_all_steps_are_done_in_their_order_whatever_some_raise(loop: Loop) -> None:
    done = []
    all_of(lambda: done.append(1), Failing(), lambda: done.append(2), Failing(), lambda: done.append(3))
    assert done == [1, 2, 3]
    assert len(loop.errors) == 2
    loop.errors.clear()
