"""Which other shards hold an agent, as far as the supervisor has told. Pure."""

from collections import deque
from collections.abc import Mapping

MOST_NEWER = 500
"""Changes that are kept while a full directory is waited for: ten seconds of them. Without the first of them there is a
hole again."""


class Directory:
    """Agent id → shard → connections, kept up by numbered changes.

    The bus may lose changes. A hole in the numbers makes the directory *stale*: it goes on being used, since an old
    direction is better than none, until a full one replaces it. A full one comes another way than the changes, so that
    newer changes may be here already: they are kept while it is waited for, and made once more.
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
        """Take a full directory as it was at *sequence*."""
        self._counts = {agent_id: dict(shards) for agent_id, shards in counts.items()}
        self._sequence = sequence
        self.stale = False
        newer = [change for change in self._newer if change[0] > sequence]
        self._newer.clear()
        for change in newer:
            self.change(*change)

    def change(self, sequence: int, counts: Mapping[str, Mapping[int, int]]) -> None:
        """Take the new counts of some agents; an agent without connections has none."""
        if sequence != self._sequence + 1:
            self.stale = True
        if sequence <= self._sequence:
            # Another supervisor, which began to count anew.
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
        """The shards that hold the agent, the one with most connections first."""
        shards = self._counts.get(agent_id, {})
        return sorted(shards, key=lambda shard: (-shards[shard], shard))
