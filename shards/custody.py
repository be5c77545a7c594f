"""Listening sockets in the shard's custody: copies of the supervisor's, so that they outlive it.

Nobody accepts here. As long as one copy is open, the kernel lets agents connect and keeps them in the queue, where the
next supervisor finds them. For the same reason a copy that nobody will take back must not stay open: it would let
agents in whom nobody ever answers.
"""

from collections.abc import Sequence

from ipc.handoff import close_all
from ipc.messages import KeptListener


class Custody:
    """The copies that this shard keeps, all of them owned here."""

    def __init__(self) -> None:
        self.listeners: list[KeptListener] = []
        self.descriptors: list[int] = []
        self._closed = False

    def __len__(self) -> int:
        return len(self.descriptors)

    def keep(self, listeners: Sequence[KeptListener], descriptors: Sequence[int]) -> None:
        """Keep these, and close those from before; *descriptors* are owned from now on."""
        before, self.descriptors = self.descriptors, list(descriptors)
        self.listeners = list(listeners)
        close_all(before)
        if self._closed:
            self.close()

    def close(self) -> None:
        """Close all of them, and keep none from now on: this shard is about to end."""
        self._closed = True
        close_all(self.descriptors)
        self.listeners, self.descriptors = [], []
