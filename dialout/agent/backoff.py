"""The wait before the next dial: exponential, with full jitter. Values in, values out.

When a proxy ends, all its agents lose their connections in the same millisecond. Plain doubling would bring them all
back at the same moments, again and again. With *full jitter* each agent waits for a random part of its current limit.
The agents then spread over all of that time
(https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/).
"""

from msgspec import Struct

__all__ = ["Backoff"]


class Backoff(Struct, frozen=True):
    """The limits of waiting, in seconds: ``least`` after the first failure, doubled with each one up to ``most``."""

    least: float = 1.0
    most: float = 60.0

    def __post_init__(self) -> None:
        if not 0 < self.least <= self.most:
            raise ValueError(f"a back-off needs 0 < least <= most, not {self.least} and {self.most}")

    def limit(self, failures: int) -> float:
        """The longest wait after ``failures`` failures in a row. A number below 1 counts as 1."""
        # 2.0**1024 would overflow, and a month of failures is enough for that.
        return min(self.least * 2.0 ** min(max(failures, 1) - 1, 64), self.most)

    def spread(self, failures: int, roll: float, *, after: float = 0.0) -> float:
        """A wait with full jitter: ``after`` seconds, and a random part of the limit.

        ``roll`` is a random number from 0 up to 1. The jitter is added *to* ``after``. Otherwise all agents that were
        told to come back in 5 s would do so in the same moment.
        """
        return after + roll * self.limit(failures)

    def slow(self, roll: float, *, after: float = 0.0) -> float:
        """A wait if an early retry is of no use: half of ``most`` to all of it, and never below ``after``."""
        return max(after, self.most * (0.5 + roll / 2))
