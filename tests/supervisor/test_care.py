"""What is known of a shard, and what follows from it, by a clock that the test holds."""

import copy
import math
import signal
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipc.status import ShardReport, ShardRow, ShardState
from supervisor.care import (
    BOOT_LIMIT,
    CPU_SECONDS,
    END_MARGIN,
    FOREIGN_LIMIT,
    KILL_AFTER,
    REPLACE_AFTER,
    SILENCE_LIMIT,
    WORKING_LONGER,
    WORKS_SHARE,
    Care,
    IllegalTransition,
)

DOWN, STARTING, RUNNING = ShardState.DOWN, ShardState.STARTING, ShardState.RUNNING
UNHEALTHY, DRAINING = ShardState.UNHEALTHY, ShardState.DRAINING

LEGAL = {
    (DOWN, STARTING),
    (STARTING, RUNNING),
    (STARTING, DRAINING),
    (STARTING, DOWN),
    (RUNNING, UNHEALTHY),
    (RUNNING, DRAINING),
    (RUNNING, DOWN),
    (UNHEALTHY, RUNNING),
    (UNHEALTHY, DRAINING),
    (UNHEALTHY, DOWN),
    (DRAINING, DOWN),
}

NUMBERS: dict[str, Any] = {name: number for number, name in enumerate(ShardReport.__struct_fields__, 100)}
REPORT = ShardReport(**NUMBERS)


def care_in(state: ShardState, heard_at: float = 0.0) -> Care:
    return Care(7, state, epoch="e1", started_at=1.0, heard_at=heard_at, sequence=5, report=REPORT, doubt=3)


@pytest.mark.parametrize("after", ShardState)
@pytest.mark.parametrize("before", ShardState)
def test_shard_goes_where_the_table_says_and_stays_as_it_was_otherwise(before: ShardState, after: ShardState) -> None:
    care = care_in(before)
    untouched = copy.deepcopy(care)

    if (before, after) in LEGAL:
        care.go(after)
        assert care.state is after
    else:
        with pytest.raises(IllegalTransition, match=f"^shard 7: {before.value} to {after.value}$"):
            care.go(after)
        assert care == untouched


@pytest.mark.parametrize("state", [state for state in ShardState if state is not DOWN])
def test_shard_cannot_begin_unless_it_is_down(state: ShardState) -> None:
    care = care_in(state)
    untouched = copy.deepcopy(care)

    with pytest.raises(IllegalTransition):
        care.begin("e2", 50.0)

    assert care == untouched


def test_shard_begins_with_nothing_of_its_earlier_life_but_its_history() -> None:
    care = care_in(DOWN)
    care.restarts, care.last_event, care.last_event_at = 3, "pid 1 killed", "2026-01-01T12:00:00.000Z"
    care.backoff.deaths = 2

    care.begin("e2", 50.0)

    assert care == Care(
        7, STARTING, epoch="e2", started_at=50.0, heard_at=50.0, restarts=3, last_event="pid 1 killed",
        last_event_at="2026-01-01T12:00:00.000Z", backoff=care.backoff,
    )  # fmt: skip
    assert care.backoff.deaths == 2


@pytest.mark.parametrize("state", ShardState)
def test_silence_is_noticed_in_a_running_shard_only_and_after_its_limit(state: ShardState) -> None:
    care = care_in(state, heard_at=100.0)

    assert not care.is_silent(100.0 + SILENCE_LIMIT)
    assert care.is_silent(math.nextafter(100.0 + SILENCE_LIMIT, math.inf)) == (state is RUNNING)
    assert care.is_silent(1e9) == (state is RUNNING)


@pytest.mark.parametrize(
    ("state", "limit"),
    [(STARTING, BOOT_LIMIT), (UNHEALTHY, REPLACE_AFTER), (RUNNING, None), (DRAINING, None), (DOWN, None)],
)
def test_shard_is_lost_after_the_limit_of_its_state(state: ShardState, limit: float | None) -> None:
    care = care_in(state, heard_at=100.0)

    assert care.is_lost(1e9) == (limit is not None)
    if limit is not None:
        assert not care.is_lost(100.0 + limit)
        assert care.is_lost(math.nextafter(100.0 + limit, math.inf))


@pytest.mark.parametrize(("state", "limit"), [(STARTING, BOOT_LIMIT), (UNHEALTHY, REPLACE_AFTER)])
def test_shard_that_works_gets_longer_and_one_that_hangs_or_stops_working_does_not(
    state: ShardState, limit: float
) -> None:
    working, hanging, stopped = (care_in(state, heard_at=100.0) for _ in range(3))
    told = []
    now, cpu = 100.0, 7.0
    while now <= 100.0 + WORKING_LONGER * limit:
        told.append(working.used(cpu, now))
        hanging.used(7.0, now)
        stopped.used(min(cpu, 9.0), now)
        assert not working.is_lost(now)
        assert hanging.is_lost(now) == (now > 100.0 + limit)
        assert stopped.is_lost(now) == (now > 100.0 + limit)
        now += CPU_SECONDS
        cpu += 2 * WORKS_SHARE * CPU_SECONDS if now < 105 else CPU_SECONDS
    working.used(cpu, now)
    assert working.is_lost(now)
    assert told.count(True) == 1
    assert hanging.busy_s == 0
    assert working.busy_s == pytest.approx(cpu - 7.0)


def test_shard_that_answers_again_is_not_known_to_work_in_its_next_silence() -> None:
    care = care_in(UNHEALTHY, heard_at=100.0)
    care.used(1.0, 103.0)
    assert care.used(2.0, 104.0)
    care.answers_again()
    assert (care.cpu, care.worked_at, care.busy_s) == (None, None, 0.0)


def test_shard_that_is_heard_is_neither_silent_nor_lost() -> None:
    care = Care(0)
    care.begin("e1", 100.0)
    assert not care.is_lost(100.0 + BOOT_LIMIT)
    care.go(RUNNING)
    assert care.is_silent(103.0)

    care.hear(1, 103.0)

    assert not care.is_silent(103.0 + SILENCE_LIMIT)
    care.go(UNHEALTHY)
    assert not care.is_lost(103.0 + REPLACE_AFTER)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=30))
def test_shard_hears_of_a_hole_wherever_the_sequence_is_not_one_higher(sequences: list[int]) -> None:
    care = Care(0)
    previous = 0
    for now, sequence in enumerate(sequences):
        assert care.hear(sequence, float(now)) == (sequence != previous + 1)
        assert (care.sequence, care.heard_at) == (sequence, float(now))
        previous = sequence


@given(st.lists(st.integers(-2, 2), max_size=30))
def test_shard_is_doubtful_when_the_same_difference_is_there_twice_in_a_row(differences: list[int]) -> None:
    care = Care(0)
    previous = 0
    for difference in differences:
        assert care.is_doubtful(difference) == (difference != 0 and difference == previous)
        previous = difference


def test_repairs_are_counted_by_what_was_wrong_and_a_first_word_is_no_repair() -> None:
    care = Care(0)
    for sequence in (7, 8, 10, 11):  # The first is an adopted shard's.
        care.hear(sequence, 0.0)
    for difference in (1, 1, 0, 2, 3, 3):
        care.is_doubtful(difference)
    for _ in range(3):
        care.wants_counts()
    assert care.gaps == {"events": 1, "counts": 2, "doubt": 2}

    care.state = DOWN
    care.begin("e2", 1.0)
    care.wants_counts()
    assert care.gaps == {"events": 1, "counts": 2, "doubt": 2}


def asked_to_end() -> Care:
    care = care_in(DRAINING)
    care.end_by = 100.0
    return care


def foreign() -> Care:
    care = care_in(DRAINING)
    care.foreign = True
    return care


STAYING = [
    (asked_to_end, 100.0 + END_MARGIN, signal.SIGTERM, END_MARGIN),
    (foreign, 1.0 + FOREIGN_LIMIT, signal.SIGABRT, KILL_AFTER),
    (lambda: care_in(UNHEALTHY, heard_at=100.0), 100.0 + REPLACE_AFTER, signal.SIGABRT, KILL_AFTER),
    (lambda: care_in(STARTING, heard_at=100.0), 100.0 + BOOT_LIMIT, signal.SIGABRT, KILL_AFTER),
]


@pytest.mark.parametrize(
    ("make", "limit", "gentle", "pause"), STAYING, ids=["asked to end", "foreign", "silent", "not up"]
)
def test_process_that_stays_gets_each_signal_once_and_the_last_one_after_a_pause(
    make: Callable[[], Care], limit: float, gentle: signal.Signals, pause: float
) -> None:
    care = make()
    assert care.signal_due(limit) is None

    first = math.nextafter(limit, math.inf)
    assert care.signal_due(first) is gentle
    assert care.signal_due(first) is None
    assert care.signal_due(first + pause) is None

    last = math.nextafter(first + pause, math.inf)
    assert care.signal_due(last) is signal.SIGKILL
    assert care.signal_due(last) is None
    assert care.signal_due(1e9) is None


@pytest.mark.parametrize("state", ShardState)
def test_nobody_else_gets_a_signal(state: ShardState) -> None:
    assert care_in(state, heard_at=1e9).signal_due(1e9) is None
    if state in (RUNNING, DRAINING, DOWN):
        assert care_in(state).signal_due(1e9) is None


def test_shard_that_answers_again_begins_anew_with_the_gentle_signal() -> None:
    care = care_in(UNHEALTHY)
    assert care.signal_due(50.0) is signal.SIGABRT

    care.answers_again()

    assert care.state is RUNNING
    care.go(UNHEALTHY)
    assert care.signal_due(100.0) is signal.SIGABRT


@pytest.mark.parametrize("make", [asked_to_end, foreign])
def test_next_process_is_not_asked_to_end_because_the_last_one_was(make: Callable[[], Care]) -> None:
    care = make()
    assert care.signal_due(1e9) is not None

    care.end()

    assert (care.state, care.end_by, care.foreign) == (DOWN, None, False)
    care.begin("e2", 1e9)
    care.go(RUNNING)
    assert care.signal_due(2e9) is None
    care.go(UNHEALTHY)
    assert care.signal_due(2e9) is signal.SIGABRT


def test_row_shows_the_last_heartbeat_and_its_age() -> None:
    care = care_in(RUNNING, heard_at=10.0)
    care.restarts, care.last_event = 2, "started"

    reported = NUMBERS | {"uptime_s": 10.3}  # That of the process, not of the report.
    assert care.row(4711, 11.26) == ShardRow(
        id=7, pid=4711, state=RUNNING, restarts=2, stale_s=1.3, last_event="started", **reported
    )


def test_row_has_no_numbers_of_a_shard_that_is_down_or_has_not_reported() -> None:
    down, starting = care_in(DOWN), care_in(STARTING)
    starting.report = None

    assert down.row(None, 50.0) == ShardRow(id=7, pid=None, state=DOWN)
    assert starting.row(4711, 50.0) == ShardRow(id=7, pid=4711, state=STARTING, uptime_s=49.0)


def test_note_replaces_the_event_before_it() -> None:
    care = Care(0)
    care.note("started pid 1", "2026-01-01T12:00:00.000Z")
    care.note("silent", "2026-01-01T12:00:01.000Z")

    assert (care.last_event, care.last_event_at) == ("silent", "2026-01-01T12:00:01.000Z")
