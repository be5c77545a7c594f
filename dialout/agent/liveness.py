"""Notices a proxy that is gone without a word: when to ping it, and when to give it up. No clock of its own.

A proxy's host that loses its power sends no end of stream, and a Unix socket has no keepalive. So an agent asks.
"""

from enum import Enum

__all__ = ["Liveness", "Look"]


class Look(Enum):
    """What a look at the clock says."""

    FINE = "fine"
    PING = "ping"
    DEAD = "dead"


class Liveness:
    """The pings of one connection. Times are seconds of any clock that only goes forward.

    The first ping is due at once, and each later one when nothing came from the proxy for ``interval``. A proxy that
    never answered one is not judged by them: those of the Rust crate ignore pings, and serve well. One that did has to
    say *something* within ``timeout`` after a ping.
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
        """Note that it answers pings."""
        self._answers = True

    def look(self, now: float, *, heard: bool) -> Look:
        """What is to be done now; PING means that it will be sent. ``heard``: anything came since the last look."""
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
        """The time at which looking makes sense again."""
        return self._pinged_at + self._timeout if self._judged else self._due

    @property
    def _judged(self) -> bool:
        return self._unanswered and self._answers
