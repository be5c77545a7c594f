"""Placement: where the next connection goes."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.config.model import Placement
from supervisor.ledger import Ledger
from supervisor.placement import choose, rendezvous, spread

names = st.text("abcxyz019._:@-", min_size=1, max_size=12)
candidate_lists = st.lists(st.integers(0, 9), min_size=1, unique=True)
slots = st.lists(st.tuples(st.sampled_from(["waf", "auth"]), st.integers(0, 9), st.booleans()), max_size=25)


def ledger_with(taken: list[tuple[str, int, bool]]) -> Ledger:
    """A ledger of slots (agent, shard, live), and a reserved one of "waf" that no shard has yet."""
    ledger = Ledger(1000)
    for agent_id, shard, live in taken:
        number = ledger.reserve(agent_id)
        ledger.place(agent_id, number, shard)
        if live:
            ledger.commit(agent_id, number)
    ledger.reserve("waf")
    return ledger


@given(slots, candidate_lists)
def test_spread_takes_the_fewest_of_the_agent_then_the_fewest_then_the_lowest(
    taken: list[tuple[str, int, bool]], candidates: list[int]
) -> None:
    own = Counter(shard for agent_id, shard, _ in taken if agent_id == "waf")
    everybody = Counter(shard for _, shard, _ in taken)
    ranked = sorted((own[shard], everybody[shard], shard) for shard in candidates)

    assert spread(ledger_with(taken), "waf", candidates) == ranked[0][2]


@given(st.integers(1, 6), st.lists(st.sampled_from(["waf", "auth", "geo"]), max_size=40))
def test_spread_keeps_every_agent_and_all_together_even_when_nobody_leaves(shards: int, arrivals: list[str]) -> None:
    ledger = Ledger(1000)
    for agent_id in arrivals:
        number = ledger.reserve(agent_id)
        ledger.place(agent_id, number, spread(ledger, agent_id, range(shards)))
    for agent_id in set(arrivals):
        counts = [ledger.count_on(agent_id, shard) for shard in range(shards)]
        assert max(counts) - min(counts) <= 1


def test_spread_does_not_hold_an_agents_only_slot_against_the_shard_that_it_was_offered_to() -> None:
    ledger = Ledger(4)
    ledger.place("waf", ledger.reserve("waf"), 2)
    for shard in (0, 0, 1, 1):
        ledger.place("auth", ledger.reserve("auth"), shard)

    assert spread(ledger, "waf", [0, 1, 2]) == 2


@given(names, st.lists(st.integers(0, 63), min_size=2, unique=True), st.data())
def test_affinity_moves_only_the_agents_of_a_shard_that_goes(
    agent_id: str, candidates: list[int], data: st.DataObject
) -> None:
    before = rendezvous(agent_id, candidates)
    gone = data.draw(st.sampled_from(candidates))
    after = rendezvous(agent_id, [shard for shard in candidates if shard != gone])

    assert (after == before) == (gone != before)


@given(names, candidate_lists, st.integers(10, 63))
def test_affinity_moves_agents_only_to_a_shard_that_comes(agent_id: str, candidates: list[int], new: int) -> None:
    before = rendezvous(agent_id, candidates)

    assert rendezvous(agent_id, [*candidates, new]) in (before, new)


@given(names, st.lists(st.integers(0, 63), min_size=1, unique=True), st.randoms())
def test_affinity_is_the_same_in_any_order_of_candidates(agent_id: str, candidates: list[int], random: object) -> None:
    shuffled = list(candidates)
    random.shuffle(shuffled)  # type: ignore[attr-defined]  # hypothesis's random.Random

    assert rendezvous(agent_id, shuffled) == rendezvous(agent_id, candidates)


@pytest.mark.parametrize("shards", [2, 4, 7])
def test_affinity_gives_every_shard_its_share(shards: int) -> None:
    share = 800
    agents = [f"agent-{i}" for i in range(share * shards)]
    chosen = [rendezvous(name, range(shards)) for name in agents]
    counts = Counter(chosen)

    # Six standard deviations of a fair draw are about 170.
    assert set(counts) == set(range(shards))
    assert all(abs(n - share) < 170 for n in counts.values())
    assert chosen == [rendezvous(name, range(shards)[::-1]) for name in agents]


def test_affinity_gives_every_other_shard_its_share_of_one_that_goes() -> None:
    orphans = [name for name in map("agent-{}".format, range(4000)) if rendezvous(name, range(4)) == 3]
    counts = Counter(rendezvous(name, range(3)) for name in orphans)

    assert all(abs(n - len(orphans) / 3) < 110 for n in counts.values())
    assert len(counts) == 3


def test_choose_follows_the_placement_and_the_candidates() -> None:
    ledger = ledger_with([("waf", 0, True), ("auth", 0, True)])
    agents = [f"agent-{i}" for i in range(50)]

    for placement in Placement:
        assert choose(placement, ledger, "waf", []) is None
        assert choose(placement, ledger, "waf", [7]) == 7
    assert choose(Placement.SPREAD, ledger, "waf", [0, 1]) == 1
    assert {choose(Placement.SPREAD, ledger, name, [0, 1]) for name in agents} == {1}
    chosen = [choose(Placement.AFFINITY, ledger, name, [0, 1]) for name in agents]
    assert chosen == [rendezvous(name, [0, 1]) for name in agents]
    assert set(chosen) == {0, 1}
