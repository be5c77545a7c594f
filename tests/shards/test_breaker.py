"""The circuit breaker: every state and every event, with a clock that the test turns."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.breaker import Breaker, Circuit

THRESHOLD = 3
OPEN_FOR = 30.0


def closed() -> Breaker:
    """A breaker with one failure less than it takes."""
    breaker = Breaker(THRESHOLD, OPEN_FOR)
    for _ in range(THRESHOLD - 1):
        assert not breaker.failed(0.0)
    return breaker


def opened() -> Breaker:
    """A breaker that opened at time 0."""
    breaker = closed()
    assert breaker.failed(0.0)
    return breaker


def half_open() -> Breaker:
    """A breaker whose trial began at `OPEN_FOR`."""
    breaker = opened()
    assert breaker.admits(OPEN_FOR)
    return breaker


MAKE = {Circuit.CLOSED: closed, Circuit.OPEN: opened, Circuit.HALF_OPEN: half_open}
# A trial begins at OPEN_FOR, so that the next one is due OPEN_FOR later.
DUE = {Circuit.OPEN: OPEN_FOR, Circuit.HALF_OPEN: 2 * OPEN_FOR}


@pytest.mark.parametrize("state", Circuit)
def test_success_closes_from_every_state_and_forgets_the_failures(state: Circuit) -> None:
    breaker = MAKE[state]()
    assert breaker.state is state
    breaker.succeeded()
    assert breaker.state is Circuit.CLOSED
    assert breaker.admits(0.0)
    assert breaker.retry_after(0.0) == 0.0
    assert [breaker.failed(1.0) for _ in range(THRESHOLD)] == [False] * (THRESHOLD - 1) + [True]


@pytest.mark.parametrize(("state", "opens"), [(Circuit.CLOSED, True), (Circuit.OPEN, False), (Circuit.HALF_OPEN, True)])
def test_failure_opens_unless_it_is_open(state: Circuit, opens: bool) -> None:
    breaker = MAKE[state]()
    assert breaker.failed(OPEN_FOR) is opens
    assert breaker.state is Circuit.OPEN


def test_failure_while_open_does_not_put_off_the_trial() -> None:
    breaker = opened()
    breaker.failed(OPEN_FOR - 1)
    assert breaker.admits(OPEN_FOR)


@pytest.mark.parametrize("state", [Circuit.OPEN, Circuit.HALF_OPEN])
def test_one_trial_is_admitted_when_its_time_has_come_and_not_before(state: Circuit) -> None:
    breaker = MAKE[state]()
    due = DUE[state]
    assert not breaker.admits(due - 0.001)
    assert breaker.retry_after(due - 1) == pytest.approx(1.0)
    assert breaker.admits(due)
    assert breaker.state is Circuit.HALF_OPEN
    assert not breaker.admits(due), "one trial, not two"
    assert breaker.retry_after(due) == pytest.approx(OPEN_FOR)


def test_trial_that_fails_opens_for_the_whole_time_again() -> None:
    breaker = half_open()
    breaker.failed(OPEN_FOR + 5)
    assert not breaker.admits(2 * OPEN_FOR + 4.9)
    assert breaker.admits(2 * OPEN_FOR + 5)


@given(
    st.lists(
        st.tuples(st.sampled_from(["ask", "succeed", "fail"]), st.sampled_from([0.0, 0.5, 9.0, 30.0])), max_size=40
    )
)
def test_breaker_admits_all_after_a_success_and_one_in_a_period_after_failures(
    steps: list[tuple[str, float]],
) -> None:
    """The model: failures in a row, and when the last trial or opening was."""
    breaker = Breaker(THRESHOLD, OPEN_FOR)
    now = 0.0
    in_a_row = 0
    since: float | None = None
    trial = False
    for deed, wait in steps:
        now += wait
        if deed == "succeed":
            breaker.succeeded()
            in_a_row, since, trial = 0, None, False
        elif deed == "fail":
            in_a_row += 1
            opens = trial or (since is None and in_a_row >= THRESHOLD)
            assert breaker.failed(now) is opens
            if opens:
                since, trial = now, False
        elif since is None:
            assert breaker.admits(now)
        else:
            due = now - since >= OPEN_FOR
            assert breaker.retry_after(now) == max(0.0, OPEN_FOR - (now - since))
            assert breaker.admits(now) is due
            if due:
                since, trial = now, True
