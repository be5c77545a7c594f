"""Where agents are, as far as answers have told, and which shard to ask next.

Any shard answers for any agent: one that has no connection of it asks another one. That costs a hop, so a
client remembers who had to, and spreads over the others. Pure: no clock, no I/O.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final, Protocol, TypeVar

__all__ = ["AgentPlaces", "Candidate"]

_HAS: Final = float("-inf")
"""In place of a time: the shard answered for this agent by itself."""


class Candidate(Protocol):
    """A shard that can be asked, and how many events it owes this client an answer to."""

    @property
    def shard(self) -> int:
        """Number of the shard."""

    @property
    def in_flight(self) -> int:
        """Events without an answer."""


C = TypeVar("C", bound=Candidate)


class AgentPlaces:
    """Knows at most ``limit`` agents, the ones that were asked for last.

    Shards that answered by themselves *have* the agent; those that another one had to help *lack* it, for
    ``lacking_for`` seconds, because the agent may connect there; all others are unknown.
    """

    __slots__ = ("_agents", "_lacking_for", "_limit", "_reluctance", "_turn")

    def __init__(self, limit: int = 10_000, lacking_for: float = 30.0, reluctance: int = 4) -> None:
        self._agents: OrderedDict[str, dict[int, float]] = OrderedDict()
        self._limit = limit
        self._lacking_for = lacking_for
        # An unknown shard is tried when it has this many fewer in flight than the best that has the agent:
        # early enough to find all shards of a busy agent, late enough to spare a quiet one the hop.
        self._reluctance = reluctance
        self._turn = 0

    def __len__(self) -> int:
        return len(self._agents)

    def choose(self, agent_id: str, candidates: Sequence[C], now: float) -> C:
        """The shard to ask: of those that have the agent, the one with the fewest in flight.

        An unknown one when none has it, or when it has far fewer in flight; one that lacks it when there is
        nothing else. Equals take turns. ``candidates`` must not be empty; ``now`` is monotonic seconds.
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
        """Take note that shard ``asked`` answered with a connection of shard ``served``."""
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
        """Forget a shard for every agent: it is gone, and its agents are elsewhere by now."""
        for agent_id in [agent_id for agent_id, known in self._agents.items() if known.pop(shard, None) is not None]:
            if not self._agents[agent_id]:
                del self._agents[agent_id]
