"""Placement: which shard gets the next connection.

Pure: the ledger's counts and the shards that can take one now go in, a shard comes out. Shards that are unhealthy,
draining or back-pressured are not among the candidates.
"""

from collections.abc import Sequence
from hashlib import blake2b

from supervisor.config.model import Placement
from supervisor.ledger import Ledger


def choose(placement: Placement, ledger: Ledger, agent_id: str, candidates: Sequence[int]) -> int | None:
    """The shard for a connection of *agent_id*, None when there is no candidate."""
    if len(candidates) < 2:
        return candidates[0] if candidates else None
    if placement is Placement.AFFINITY:
        return rendezvous(agent_id, candidates)
    return spread(ledger, agent_id, candidates)


def spread(ledger: Ledger, agent_id: str, candidates: Sequence[int]) -> int:
    """The candidate with the fewest connections of this agent, then the fewest in all, then the lowest number."""
    count = ledger.count(agent_id)
    if count < 2:
        # The only slot is the newcomer's own; it is on no shard, or on one that did not take it.
        return min(candidates, key=lambda shard: (ledger.load(shard), shard))
    return min(candidates, key=lambda shard: (ledger.count_on(agent_id, shard), ledger.load(shard), shard))


def rendezvous(agent_id: str, candidates: Sequence[int]) -> int:
    """The same candidate for the same agent, whatever the others do (highest random weight).

    When a shard goes, only its agents move; when it comes back, only they return. Thaler and Ravishankar, "Using
    name-based mappings to increase hit rates", IEEE/ACM Transactions on Networking 6 (1), 1998.
    """
    name = agent_id.encode()
    return max(candidates, key=lambda shard: blake2b(name, digest_size=8, salt=b"%d" % shard).digest())
