"""Times and sizes as people read them."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.merge import rfc3339
from supervisor.words import moment, moment_of, size

NOON = 1_700_049_600.0
"""2023-11-15 12:00:00 UTC."""

DAY = 86_400.0


@pytest.mark.parametrize(
    ("age", "text"),
    [
        (0.0, "12:00:00Z"),
        (DAY - 1, "12:00:01Z"),
        (DAY, "2023-11-14 12:00:00Z"),
        (400 * DAY, "2022-10-11 12:00:00Z"),
        (-2 * DAY, "2023-11-17 12:00:00Z"),
    ],
)
def test_time_names_its_zone_and_has_a_date_once_it_is_a_day_away(age: float, text: str) -> None:
    assert moment(NOON - age, NOON) == text
    assert moment_of(rfc3339(NOON - age), NOON) == text


def test_time_has_milliseconds_where_they_are_asked_for() -> None:
    assert moment(NOON + 0.25, NOON, milliseconds=True) == "12:00:00.250Z"


@pytest.mark.parametrize("number", [float("inf"), float("nan"), 1e300, -1e300])
def test_number_that_is_no_time_is_a_question_mark(number: float) -> None:
    assert moment(number, NOON) == "?"


@given(st.text())
def test_text_that_is_no_time_is_shown_safely(text: str) -> None:
    assert moment_of(text, NOON).isprintable()


@given(st.floats(0, 4e9))
def test_time_is_that_of_the_json_form(at: float) -> None:
    date, clock = re.split("T", rfc3339(at)[:-1])
    shown = moment(at, NOON, milliseconds=True).removeprefix(f"{date} ")
    # The JSON form is rounded, and the other one is cut.
    assert shown[:8] == clock[:8] or clock.endswith(".000")


def test_sizes_are_of_1024_and_named_so() -> None:
    assert (size(1023), size(1024), size(1536 * 1024)) == ("1023 B", "1.0 KiB", "1.5 MiB")
