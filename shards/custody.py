"""Listening sockets in the shard's custody: copies of the supervisor's, so that they outlive it.

Nobody accepts here. As long as one copy is open, the kernel lets agents connect and keeps them in the queue, where the
next supervisor finds them. For the same reason a copy that nobody will take back must not stay open: it would let
agents in whom nobody ever answers.
"""

from collections.abc import Sequence

from ipc.handoff import close_all
from ipc.messages import Kept, KeptListener, batches


class Custody:
    """The copies that this shard keeps, all of them owned here."""

    def __init__(self) -> None:
        self.listeners: list[KeptListener] = []
        self.descriptors: list[int] = []
        self._closed = False

    def __len__(self) -> int:
        return len(self.descriptors)

    def keep(self, listeners: Sequence[KeptListener], descriptors: Sequence[int], *, adds: bool = False) -> None:
        """Keep these, and close those from before, unless this *adds* to them; *descriptors* are owned from now on."""
        before = [] if adds else self.descriptors
        self.descriptors = [*self.descriptors, *descriptors] if adds else list(descriptors)
        self.listeners = [*self.listeners, *listeners] if adds else list(listeners)
        close_all(before)
        if self._closed:
            self.close()

    def messages(self) -> list[tuple[Kept, Sequence[int]]]:
        """What tells a supervisor all that is kept: messages with their descriptors, one at least."""
        listeners, descriptors = batches(self.listeners), batches(self.descriptors)
        last = len(listeners) - 1
        return [
            (Kept(list(part), more=n < last), fds)
            for n, (part, fds) in enumerate(zip(listeners, descriptors, strict=True))
        ]

    def close(self) -> None:
        """Close all of them, and keep none from now on: this shard is about to end."""
        self._closed = True
        close_all(self.descriptors)
        self.listeners, self.descriptors = [], []
