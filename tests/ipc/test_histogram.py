"""Durations in buckets: exact at the bounds, and exact when added up."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipc.histogram import BOUNDS, Histogram

durations = st.lists(st.floats(0, 100), max_size=50)


def histogram_of(seconds: list[float]) -> Histogram:
    found = Histogram()
    for duration in seconds:
        found.observe(duration)
    return found


@pytest.mark.parametrize("bucket", range(len(BOUNDS)))
def test_histogram_counts_a_duration_at_a_bound_below_it(bucket: int) -> None:
    counts = histogram_of([BOUNDS[bucket]]).counts

    assert counts[bucket] == 1
    assert sum(counts) == 1


def test_histogram_counts_what_is_above_all_bounds_in_its_last_bucket() -> None:
    assert histogram_of([BOUNDS[-1] * 1.001]).counts[-1] == 1


@given(durations)
def test_histogram_counts_everything_up_to_each_bound(seconds: list[float]) -> None:
    counts = histogram_of(seconds).counts

    for bucket, bound in enumerate(BOUNDS):
        assert sum(counts[: bucket + 1]) == sum(duration <= bound for duration in seconds)


@given(durations, durations)
def test_histograms_add_up_to_the_histogram_of_all(first: list[float], second: list[float]) -> None:
    one, other = histogram_of(first), histogram_of(second)
    both = one.plus(other)

    assert both.counts == histogram_of(first + second).counts
    assert both.seconds == pytest.approx(sum(first) + sum(second))
    assert (one, other) == (histogram_of(first), histogram_of(second))


@given(st.floats(0, 100), st.integers(0, 1000))
def test_histogram_counts_a_batch_as_it_would_count_each_of_it(seconds: float, times: int) -> None:
    found = Histogram()
    found.observe_many(seconds, times)

    assert (found.total, found.counts) == (times, histogram_of([seconds] * times).counts)
    assert found.seconds == pytest.approx(seconds * times)


def test_histogram_survives_the_bus_in_few_bytes() -> None:
    full = Histogram([2**40] * (len(BOUNDS) + 1), 1e9)
    encoded = msgspec.msgpack.encode(full)

    assert msgspec.msgpack.decode(encoded, type=Histogram) == full
    assert len(encoded) < 200


def test_histograms_with_other_buckets_cannot_be_added() -> None:
    other: Any = Histogram([1, 2, 3])
    with pytest.raises(ValueError, match=r"shorter|longer"):
        Histogram().plus(other)
