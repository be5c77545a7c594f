"""Bytes that agents make a shard hold: incomplete frames and unread output. A pure table.

A limit for each connection does not bound the process: 100 connections of 16 MiB each are 1.6 GB.
"""

import math
from typing import Generic, TypeVar

from msgspec import Struct

ROOM = 0.9
"""Share of the limit down to which the table is emptied. Emptying further at once saves a sort for each single
close."""

T = TypeVar("T")


class Held(Struct, gc=False):
    """The entry of one holder.

    *size* is its bytes in all. *since* is the round in which its unfinished frame began, infinite without such a frame.
    """

    size: int
    since: float


class Holding(Generic[T]):
    """The holders of bytes, their sizes, and the *total*, which should stay below *limit*.

    A holder of 0 bytes has no entry.
    """

    __slots__ = ("_holders", "_round", "limit", "total")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.total = 0
        self._round = 0
        self._holders: dict[T, Held] = {}

    def __len__(self) -> int:
        return len(self._holders)

    def note(self, holder: T, size: int, *, unfinished: bool, begun: bool) -> bool:
        """Set the size of *holder* to *size* bytes; returns whether it has an entry now.

        *unfinished* says that these bytes include part of a frame. *begun* says that this frame began after the last
        call.
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
        """Remove and return the largest holders, until the total is at most `ROOM` of the limit."""
        taken = []
        for holder in sorted(self._holders, key=lambda one: self._holders[one].size, reverse=True):
            if self.total <= self.limit * ROOM:
                break
            self.total -= self._holders.pop(holder).size
            taken.append(holder)
        return taken

    def next_round(self, most: int) -> list[T]:
        """Begin a round; returns the holders with a frame that is unfinished for more than *most* rounds.

        Time is counted in rounds, not seconds. Rounds do not pass while the process is stopped.
        """
        self._round += 1
        return [holder for holder, held in self._holders.items() if self._round - held.since > most]
