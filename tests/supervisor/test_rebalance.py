"""What is moved, and where to, so that every shard has its share."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.config.model import Placement
from supervisor.placement import rendezvous
from supervisor.rebalance import Held, Move, plan

SPREAD, AFFINITY = Placement.SPREAD, Placement.AFFINITY
AGENTS = ("waf", "auth", "geo", "bot")


def hold(spec: dict[int, dict[str, int]]) -> dict[int, dict[str, list[int]]]:
    """Shards with as many connections of each agent as *spec* says, numbered apart."""
    numbers = iter(range(1, 10_000))
    return {
        shard: {agent_id: [next(numbers) for _ in range(n)] for agent_id, n in agents.items() if n}
        for shard, agents in spec.items()
    }


def after(held: Held, moves: list[Move]) -> dict[int, Counter[str]]:
    """Connections of each agent on each shard once *moves* are made."""
    counts = {shard: Counter({agent_id: len(n) for agent_id, n in agents.items()}) for shard, agents in held.items()}
    for move in moves:
        assert move.number in held[move.source][move.agent_id]
        counts[move.source][move.agent_id] -= 1
        counts.setdefault(move.target, Counter())[move.agent_id] += 1
    return counts


specs = st.dictionaries(
    st.integers(0, 5), st.dictionaries(st.sampled_from(AGENTS), st.integers(0, 12), max_size=4), max_size=6
)


@given(specs, st.sets(st.integers(0, 5), min_size=1))
def test_spread_leaves_every_member_its_share_with_as_few_moves_as_that_takes(
    spec: dict[int, dict[str, int]], members: set[int]
) -> None:
    held = hold(spec)
    loads = {shard: sum(map(len, held.get(shard, {}).values())) for shard in members}

    moves = plan(SPREAD, held, members)

    result = after(held, moves)
    final = [result.get(shard, Counter()).total() for shard in members]
    assert sum(final) == sum(loads.values())
    assert len(members) < 2 or max(final) - min(final) <= 1
    share = sum(loads.values()) // len(members)
    above = sum(max(0, load - share - 1) for load in loads.values())
    below = sum(max(0, share - load) for load in loads.values())
    assert len(moves) == len({move.number for move in moves})
    assert len(members) < 2 or len(moves) == max(above, below) or _evened(loads, len(moves))
    for shard in held.keys() - members:
        assert result[shard] == Counter({agent_id: len(n) for agent_id, n in held[shard].items()})
    assert plan(SPREAD, held, members) == moves, "the plan depends on nothing but what is held"


def _evened(loads: dict[int, int], moves: int) -> bool:
    """Whether *moves* is what it takes when the fullest shards keep what cannot be divided."""
    share, rest = divmod(sum(loads.values()), len(loads))
    fullest = sorted(loads.values(), reverse=True)
    return moves == sum(max(0, load - share - (position < rest)) for position, load in enumerate(fullest))


@given(specs, st.sets(st.integers(0, 5), min_size=2))
def test_a_plan_that_was_carried_out_leaves_nothing_to_move(spec: dict[int, dict[str, int]], members: set[int]) -> None:
    held = hold(spec)
    for placement in Placement:
        counts = after(held, plan(placement, held, members))
        again = hold({shard: dict(agents) for shard, agents in counts.items()})
        assert plan(placement, again, members) == []


@given(specs, st.sets(st.integers(0, 5), min_size=2))
def test_affinity_brings_every_agent_to_its_own_shard(spec: dict[int, dict[str, int]], members: set[int]) -> None:
    held = hold(spec)

    result = after(held, plan(AFFINITY, held, members))

    for shard in members:
        for agent_id, count in result.get(shard, Counter()).items():
            assert not count or rendezvous(agent_id, sorted(members)) == shard


@pytest.mark.parametrize("placement", list(Placement))
def test_one_shard_has_nobody_to_share_with(placement: Placement) -> None:
    assert plan(placement, hold({0: {"waf": 9}}), [0]) == []
    assert plan(placement, {}, []) == []


def test_connections_of_one_agent_end_up_apart() -> None:
    held = hold({0: {"waf": 4, "auth": 4}, 1: {}})

    result = after(held, plan(SPREAD, held, [0, 1]))

    assert result == {0: Counter(waf=2, auth=2), 1: Counter(waf=2, auth=2)}


def test_a_new_shard_gets_its_share_from_each() -> None:
    held = hold({0: {"waf": 2, "auth": 4}, 1: {"waf": 2, "auth": 4}, 2: {}})

    moves = plan(SPREAD, held, [0, 1, 2])

    assert Counter((move.source, move.target) for move in moves) == {(0, 2): 2, (1, 2): 2}
