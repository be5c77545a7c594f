"""The circuit breaker of one agent. Pure: the clock comes in as an argument.

::

    closed ──threshold failures in a row──► open ──time is up──► half-open ──the trial succeeds──► closed
                                             ▲                      │
                                             └──the trial fails─────┘
"""

from enum import StrEnum


class Circuit(StrEnum):
    """Whether requests go to the agent: all, none, or one trial."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Breaker:
    """Counts failures in a row of one agent. It is created at the first failure, so that a working agent has none."""

    __slots__ = ("_failures", "_open_for", "_opened_at", "_threshold", "state")

    def __init__(self, threshold: int, open_for: float) -> None:
        self.state = Circuit.CLOSED
        self._threshold = threshold
        self._open_for = open_for
        self._failures = 0
        self._opened_at = 0.0

    def admits(self, now: float) -> bool:
        """Whether a request may go to the agent. A request that is admitted in an open circuit is the trial."""
        if self.state is Circuit.CLOSED:
            return True
        if self.state is Circuit.OPEN and now - self._opened_at >= self._open_for:
            self.state = Circuit.HALF_OPEN
            self._opened_at = now
            return True
        # A trial that never ends (its caller gave up) must not keep the circuit half-open for ever.
        if self.state is Circuit.HALF_OPEN and now - self._opened_at >= self._open_for:
            self._opened_at = now
            return True
        return False

    def retry_after(self, now: float) -> float:
        """Seconds until the next trial may be made."""
        return max(0.0, self._open_for - (now - self._opened_at)) if self.state is not Circuit.CLOSED else 0.0

    def succeeded(self) -> None:
        """Note an answer of the agent. Any decision shows that the agent works."""
        self.state = Circuit.CLOSED
        self._failures = 0

    def failed(self, now: float) -> bool:
        """Note a failure; returns whether it has opened the circuit."""
        self._failures += 1
        if self.state is Circuit.HALF_OPEN or (self.state is Circuit.CLOSED and self._failures >= self._threshold):
            self.state = Circuit.OPEN
            self._opened_at = now
            return True
        return False
