"""What agents make a shard hold: frames that are not complete, and bytes that they do not read. Pure: a table.

A limit for each connection is none for the process: 16 MiB each are 1.6 GB with a hundred of them.
"""

import math
from typing import Generic, TypeVar

from msgspec import Struct

ROOM = 0.9
"""Share of the limit to which it is emptied: to close one connection after the other costs a sort for each."""

T = TypeVar("T")


class Held(Struct, gc=False):
    """What one holder has: bytes in all, and the round in which its unfinished frame began (infinite without one)."""

    size: int
    since: float


class Holding(Generic[T]):
    """Who holds how many bytes, and *total*, which should stay below *limit*. Only who holds something is in it."""

    __slots__ = ("_holders", "_round", "limit", "total")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.total = 0
        self._round = 0
        self._holders: dict[T, Held] = {}

    def __len__(self) -> int:
        return len(self._holders)

    def note(self, holder: T, size: int, *, unfinished: bool, begun: bool) -> bool:
        """Note that *holder* has *size* bytes now; returns whether it still is in the table.

        *unfinished* says that part of a frame is among them, *begun* that its first byte has come since the last time.
        """
        held = self._holders.get(holder)
        if held is None:
            if not size:
                return False
            held = self._holders[holder] = Held(0, math.inf)
        self.total += size - held.size
        if not size:
            del self._holders[holder]
            return False
        held.size = size
        if not unfinished:
            held.since = math.inf
        elif begun or held.since == math.inf:
            held.since = self._round
        return True

    def take_largest(self) -> list[T]:
        """Remove and return those that hold most, until there is room again: all that are above the limit's `ROOM`."""
        taken = []
        for holder in sorted(self._holders, key=lambda one: self._holders[one].size, reverse=True):
            if self.total <= self.limit * ROOM:
                break
            self.total -= self._holders.pop(holder).size
            taken.append(holder)
        return taken

    def next_round(self, most: int) -> list[T]:
        """Begin a round; returns those whose frame was unfinished for more than *most* rounds.

        Rounds, not seconds: in a process that was stopped for a while they do not go on.
        """
        self._round += 1
        return [holder for holder, held in self._holders.items() if self._round - held.since > most]
