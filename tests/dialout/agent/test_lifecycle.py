"""What follows the end of a connection, with a fake clock and no socket."""

import logging
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialout import Backoff, ErrorCode
from dialout.agent.lifecycle import Course, Ending, ErrorRun, Kind, after

BACKOFF = Backoff()
ALMOST = 0.999999
HOPELESS = {ErrorCode.AUTH_FAILED, ErrorCode.NOT_ALLOWED, ErrorCode.VERSION_MISMATCH, ErrorCode.BAD_REGISTRATION}


def refused(code: ErrorCode, retry_after: float | None = None) -> Ending:
    return Ending(kind=Kind.REFUSED, reason=code, error_code=code, retry_after=retry_after)


def lost(lasted: float = 0.0, served: int = 0, kind: Kind = Kind.LOST) -> Ending:
    return Ending(kind=kind, reason="closed by the proxy", lasted=lasted, served=served)


UNREACHABLE = Ending(kind=Kind.UNREACHABLE, reason="nobody there")


@pytest.mark.parametrize("code", list(ErrorCode))
def test_refusals_that_only_a_person_can_change_are_loud_and_slow_and_others_are_not(code: ErrorCode) -> None:
    plan = after(Course(), refused(code), BACKOFF, 0.0)

    assert (plan.level == logging.ERROR) is (code in HOPELESS)
    assert (plan.wait >= 30) is (code in HOPELESS)


def test_connection_limit_is_waited_for_without_a_warning() -> None:
    plan = after(Course(), refused(ErrorCode.CONNECTION_LIMIT), BACKOFF, 0.5)

    assert (plan.level, plan.wait) == (logging.INFO, 0.5)


@given(st.sampled_from(list(ErrorCode)), st.integers(0, 100), st.floats(0, 1, exclude_max=True), st.floats(0, 3600))
def test_proxy_is_left_alone_for_as_long_as_it_asks(code: ErrorCode, failures: int, roll: float, told: float) -> None:
    assert after(Course(failures), refused(code, told), BACKOFF, roll).wait >= told


@pytest.mark.parametrize(
    "ending",
    [UNREACHABLE, lost(), lost(9.9), lost(3600, 1000, Kind.ERRORS), refused(ErrorCode.OVERLOADED)],
    ids=["unreachable", "accept-then-close", "short", "errors", "overloaded"],
)
def test_waits_grow_to_a_minute_while_nothing_gets_better(ending: Ending) -> None:
    course, limits = Course(), []
    for _ in range(8):
        plan = after(course, ending, BACKOFF, ALMOST)
        course = plan.course
        limits.append(round(plan.wait))

    assert limits == [1, 2, 4, 8, 16, 32, 60, 60]


@pytest.mark.parametrize("ending", [lost(10.0), lost(0.01, served=1)], ids=["lasted", "served"])
def test_connection_that_proved_itself_begins_the_back_off_anew(ending: Ending) -> None:
    plan = after(Course(20), ending, BACKOFF, ALMOST)

    assert round(plan.wait) == 1
    assert round(after(plan.course, UNREACHABLE, BACKOFF, ALMOST).wait) == 2


def test_a_proxy_that_accepts_and_closes_is_not_dialled_more_than_a_hundred_times_in_an_hour() -> None:
    rng, now, dials, course = Random(1), 0.0, 0, Course()
    while now < 3600:
        dials += 1
        plan = after(course, lost(0.001), BACKOFF, rng.random())
        course, now = plan.course, now + 0.001 + plan.wait

    assert 60 < dials < 200


def test_an_agent_is_back_within_a_second_when_a_good_proxy_restarts_every_hour() -> None:
    rng, course = Random(1), Course()
    for _ in range(1000):
        plan = after(course, lost(3600, served=10), BACKOFF, rng.random())
        course = plan.course
        assert plan.wait < 1


def test_sixth_error_in_a_row_is_one_too_many_and_success_forgets_them() -> None:
    run = ErrorRun()

    assert [run.bad() for _ in range(5)] == [False] * 5
    run.good()
    assert [run.bad() for _ in range(6)] == [False] * 5 + [True]
    assert run.bad()
