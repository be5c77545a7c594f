"""When a shard is started again."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.respawn import FIRST_DELAY, LONGEST_DELAY, STABLE_AFTER, Backoff

short_lives = st.floats(0, STABLE_AFTER, exclude_max=True)
long_lives = st.floats(STABLE_AFTER, 1e9)


def test_backoff_answers_the_first_death_at_once_and_doubles_from_then_on() -> None:
    backoff = Backoff()

    delays = [backoff.after_death(0.1) for _ in range(11)]

    assert delays == [0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]


@given(st.lists(short_lives, min_size=2, max_size=30))
def test_backoff_never_falls_while_lives_are_short(lives: list[float]) -> None:
    backoff = Backoff()
    delays = [backoff.after_death(lived) for lived in lives]

    assert delays[:2] == [0.0, FIRST_DELAY]
    assert all(earlier <= later <= LONGEST_DELAY for earlier, later in pairwise(delays))


@given(st.lists(short_lives, max_size=12), long_lives, st.lists(short_lives, max_size=12))
def test_backoff_forgets_earlier_deaths_after_a_long_life(
    earlier: list[float], long: float, later: list[float]
) -> None:
    backoff, fresh = Backoff(), Backoff()
    for lived in earlier:
        backoff.after_death(lived)

    assert [backoff.after_death(lived) for lived in (long, *later)] == [
        fresh.after_death(lived) for lived in (0.0, *later)
    ]


@pytest.mark.parametrize("deaths", [100, 2000, 10**9])
def test_backoff_stays_at_its_longest_however_many_deaths(deaths: int) -> None:
    assert Backoff(deaths).after_death(0.0) == LONGEST_DELAY
