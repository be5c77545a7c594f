"""The directory of agents elsewhere, over a bus that loses, delays and restarts."""

from hypothesis import given
from hypothesis import strategies as st

from shards.directory import MOST_NEWER, Directory

AGENTS = ("waf", "auth")


def held(directory: Directory) -> dict[str, list[int]]:
    return {agent_id: directory.holders(agent_id) for agent_id in AGENTS}


def expected(counts: dict[str, dict[int, int]]) -> dict[str, list[int]]:
    return {
        agent_id: [shard for shard, _ in sorted(counts.get(agent_id, {}).items(), key=lambda item: (-item[1], item[0]))]
        for agent_id in AGENTS
    }


def test_holders_come_with_the_fullest_first() -> None:
    directory = Directory()
    directory.replace(1, {"waf": {0: 1, 1: 5, 2: 5, 3: 9}})
    assert directory.holders("waf") == [3, 1, 2, 0]
    assert directory.holders("nobody") == []
    assert len(directory) == 1


def test_directory_is_stale_until_the_first_full_one() -> None:
    directory = Directory()
    assert directory.stale
    directory.change(1, {"waf": {1: 1}})
    directory.change(2, {})
    assert directory.holders("waf") == [1], "an old direction is better than none"
    directory.replace(2, {"waf": {1: 1}})
    assert not directory.stale
    directory.change(3, {"waf": {}})
    assert (directory.holders("waf"), directory.stale) == ([], False)


def test_hole_makes_it_stale_and_a_full_one_mends_it() -> None:
    directory = Directory()
    directory.replace(10, {"waf": {1: 1}})
    directory.change(12, {"auth": {1: 1}})
    assert directory.stale
    assert held(directory) == {"waf": [1], "auth": [1]}
    directory.replace(12, {"auth": {1: 1}})
    assert (held(directory), directory.stale) == ({"waf": [], "auth": [1]}, False)


def test_change_that_overtakes_the_full_directory_is_not_lost() -> None:
    directory = Directory()
    directory.change(5, {"auth": {1: 1}})
    directory.change(6, {"waf": {2: 1}})
    directory.replace(5, {"auth": {1: 1}})
    assert (held(directory), directory.stale) == ({"waf": [2], "auth": [1]}, False)


def test_full_directory_with_a_hole_behind_it_does_not_mend() -> None:
    directory = Directory()
    directory.change(7, {"waf": {2: 1}})
    directory.replace(5, {})
    assert directory.stale, "number 6 is missing"
    directory.replace(7, {"waf": {2: 1}})
    assert not directory.stale


def test_changes_of_a_supervisor_that_is_gone_are_not_made_again() -> None:
    directory = Directory()
    directory.replace(400, {})
    directory.change(500, {"waf": {9: 1}})
    directory.change(1, {"waf": {1: 1}})
    directory.replace(1, {"waf": {1: 1}})
    assert (held(directory), directory.stale) == ({"waf": [1], "auth": []}, False)


def test_what_is_kept_for_a_full_directory_is_bounded() -> None:
    directory = Directory()
    for number in range(2, MOST_NEWER + 100):
        directory.change(number, {"waf": {number: 1}})
    directory.replace(1, {})
    assert directory.stale, "the first of what came since is not there any more"
    directory.replace(MOST_NEWER + 99, {})
    assert not directory.stale


@given(
    st.lists(
        st.one_of(
            st.tuples(
                st.just("change"),
                st.sampled_from(AGENTS),
                st.dictionaries(st.integers(0, 3), st.integers(1, 3), max_size=2),
                st.booleans(),
            ),
            st.tuples(st.just("full"), st.integers(0, 3), st.none(), st.none()),
            st.tuples(st.just("restart"), st.none(), st.none(), st.none()),
        ),
        max_size=40,
    )
)
def test_directory_that_is_not_stale_is_the_publishers(steps: list[tuple[str, object, object, object]]) -> None:
    """Changes may be lost, and a full directory may be as old as a few changes when it comes."""
    directory = Directory()
    sequence = 0
    counts: dict[str, dict[int, int]] = {}
    history = [(0, counts)]
    for kind, first, second, lost in steps:
        if kind == "change":
            assert isinstance(first, str)
            assert isinstance(second, dict)
            sequence += 1
            counts = {**counts, first: second}
            history.append((sequence, counts))
            if not lost:
                directory.change(sequence, {first: second})
        elif kind == "full":
            assert isinstance(first, int)
            directory.replace(*history[max(0, len(history) - 1 - first)])
        elif directory._sequence != 0:
            # Its first message is empty, and makes every directory of the time before it stale: unless that was at 0,
            # which no supervisor that publishes is for longer than 20 ms.
            sequence = 1
            history = [(sequence, counts)]
            directory.change(sequence, {})
        behind = sequence - directory._sequence
        if not directory.stale and not behind:
            assert held(directory) == expected(counts)
    directory.replace(sequence, counts)
    assert (held(directory), directory.stale) == (expected(counts), False)
