"""Plan which connections must move so that every shard has its share. Pure: counts go in, a plan comes out."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from supervisor.config.model import Placement
from supervisor.placement import rendezvous


class Move(NamedTuple):
    """The move of one connection from the shard *source* to the shard *target*."""

    agent_id: str
    number: int
    source: int
    target: int


Held = Mapping[int, Mapping[str, Sequence[int]]]
"""Shard → agent id → the numbers of its live connections there."""


def plan(placement: Placement, held: Held, shards: Iterable[int]) -> list[Move]:
    """The moves after which the connections are on *shards* as *placement* would put them.

    ``affinity``: all connections of an agent are on the shard of its id. ``spread``: all shards have the same number of
    connections, give or take one. The connections of one agent are spread too, as far as the least number of moves
    allows. Connections of other shards stay.
    """
    members = sorted(shards)
    if len(members) < 2:
        return []
    if placement is Placement.AFFINITY:
        return _by_affinity(held, members)
    return _evenly(held, members)


def _by_affinity(held: Held, members: list[int]) -> list[Move]:
    moves = []
    for source in members:
        for agent_id, numbers in held.get(source, {}).items():
            target = rendezvous(agent_id, members)
            if target != source:
                moves += [Move(agent_id, number, source, target) for number in numbers]
    return moves


def _evenly(held: Held, members: list[int]) -> list[Move]:
    loads = {shard: sum(map(len, held.get(shard, {}).values())) for shard in members}
    share, rest = divmod(sum(loads.values()), len(members))
    # The fullest shards keep the remainder of the division. That saves a move for each of them.
    fullest_first = sorted(members, key=lambda shard: (-loads[shard], shard))
    wanted = {shard: share + (position < rest) for position, shard in enumerate(fullest_first)}
    own = {shard: {agent_id: len(numbers) for agent_id, numbers in held.get(shard, {}).items()} for shard in members}
    room = {shard: wanted[shard] - loads[shard] for shard in members if wanted[shard] > loads[shard]}
    moves: list[Move] = []
    for source in members:
        surplus = loads[source] - wanted[source]
        if surplus <= 0:
            continue
        for agent_id, number in _most_crowded_first(held[source], surplus):
            # The shard with the fewest connections of the agent, then the one with most room.
            target = min(room, key=lambda shard: (own[shard].get(agent_id, 0), -room[shard], shard))
            moves.append(Move(agent_id, number, source, target))
            own[target][agent_id] = own[target].get(agent_id, 0) + 1
            room[target] -= 1
            if not room[target]:
                del room[target]
    return moves


def _most_crowded_first(agents: Mapping[str, Sequence[int]], count: int) -> list[tuple[str, int]]:
    """*count* connections, taken from the agents with the most connections on this shard first."""
    left = {agent_id: list(numbers) for agent_id, numbers in agents.items()}
    chosen: list[tuple[str, int]] = []
    for height in range(max(map(len, left.values()), default=0), 0, -1):
        for agent_id, numbers in left.items():
            if len(chosen) == count:
                return chosen
            if len(numbers) == height:
                chosen.append((agent_id, numbers.pop()))
    return chosen
