"""How long agents wait: the limits, the jitter, and how it spreads many of them."""

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialout import Backoff

rolls = st.floats(0, 1, exclude_max=True)
waits = st.floats(0, 3600)


def test_limit_doubles_from_one_second_to_a_minute() -> None:
    backoff = Backoff()

    assert [backoff.limit(n) for n in range(1, 10)] == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert backoff.limit(0) == 1
    assert backoff.limit(10**9) == 60


@given(st.integers(0, 10_000), rolls, waits)
def test_jitter_is_full_and_comes_on_top_of_what_the_proxy_asks_for(failures: int, roll: float, after: float) -> None:
    backoff = Backoff()
    wait = backoff.spread(failures, roll, after=after)

    assert after <= wait <= after + backoff.limit(failures)
    assert backoff.spread(failures, 0, after=after) == after


@given(rolls, waits)
def test_slow_is_half_a_minute_at_least_and_what_the_proxy_asks_for_at_least(roll: float, after: float) -> None:
    wait = Backoff().slow(roll, after=after)

    assert wait >= max(30, after)
    assert wait <= max(60, after)


@pytest.mark.parametrize(("least", "most"), [(0, 1), (-1, 1), (2, 1), (1, 0)])
def test_limits_that_make_no_sense_are_refused(least: float, most: float) -> None:
    with pytest.raises(ValueError, match="least <= most"):
        Backoff(least, most)


@pytest.mark.parametrize(("failures", "seconds"), [(1, 1), (3, 4), (7, 60)])
def test_two_hundred_agents_with_four_connections_each_spread_over_the_whole_limit(failures: int, seconds: int) -> None:
    rng = Random(4)
    backoff = Backoff()
    planned = [backoff.spread(failures, rng.random()) for _ in range(200 * 4)]

    tenths = Counter(int(wait * 10 / seconds) for wait in planned)
    assert set(tenths) == set(range(10))
    # 80 in each tenth on average; without jitter, 800 in one of them.
    assert max(tenths.values()) < 2 * 80
    assert min(tenths.values()) > 80 / 2


def test_agents_told_to_come_back_at_one_moment_do_not() -> None:
    rng = Random(4)
    planned = [Backoff().spread(1, rng.random(), after=5.0) for _ in range(800)]

    assert max(Counter(int(wait * 10) for wait in planned).values()) < 160
