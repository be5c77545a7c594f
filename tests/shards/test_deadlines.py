"""Deadlines against a model that keeps a list."""

import math

from hypothesis import example, given
from hypothesis import strategies as st

from shards.deadlines import LONGEST, Deadlines, rounded

TIMEOUTS = st.one_of(
    st.sampled_from([0.01, 0.07, 0.1, 0.29, 0.57, 1.0, 2.5, 9.99, 30.0, 60.0]), st.floats(0.0001, 5000)
)


@given(st.floats(1e-6, LONGEST))
@example(0.07)
@example(29.999999999)
@example(99.5)
def test_rounding_is_up_by_less_than_a_tenth_and_is_stable(timeout: float) -> None:
    up = rounded(timeout)
    assert up >= timeout - 1e-8
    assert up - timeout <= max(0.01, timeout * 0.1)
    assert rounded(up) == up


def test_few_tables_serve_all_timeouts_of_a_minute() -> None:
    assert len({rounded(milliseconds / 1000) for milliseconds in range(1, 60_000)}) < 250


def test_what_is_no_time_limit_at_all_is_rounded_too() -> None:
    assert rounded(math.inf) == rounded(1e300) == rounded(LONGEST)
    assert rounded(0.0) == rounded(-1.0) == rounded(math.nan) == rounded(-math.inf) == 0.01


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("put"), TIMEOUTS),
            st.tuples(st.just("remove"), st.integers(0, 30)),
            st.tuples(st.just("wait"), st.sampled_from([0.0, 0.004, 0.01, 0.3, 2.0, 40.0])),
        ),
        max_size=60,
    )
)
def test_items_expire_never_early_and_never_later_than_rounded_in_order(steps: list[tuple[str, float]]) -> None:
    deadlines: Deadlines[int] = Deadlines()
    now = 1000.0
    alive: dict[int, tuple[float, float, float]] = {}  # item: (as asked for, as rounded, since)
    number = 0
    for deed, value in steps:
        if deed == "put":
            kept = deadlines.put(number, value, now)
            assert kept == rounded(value)
            alive[number] = (value, kept, now)
            number += 1
        elif deed == "remove":
            item = int(value)
            if item in alive:
                deadlines.remove(item, alive.pop(item)[1])
            else:
                deadlines.remove(item, 0.5)  # Never there, or gone: nothing happens.
        else:
            now += value
            expired = list(deadlines.expired(now))
            assert len(set(expired)) == len(expired)
            for item in expired:
                asked, _, since = alive[item]
                assert now - since >= asked - 1e-8, "early"
            for kept in {alive[item][1] for item in expired}:
                same = [item for item in expired if alive[item][1] == kept]
                assert same == sorted(same), "oldest first for each timeout"
            for item in expired:
                del alive[item]
            assert all(since + kept > now for _, kept, since in alive.values()), "late"
        assert len(deadlines) == len(alive)


def test_items_may_come_and_go_while_others_expire() -> None:
    deadlines: Deadlines[str] = Deadlines()
    for name in ("a", "b", "c"):
        deadlines.put(name, 1.0, 0.0)
    deadlines.put("other", 2.0, 0.0)
    seen = []
    for name in deadlines.expired(1.0):
        seen.append(name)
        if name == "a":
            deadlines.remove("b", 1.0)
            deadlines.put("new", 1.0, 1.0)
            deadlines.remove("other", 2.0)
    assert seen == ["a", "c"]
    assert len(deadlines) == 1
    assert list(deadlines.expired(2.0)) == ["new"]
    assert len(deadlines) == 0
