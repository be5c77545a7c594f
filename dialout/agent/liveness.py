"""Detection of a dead proxy: when to ping it, and when to give it up. It has no clock of its own.

The host of a proxy that loses its power sends no end of stream, and a Unix socket has no keepalive. The agent therefore
sends pings.
"""

from enum import Enum

__all__ = ["Liveness", "Look"]


class Look(Enum):
    """The result of a check."""

    FINE = "fine"
    PING = "ping"
    DEAD = "dead"


class Liveness:
    """The pings of one connection. Times are seconds of any clock that only goes forward.

    The first ping is due at once. A later one is due when the proxy has sent nothing for ``interval``. A proxy that
    never answered a ping is not judged by its silence: proxies of the Rust crate ignore pings, and serve well. A proxy
    that did answer one must send *something* within ``timeout`` after a ping.
    """

    __slots__ = ("_answers", "_due", "_interval", "_pinged_at", "_timeout", "_unanswered")

    def __init__(self, now: float, interval: float, timeout: float) -> None:
        self._interval = interval
        self._timeout = timeout
        self._due = now
        self._pinged_at = now
        self._unanswered = False
        self._answers = False

    def ponged(self) -> None:
        """Note that the proxy answers pings."""
        self._answers = True

    def look(self, now: float, *, heard: bool) -> Look:
        """The step to take now; PING means that the caller sends one.

        ``heard`` says that input came since the last call.
        """
        if heard:
            self._unanswered = False
        if self._judged:
            return Look.DEAD if now >= self._pinged_at + self._timeout else Look.FINE
        if heard and self._answers:
            self._due = now + self._interval
        if now < self._due:
            return Look.FINE
        self._pinged_at, self._due, self._unanswered = now, now + self._interval, True
        return Look.PING

    @property
    def next_look(self) -> float:
        """The time of the next useful call of ``look``."""
        return self._pinged_at + self._timeout if self._judged else self._due

    @property
    def _judged(self) -> bool:
        return self._unanswered and self._answers
