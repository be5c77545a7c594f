"""Remember which shards have which agents, as learned from answers, and choose the shard to ask next.

Any shard can answer for any agent. A shard without a connection of the agent relays the event to another shard. That
costs a hop. So a client remembers the shards that had to relay, and spreads its events over the others. Pure: no clock,
no I/O.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final, Protocol, TypeVar

__all__ = ["AgentPlaces", "Candidate"]

_HAS: Final = float("-inf")
"""Stands for a time: the shard answered for this agent without a relay."""


class Candidate(Protocol):
    """A shard that can be asked, with its number of unanswered events of this client."""

    @property
    def shard(self) -> int:
        """Number of the shard."""

    @property
    def in_flight(self) -> int:
        """Events without an answer."""


C = TypeVar("C", bound=Candidate)


class AgentPlaces:
    """Remembers the shards of at most ``limit`` agents, the ones with the latest answers.

    A shard that answered without a relay *has* the agent. A shard that had to relay *lacks* it for ``lacking_for``
    seconds. After that it is unknown, because the agent may have connected there. All other shards are unknown.
    """

    __slots__ = ("_agents", "_lacking_for", "_limit", "_reluctance", "_turn")

    def __init__(self, limit: int = 10_000, lacking_for: float = 30.0, reluctance: int = 4) -> None:
        self._agents: OrderedDict[str, dict[int, float]] = OrderedDict()
        self._limit = limit
        self._lacking_for = lacking_for
        # An unknown shard is tried when it has this many fewer events in flight than the best shard that has the agent.
        # This is early enough to find all shards of a busy agent, and late enough to spare a quiet agent the hop.
        self._reluctance = reluctance
        self._turn = 0

    def __len__(self) -> int:
        return len(self._agents)

    def choose(self, agent_id: str, candidates: Sequence[C], now: float) -> C:
        """Return the shard to ask: the one with the fewest events in flight among the shards that have the agent.

        An unknown shard is chosen if no shard has the agent, or if it has far fewer events in flight. A shard that
        lacks the agent is chosen only if there is no other. Equal shards take turns. ``candidates`` must not be empty.
        ``now`` is monotonic seconds.
        """
        if len(candidates) == 1:
            return candidates[0]
        known = self._agents.get(agent_id)
        self._turn += 1
        best: C | None = None
        best_cost = 0
        for index in range(self._turn, self._turn + len(candidates)):
            candidate = candidates[index % len(candidates)]
            cost = candidate.in_flight
            if known is not None:
                lacks_until = known.get(candidate.shard, now)
                if lacks_until > now:
                    cost += 1 << 32
                elif lacks_until != _HAS:
                    cost += self._reluctance
            if best is None or cost < best_cost:
                best, best_cost = candidate, cost
        assert best is not None
        return best

    def learn(self, agent_id: str, asked: int, served: int, now: float) -> None:
        """Note that shard ``asked`` answered through a connection of shard ``served``."""
        known = self._agents.get(agent_id)
        if known is None:
            if len(self._agents) >= self._limit:
                self._agents.popitem(last=False)
            known = self._agents[agent_id] = {}
        else:
            self._agents.move_to_end(agent_id)
        known[served] = _HAS
        if asked != served:
            known[asked] = now + self._lacking_for

    def forget(self, agent_id: str, shard: int | None = None) -> None:
        """Forget one shard of an agent, or all of them."""
        if shard is None:
            self._agents.pop(agent_id, None)
        elif (known := self._agents.get(agent_id)) is not None:
            known.pop(shard, None)

    def forget_shard(self, shard: int) -> None:
        """Forget a shard for every agent. It is gone, and its agents will connect to other shards."""
        for agent_id in [agent_id for agent_id, known in self._agents.items() if known.pop(shard, None) is not None]:
            if not self._agents[agent_id]:
                del self._agents[agent_id]
