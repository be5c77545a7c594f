"""The configuration that agents get, and how it is written in KDL."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import reduce
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.config.document import read_document
from supervisor.config.jsonlike import to_object
from supervisor.config.merge import MAX_CONFIG_BYTES, encode, merge, oversized
from supervisor.config.model import AgentConfigRule
from supervisor.config.pushed import AgentConfig


def for_agent(rules: Sequence[tuple[str, dict[str, Any]]], agent_id: str) -> object:
    text = AgentConfig(AgentConfigRule((pattern,), config) for pattern, config in rules).for_agent(agent_id)
    return None if text is None else msgspec.json.decode(text)


def test_agent_gets_nothing_when_no_rule_matches() -> None:
    assert AgentConfig([]).for_agent("waf-1") is None
    assert for_agent([("auth-*", {"a": 1})], "waf-1") is None


def test_agent_gets_all_matching_rules_merged_deeply_and_in_order() -> None:
    rules: list[tuple[str, dict[str, Any]]] = [
        ("*", {"log": "info", "limits": {"rate": 1, "burst": 2}, "tags": [1, 2], "gone": {"x": 1}}),
        ("auth-*", {"log": "error"}),
        ("waf-*", {"limits": {"rate": 10}, "tags": [3], "gone": None}),
        ("waf-1", {"limits": {"deep": {"y": 1}}, "log": "debug"}),
    ]

    assert for_agent(rules, "waf-1") == {
        "log": "debug",
        "limits": {"rate": 10, "burst": 2, "deep": {"y": 1}},
        "tags": [3],
        "gone": None,
    }
    assert for_agent(rules, "x") == rules[0][1]


def test_agent_gets_an_empty_object_when_the_rule_is_empty() -> None:
    assert for_agent([("waf-*", {})], "waf-1") == {}


def test_merging_leaves_the_rules_as_they_were() -> None:
    low, high = {"a": {"b": 1}}, {"a": {"c": 2}}
    merged = merge(low, high)
    merged["a"]["d"] = 3

    assert (low, high) == ({"a": {"b": 1}}, {"a": {"c": 2}})


def test_texts_are_kept_for_each_set_of_rules_and_bounded() -> None:
    config = AgentConfig(AgentConfigRule((f"*{i}*",), {str(i): True}) for i in range(10))
    assert config.for_agent("a12") is config.for_agent("b21")

    for subset in range(1, 1024):
        agent_id = "".join(str(i) for i in range(10) if subset >> i & 1)
        expected = dict.fromkeys(agent_id, True)
        assert msgspec.json.decode(config.for_agent(agent_id) or b"null") == expected
    assert len(config._texts) <= 256


objects: st.SearchStrategy[dict[str, Any]] = st.recursive(
    st.dictionaries(st.sampled_from("abc"), st.sampled_from([0, "x" * 9, None, [1]]), max_size=3),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner | st.integers(0, 9), max_size=3),
    max_leaves=6,
)


@given(objects, objects, objects)
def test_merging_is_associative_and_never_longer_than_its_parts(
    a: dict[str, Any], b: dict[str, Any], c: dict[str, Any]
) -> None:
    assert merge(a, {}) == merge({}, a) == a
    assert merge(a, a) == a
    assert len(encode(merge(a, b))) <= len(encode(a)) + len(encode(b))
    if not any(isinstance(x, dict) and not isinstance(y, dict) for x, y in _pairs(a, b)):
        assert merge(merge(a, b), c) == merge(a, merge(b, c))


def _pairs(a: dict[str, Any], b: dict[str, Any]) -> list[tuple[Any, Any]]:
    """Values under the same path in both objects."""
    found = []
    for key in a.keys() & b.keys():
        found.append((a[key], b[key]))
        if isinstance(a[key], dict) and isinstance(b[key], dict):
            found += _pairs(a[key], b[key])
    return found


sizes = st.sampled_from([100, 10_000, 20_000, 30_000, 49_142, 50_000])
globs = st.sampled_from(["*", "waf-*", "waf-1", "*-1", "auth-*", "auth-1", "w*1", "log"])


@given(st.lists(st.tuples(globs, sizes), max_size=5))
def test_oversized_finds_something_whenever_an_agent_could_get_too_much(drawn: list[tuple[str, int]]) -> None:
    rules = [((glob,), {f"k{i}": "x" * size}) for i, (glob, size) in enumerate(drawn)]
    found = oversized(rules)
    largest = 0
    for agent_id in ("waf-1", "waf-2", "auth-1", "auth-2", "log", "x-1", "x", "w1"):
        matching = [config for (glob,), config in rules if fnmatchcase(agent_id, glob)]
        largest = max(largest, len(encode(reduce(merge, matching, {}))))

    if largest > MAX_CONFIG_BYTES:
        assert found is not None
    if found is not None:
        group, size = found
        assert size == sum(len(encode(rules[i][1])) for i in group) > MAX_CONFIG_BYTES


def test_oversized_does_not_add_up_rules_that_no_agent_can_match_together() -> None:
    big = {"a": "x" * 40_000}
    assert oversized([(("*",), {"log": 1}), (("waf-*",), big), (("auth-*",), big), (("log",), big)]) is None
    assert oversized([(("waf-*",), big), (("waf-1",), {"b": "x" * 10_000})]) == ([0, 1], 50_016)
    assert oversized([(("waf-*",), {"a": "x" * (MAX_CONFIG_BYTES - 8)})]) is None
    assert oversized([(("waf-*",), {"a": "x" * (MAX_CONFIG_BYTES - 7)})]) == ([0], MAX_CONFIG_BYTES + 1)


def convert(body: str) -> tuple[dict[str, Any], list[str]]:
    problems: list[str] = []
    [node] = read_document("c {\n" + body + "\n}", "x").nodes
    result = to_object(node, "c", lambda n, where, message, hint: problems.append(f"{n.line}: {where}: {message}"))
    return result, problems


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("", {}),
        ('rules_version "3.4.0"', {"rules_version": "3.4.0"}),
        ("a 1; b -2.5; c true; d null", {"a": 1, "b": -2.5, "c": True, "d": None}),
        ('"a b" ""', {"a b": ""}),
        ("a 1 2 null", {"a": [1, 2, None]}),
        ("(array)a 1; (array)b; (array)c { - 2; }", {"a": [1], "b": [], "c": [2]}),
        ("a x=1 y=2", {"a": {"x": 1, "y": 2}}),
        ("a { x 1; y { z 2; }; }", {"a": {"x": 1, "y": {"z": 2}}}),
        ("a x=1 { y 2; }", {"a": {"x": 1, "y": 2}}),
        ("(object)a", {"a": {}}),
        ("a { - 1; }", {"a": [1]}),
        ("a { - x=1; - { x 2; }; - 1 2; (object)-; (array)-; }", {"a": [{"x": 1}, {"x": 2}, [1, 2], {}, []]}),
        ("a 18446744073709551615 -9223372036854775808", {"a": [2**64 - 1, -(2**63)]}),
        ("a (u8)1", {"a": 1}),
    ],
)
def test_nodes_become_json_values(body: str, expected: dict[str, Any]) -> None:
    assert convert(body) == (expected, [])


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("a", "2: c > a: has no value"),
        ("a 1\na 2", "3: c > a: is there already, on line 2"),
        ("a x=1 {\n x 2\n}", "3: c > a > x: is there already, on line 2"),
        ("a 1 x=2", "2: c > a: values beside properties or children"),
        ("a 1 {\n x 2\n}", "2: c > a: values beside properties or children"),
        ("(object)a 1", "2: c > a: values beside properties or children"),
        ("a {\n - 1\n b 2\n}", "3: c > a > -: an element of an array beside named values"),
        ("(object)a {\n - 1\n}", "3: c > a > -: an element of an array beside named values"),
        ("- 1", "2: c > -: an element of an array beside named values"),
        ("(array)a {\n b 1\n}", "2: c > a: names in an array"),
        ("(map)a 1", "2: c > a: a type annotation here is (array) or (object)"),
        ("a #inf", "2: c > a: JSON has no infinity and no NaN"),
        ("a 1e999", "2: c > a: JSON has no infinity and no NaN"),
        ("a x=18446744073709551616", "2: c > a: a number that does not fit into 64 bits"),
        ("a {\n - {\n  b\n }\n}", "4: c > a > - > b: has no value"),
        ("a { " * 40 + "x 1; " + "}; " * 40, "2: c" + " > a" * 32 + ": is nested more than 32 levels deep"),
    ],
)
def test_nodes_that_would_lose_something_are_refused_with_their_line(body: str, problem: str) -> None:
    assert convert(body)[1] == [problem]
