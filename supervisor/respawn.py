"""When to start a shard again after its process has ended.

Pure. After the first death the shard is started at once: most deaths are accidents, and reconnecting agents should find
the shard running. After further deaths in a row the wait is 0.25 s · 2^n, at most 30 s. A process that lived for
`STABLE_AFTER` seconds ends the row.
"""

from dataclasses import dataclass

STABLE_AFTER = 10.0
"""Seconds that a process must live so that earlier deaths are forgotten."""

FIRST_DELAY = 0.25
LONGEST_DELAY = 30.0


@dataclass(slots=True)
class Backoff:
    """The number of deaths in a row of one shard."""

    deaths: int = 0

    def after_death(self, lived: float) -> float:
        """Seconds to wait before the next start. *lived* is the lifetime of the dead process in seconds."""
        if lived >= STABLE_AFTER:
            self.deaths = 0
        self.deaths += 1
        if self.deaths == 1:
            return 0.0
        # The exponent is bounded because 2.0 ** 1024 overflows.
        return min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(self.deaths - 2, 16))
