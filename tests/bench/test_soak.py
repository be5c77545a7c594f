"""What the soak blames a fault for, and what it does not."""

import pytest

from bench.asker import Failed
from bench.crowd import Closed, Refused
from bench.soak import FAULTS, Growth, Row
from bench.world import Account

MINE, OTHER = "u1", "u2"


def account(*met: Closed | Failed | Refused, cut: int = 0) -> Account:
    """What agents and proxy have met."""
    new = Account()
    new.closed = [one for one in met if isinstance(one, Closed)]
    new.failed = [one for one in met if isinstance(one, Failed)]
    new.refused = [one for one in met if isinstance(one, Refused)]
    new.cut = cut
    return new


def closed(end: str) -> Closed:
    """A connection that was lost."""
    return Closed(0.0, "waf", "waf-conn-1", end, "end")


def failed(code: str) -> Failed:
    """A request that failed."""
    return Failed(0.0, 0.1, "waf", code, False, 0, "because")


def blame(kind: str, new: Account) -> list[str]:
    """What cannot be explained by a fault that has ended the shard of `MINE`."""
    return Row().add(kind, new, {MINE}, 0.1)


def test_connection_may_be_lost_with_its_own_shard_only() -> None:
    row = Row()

    (wrong,) = row.add("shard killed", account(closed(MINE), closed(OTHER)), {MINE}, 0.1)

    assert wrong.startswith("connection lost")
    assert (row.lost_with_their_shard, row.lost) == (1, 1)


@pytest.mark.parametrize("kind", FAULTS)
@pytest.mark.parametrize("code", ["connection_lost", "agent_not_found", "request_timeout", "shutting_down"])
def test_request_may_fail_when_a_shard_is_killed_and_for_no_other_reason(kind: str, code: str) -> None:
    explained = "shard killed" in kind and code in ("connection_lost", "agent_not_found")

    assert (blame(kind, account(failed(code))) == []) == explained


@pytest.mark.parametrize("kind", FAULTS)
def test_registration_may_be_cut_off_by_a_kill_only(kind: str) -> None:
    assert (blame(kind, account(cut=1)) == []) == ("killed" in kind)


@pytest.mark.parametrize("kind", FAULTS)
def test_agent_below_its_limit_may_be_refused_only_while_a_process_is_silent(kind: str) -> None:
    at_its_limit = Refused(0.0, "waf", "connection_limit", False)
    below_it = Refused(0.0, "waf", "connection_limit", True)
    overloaded = Refused(0.0, "waf", "overloaded", False)

    assert blame(kind, account(at_its_limit)) == []
    for refused in (below_it, overloaded):
        assert (blame(kind, account(refused)) == []) == ("stopped" in kind)


def test_growth_is_that_of_each_life_and_not_of_the_differences_between_lives() -> None:
    growth = Growth()
    lives = growth._lives["shard"]
    lives[1] = [(10.0, 50.0), (70.0, 51.0), (130.0, 52.0)]
    lives[2] = [(10.0, 80.0), (70.0, 81.0)]

    slope, seconds = growth.slopes()["shard"]

    assert slope == pytest.approx(1.0)
    assert seconds == 180.0
