"""When to start a shard again after its process has ended.

Pure. The first death is answered at once: most are accidents, and agents that reconnect should find the shard there.
Deaths that follow each other wait 0.25 s · 2^n, at most 30 s, until the process has lived long enough to be trusted.
"""

from dataclasses import dataclass

STABLE_AFTER = 10.0
"""Seconds of life after which earlier deaths are forgotten."""

FIRST_DELAY = 0.25
LONGEST_DELAY = 30.0


@dataclass(slots=True)
class Backoff:
    """The deaths in a row of one shard."""

    deaths: int = 0

    def after_death(self, lived: float) -> float:
        """Seconds to wait before the next start, given how many seconds the process that has just died lived."""
        if lived >= STABLE_AFTER:
            self.deaths = 0
        self.deaths += 1
        if self.deaths == 1:
            return 0.0
        # The exponent is bounded because 2.0 ** 1024 overflows.
        return min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(self.deaths - 2, 16))
