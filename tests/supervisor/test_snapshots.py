"""What a snapshot is believed about, and what becomes of whom nobody has decided about."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipc.events import Snapshot
from supervisor.snapshots import Found, Held, Inquiry, Verdict, undecided, verdict

numbers = st.integers(1, 8)
connections = st.dictionaries(numbers, st.sampled_from(["waf", "auth"])).map(lambda held: list(held.items()))


def snapshot(
    live: list[Held] | None = None,
    prepared: list[Held] | None = None,
    moving: list[Held] | None = None,
    let_go: list[int] | None = None,
) -> Snapshot:
    return Snapshot(1, 1, live or [], prepared or [], moving or [], let_go or [])


# What it can tell.


def test_snapshot_is_compared_with_what_was_believed_when_it_was_asked_for() -> None:
    inquiry = Inquiry()
    inquiry.ask(7, {(1, "waf"), (2, "waf")}, 10.0)

    assert inquiry.compare(snapshot(live=[(2, "waf"), (3, "auth")])) == (
        {(1, "waf"), (2, "waf")},
        {(2, "waf"), (3, "auth")},
    )
    assert (inquiry.request, inquiry.asked_at) == (7, 10.0)


@pytest.mark.parametrize("on_its_way", ["prepared", "moving"])
def test_connection_that_a_shard_holds_without_its_commit_is_not_gone(on_its_way: str) -> None:
    inquiry = Inquiry()
    inquiry.ask(1, {(1, "waf"), (2, "waf")}, 0.0)

    held = snapshot(prepared=[(1, "waf")]) if on_its_way == "prepared" else snapshot(moving=[(1, "waf")])

    assert inquiry.compare(held) == ({(2, "waf")}, set())


@given(connections, connections, st.sets(numbers), st.sets(numbers))
def test_snapshot_says_nothing_about_what_was_let_go_of_since_it_was_asked_for(
    believed: list[Held], live: list[Held], before: set[int], since: set[int]
) -> None:
    inquiry = Inquiry()
    for number in before:
        inquiry.recall(number)
    inquiry.ask(1, set(believed), 0.0)
    for number in since:
        inquiry.recall(number)

    assert inquiry.compare(snapshot(live=live)) == (
        {one for one in believed if one[0] not in since},
        {one for one in live if one[0] not in since},
    )


# Who was found.


def test_newcomers_of_this_supervisor_are_its_own_business() -> None:
    held = snapshot(prepared=[(99, "waf"), (100, "waf")])
    assert undecided(3, held, first_number=100, live=(), moving=()) == {Found(3, 99, "waf", False)}


@given(connections, st.sets(numbers), st.sets(numbers), st.sets(numbers))
def test_members_between_shards_are_found_unless_their_descriptor_is_here_or_about_to_be(
    members: list[Held], let_go: set[int], live: set[int], moving: set[int]
) -> None:
    found = undecided(0, snapshot(moving=members, let_go=list(let_go)), first_number=1, live=live, moving=moving)

    coming = let_go & live
    assert found == {Found(0, n, agent_id, True) for n, agent_id in members if n not in coming | moving}


# What becomes of them.

CASES = list(itertools.product([False, True], [None, 0, 1], [False, True], [False, True]))


@pytest.mark.parametrize(("member", "served_by", "is_moving", "has_room"), CASES)
def test_every_case_has_its_verdict(member: bool, served_by: int | None, is_moving: bool, has_room: bool) -> None:
    found = Found(0, 7, "waf", member)

    what = verdict(found, served_by=served_by, is_moving=is_moving, has_room=has_room)

    if is_moving:
        assert what is Verdict.WAIT
    elif served_by is None:
        assert what is (Verdict.ADOPT if member or has_room else Verdict.REFUSE)
    else:
        assert what is (Verdict.COMMIT if served_by == 0 else Verdict.REVOKE)
