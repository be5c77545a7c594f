"""Patterns of agent ids."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.config.patterns import AgentPatterns, may_overlap, pattern_problem

# Few letters, so that matches happen; the others mean something to regular expressions or globs elsewhere.
ids = st.text("ab.-:@_", max_size=12)
patterns = st.text("ab.-:@_*", min_size=1, max_size=8)


def reference(pattern: str, agent_id: str) -> bool:
    """Match by the `re` module, on inputs too short for its backtracking to hurt."""
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), agent_id) is not None


@given(st.lists(patterns, max_size=4), ids)
def test_patterns_match_as_a_regular_expression_does_when_given_any_list(given_: list[str], agent_id: str) -> None:
    matching = [p for p in given_ if reference(p, agent_id)]
    table = AgentPatterns(given_)

    assert table.matches(agent_id) is bool(matching)
    assert table.first_match(agent_id) == (matching[0] if matching else None)


@given(patterns, patterns, ids)
def test_may_overlap_holds_when_one_id_matches_both(one: str, two: str, agent_id: str) -> None:
    assert may_overlap([one], [two]) == may_overlap([two], [one])
    if reference(one, agent_id) and reference(two, agent_id):
        assert may_overlap([one], [two])


@given(patterns, patterns)
def test_may_overlap_names_a_witness_when_it_says_yes(one: str, two: str) -> None:
    if not may_overlap([one], [two]):
        return
    if "*" in one and "*" in two:
        (head1, *_, tail1), (head2, *_, tail2) = one.split("*"), two.split("*")
        head, tail = max(head1, head2, key=len), max(tail1, tail2, key=len)
        witness = head + one.replace("*", "") + two.replace("*", "") + tail
    else:
        witness = one if "*" not in one else two
    assert reference(one, witness)
    assert reference(two, witness)


@pytest.mark.parametrize(
    ("pattern", "agent_id", "expected"),
    [
        ("waf-*", "waf-1", True),
        ("waf-*", "waf-", True),
        ("waf-*", "WAF-1", False),
        ("waf-*", "my-waf-1", False),
        ("auth-agent", "auth-agent", True),
        ("auth-agent", "auth-agent-2", False),
        ("*-eu", "waf-eu", True),
        ("a*a", "a", False),
        ("a*a", "aa", True),
        ("a.c", "abc", False),
        ("*", "anything", True),
        ("**", "anything", True),
        ("waf-*-*", "waf-1", False),
        ("*1*1*", "11", True),
        ("*1*1*", "1", False),
    ],
)
def test_pattern_matches_whole_ids_when_stars_stand_for_any_run(pattern: str, agent_id: str, expected: bool) -> None:
    assert AgentPatterns([pattern]).matches(agent_id) is expected


def test_pattern_of_many_stars_answers_at_once_when_it_almost_matches() -> None:
    """A backtracking matcher needs longer than the age of the universe for this."""
    assert not AgentPatterns(["a*" * 60 + "b"]).matches("a" * 100_000)
    assert AgentPatterns(["a*" * 60 + "b"]).matches("a" * 100_000 + "b")


def test_patterns_match_nothing_when_there_are_none() -> None:
    assert not AgentPatterns([]).matches("waf-1")
    assert AgentPatterns([]).first_match("waf-1") is None


@pytest.mark.parametrize("pattern", ["", "waf ?", "waf/1", "wäf", "waf\n", "waf,auth", "[ab]", "a" * 129])
def test_patterns_refuse_a_pattern_when_no_id_could_match_it(pattern: str) -> None:
    assert pattern_problem(pattern) is not None
    with pytest.raises(ValueError, match="pattern"):
        AgentPatterns(["ok", pattern])


def test_pattern_of_128_characters_is_accepted_when_stars_come_on_top() -> None:
    assert pattern_problem("*" + "a" * 128 + "*") is None
