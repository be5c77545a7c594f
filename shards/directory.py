"""Other shards' agents, as reported by the supervisor. Pure."""

from collections import deque
from collections.abc import Mapping

MOST_NEWER = 500
"""Changes kept while a full directory is on its way: ten seconds of them. If the first of them is lost, there is a
gap again."""


class Directory:
    """Agent id → shard → connections, updated by numbered changes.

    The bus may lose changes. A gap in the numbers makes the directory *stale*. A stale directory stays in use until a
    full one replaces it, since an old direction is better than none. A full directory comes by another socket than the
    changes, so newer changes may be here already. They are kept, and applied again to the full directory.
    """

    __slots__ = ("_counts", "_newer", "_sequence", "stale")

    def __init__(self) -> None:
        self._counts: dict[str, dict[int, int]] = {}
        self._newer: deque[tuple[int, Mapping[str, Mapping[int, int]]]] = deque(maxlen=MOST_NEWER)
        self._sequence = 0
        self.stale = True

    def __len__(self) -> int:
        return len(self._counts)

    def replace(self, sequence: int, counts: Mapping[str, Mapping[int, int]]) -> None:
        """Take a full directory as of change *sequence*."""
        self._counts = {agent_id: dict(shards) for agent_id, shards in counts.items()}
        self._sequence = sequence
        self.stale = False
        newer = [change for change in self._newer if change[0] > sequence]
        self._newer.clear()
        for change in newer:
            self.change(*change)

    def change(self, sequence: int, counts: Mapping[str, Mapping[int, int]]) -> None:
        """Take the new counts of some agents. An agent with no counts has no connections."""
        if sequence != self._sequence + 1:
            self.stale = True
        if sequence <= self._sequence:
            # Another supervisor has started a new sequence.
            self._newer.clear()
        if self.stale:
            self._newer.append((sequence, counts))
        self._sequence = sequence
        for agent_id, shards in counts.items():
            if shards:
                self._counts[agent_id] = dict(shards)
            else:
                self._counts.pop(agent_id, None)

    def holders(self, agent_id: str) -> list[int]:
        """The shards that hold the agent, sorted by their number of its connections, most first."""
        shards = self._counts.get(agent_id, {})
        return sorted(shards, key=lambda shard: (-shards[shard], shard))
