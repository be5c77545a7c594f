"""Which shard is asked next."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialout.proxy.agent_places import AgentPlaces


class Shard(NamedTuple):
    """A shard to choose, with what it has in flight."""

    shard: int
    in_flight: int = 0


def chosen(places: AgentPlaces, *shards: Shard, now: float = 0.0, times: int = 12) -> set[int]:
    return {places.choose("waf", shards, now).shard for _ in range(times)}


def test_unknown_agent_is_asked_for_where_the_fewest_are_in_flight() -> None:
    assert chosen(AgentPlaces(), Shard(0, 5), Shard(1, 2), Shard(2, 9)) == {1}


def test_equal_shards_take_turns() -> None:
    assert chosen(AgentPlaces(), Shard(0), Shard(1), Shard(2)) == {0, 1, 2}


def test_agent_is_asked_for_where_it_is() -> None:
    places = AgentPlaces()

    places.learn("waf", asked=0, served=2, now=0.0)

    assert chosen(places, Shard(0), Shard(1), Shard(2, 3)) == {2}


def test_agent_on_several_shards_is_asked_for_where_the_fewest_are_in_flight() -> None:
    places = AgentPlaces()
    places.learn("waf", 0, 0, now=0.0)
    places.learn("waf", 2, 2, now=0.0)

    assert chosen(places, Shard(0, 3), Shard(1, 0), Shard(2, 2)) == {2}


def test_unknown_shard_is_tried_when_those_that_have_the_agent_are_busy() -> None:
    places = AgentPlaces()
    places.learn("waf", 0, 0, now=0.0)

    assert chosen(places, Shard(0, 4), Shard(1, 0)) == {0, 1}
    assert chosen(places, Shard(0, 5), Shard(1, 0)) == {1}


def test_shard_that_lacks_the_agent_is_tried_again_after_a_while() -> None:
    places = AgentPlaces(lacking_for=30.0)
    places.learn("waf", asked=0, served=1, now=100.0)

    assert chosen(places, Shard(0), Shard(1, 1000), now=129.9) == {1}
    assert chosen(places, Shard(0), Shard(1, 1000), now=130.0) == {0}


def test_shard_that_lacks_the_agent_is_asked_when_there_is_no_other() -> None:
    places = AgentPlaces()
    places.learn("waf", asked=0, served=1, now=0.0)
    places.learn("waf", asked=2, served=1, now=0.0)

    assert chosen(places, Shard(0, 7), Shard(2, 3)) == {2}
    assert chosen(places, Shard(0, 7)) == {0}


def test_answer_of_its_own_ends_a_shards_lack() -> None:
    places = AgentPlaces()
    places.learn("waf", asked=0, served=1, now=0.0)

    places.learn("waf", asked=0, served=0, now=1.0)

    assert chosen(places, Shard(0, 1), Shard(1, 3), now=1.0) == {0}


@pytest.mark.parametrize(
    "forget",
    [
        lambda places: places.forget("waf"),
        lambda places: places.forget("waf", 2),
        lambda places: places.forget_shard(2),
    ],
)
def test_forgotten_places_are_unknown(forget: Callable[[AgentPlaces], None]) -> None:
    places = AgentPlaces()
    places.learn("waf", asked=2, served=2, now=0.0)
    assert chosen(places, Shard(0), Shard(2)) == {2}

    forget(places)

    assert chosen(places, Shard(0), Shard(2)) == {0, 2}


def test_forgetting_one_place_keeps_the_others() -> None:
    places = AgentPlaces()
    places.learn("waf", asked=2, served=2, now=0.0)

    places.forget("waf", 0)
    places.forget("another agent")
    places.forget_shard(0)

    assert chosen(places, Shard(0), Shard(2)) == {2}


def test_places_of_the_agents_that_were_seen_last_are_kept() -> None:
    places = AgentPlaces(limit=3)
    for agent_id in ("waf", "b", "c"):
        places.learn(agent_id, 1, 1, now=0.0)
    places.learn("waf", 1, 1, now=0.0)

    places.learn("d", 1, 1, now=0.0)

    assert len(places) == 3
    assert chosen(places, Shard(0), Shard(1)) == {1}
    assert {places.choose("b", (Shard(0), Shard(1)), 0.0).shard for _ in range(4)} == {0, 1}


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 4), st.integers(0, 4), st.floats(0, 100)), max_size=20),
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 50)), min_size=1, max_size=5, unique_by=lambda pair: pair[0]),
    st.floats(0, 200),
)
def test_choice_is_one_of_the_candidates_whatever_was_learned(
    answers: list[tuple[str, int, int, float]], shards: list[tuple[int, int]], now: float
) -> None:
    places = AgentPlaces()
    for agent_id, asked, served, when in answers:
        places.learn(agent_id, asked, served, when)
    candidates = [Shard(*pair) for pair in shards]

    assert places.choose("a", candidates, now) in candidates
