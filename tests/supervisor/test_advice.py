"""Advice: what an operator is told to do next."""

import pytest

from dialout import ErrorCode
from ipc.events import CloseCode
from supervisor.advice import Now, advise
from supervisor.history_rows import Event, Refusals, Story

AT = 1_700_000_000.0
AWAY = Now(connections=0, limit=4, healthy=None)
HERE = Now(connections=1, limit=4, healthy=True)


def story(*events: Event, refusals: tuple[Refusals, ...] = ()) -> Story:
    return Story(agent_id="waf", events=list(events), refusals=list(refusals))


def refused(code: str, ago: float = 1.0) -> Refusals:
    return Refusals(code, 1, AT - ago, AT - ago, "as it was said", "192.0.2.1:5")


def closed(code: str, ago: float = 1.0, seconds: float = 3.0) -> Event:
    return Event(1, AT - ago, "closed", "waf", 1, 0, code, "", seconds)


def told(now: Now, past: Story | None, objection: str | None = None, similar: str | None = None) -> list[str]:
    return list(advise(now, past, objection, similar, AT, 60.0))


def test_advice_is_none_when_an_agent_is_well() -> None:
    assert told(HERE, story(Event(1, AT, "registered", "waf", 1, 0))) == []


@pytest.mark.parametrize("code", list(ErrorCode))
def test_advice_says_what_to_do_about_every_error_code(code: ErrorCode) -> None:
    [line, *_] = told(AWAY, story(refusals=(refused(code.value),)))
    assert line.startswith(f"refused with {code.value}: ")
    assert "as it was said" not in line


@pytest.mark.parametrize("code", [code for code in CloseCode if code is not CloseCode.LOST_SIGHT])
def test_advice_says_why_an_agent_is_away_for_every_close_code(code: CloseCode) -> None:
    [line] = told(AWAY, story(closed(code.value)))
    assert line.startswith("not connected: ")


def test_advice_is_silent_about_refusals_before_an_acceptance_or_long_ago() -> None:
    accepted = Event(1, AT - 5, "registered", "waf", 1, 0)
    assert told(HERE, story(accepted, refusals=(refused("auth_failed", 10.0),))) == []
    assert told(HERE, story(refusals=(refused("auth_failed", 3600.0),))) == []
    # Being at the limit is no matter of once and for all.
    assert len(told(HERE, story(accepted, refusals=(refused("connection_limit", 10.0),)))) == 1


def test_advice_names_what_makes_every_registration_fail_first() -> None:
    lines = told(AWAY, story(refusals=(refused("auth_failed"),)), objection="no token is good for this id")
    assert lines[0] == "no registration under this id can succeed: no token is good for this id"


def test_advice_about_an_unknown_id_asks_for_its_spelling() -> None:
    lines = told(AWAY, None, similar="waf-1")
    assert "the spelling of the id" in lines[0]
    assert lines[1] == "did you mean waf-1? It is known here"


def test_advice_notices_an_agent_that_comes_and_goes_or_is_sick() -> None:
    sick = Now(connections=1, limit=4, healthy=False)
    lines = told(sick, story(*(closed("connection_lost", seconds=n) for n in range(5))))
    assert "not healthy" in lines[0]
    assert "comes and goes: 5 connections ended lately (connection_lost), the longest after 4.0 s" in lines[1]


def test_advice_takes_a_code_of_another_version_as_it_is() -> None:
    assert told(AWAY, story(closed("something_new"))) == []
    assert told(HERE, story(refusals=(refused("something_new"),))) == ["refused with something_new: as it was said"]
