"""Copies of the supervisor's listening sockets, kept by the shard so that they outlive the supervisor.

The shard does not accept on them. While one copy is open, the kernel goes on connecting agents and queues them for the
next supervisor. A copy that no supervisor will take back must be closed for the same reason: agents that connect to it
would never get an answer.
"""

from collections.abc import Sequence

from ipc.handoff import close_all
from ipc.messages import Kept, KeptListener, batches


class Custody:
    """The copies that this shard keeps. This object owns all of them."""

    def __init__(self) -> None:
        self.listeners: list[KeptListener] = []
        self.descriptors: list[int] = []
        self._closed = False

    def __len__(self) -> int:
        return len(self.descriptors)

    def keep(self, listeners: Sequence[KeptListener], descriptors: Sequence[int], *, adds: bool = False) -> None:
        """Keep these copies and take ownership of *descriptors*.

        The earlier copies are closed, unless *adds* is true.
        """
        before = [] if adds else self.descriptors
        self.descriptors = [*self.descriptors, *descriptors] if adds else list(descriptors)
        self.listeners = [*self.listeners, *listeners] if adds else list(listeners)
        close_all(before)
        if self._closed:
            self.close()

    def messages(self) -> list[tuple[Kept, Sequence[int]]]:
        """Return the messages that give all copies back to a supervisor, with their descriptors; at least one."""
        listeners, descriptors = batches(self.listeners), batches(self.descriptors)
        last = len(listeners) - 1
        return [
            (Kept(list(part), more=n < last), fds)
            for n, (part, fds) in enumerate(zip(listeners, descriptors, strict=True))
        ]

    def close(self) -> None:
        """Close all copies, now and in future calls of `keep`: this shard is about to end."""
        self._closed = True
        close_all(self.descriptors)
        self.listeners, self.descriptors = [], []
