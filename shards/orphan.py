"""The time limit of a shard that serves without a supervisor."""

from collections.abc import Callable

from dialout import awake

DEFAULT_TIMEOUT = 600.0
"""Seconds that a shard waits for its first supervisor. Each supervisor sets the limit for the time after it."""


class OrphanTimer:
    """Calls *on_over* when the shard was without a supervisor for *timeout* seconds. It begins without one.

    Seconds in which the shard was stopped do not count: the next supervisor may be waiting to be accepted.
    """

    def __init__(self, on_over: Callable[[], None]) -> None:
        self.timeout = DEFAULT_TIMEOUT
        self._on_over = on_over
        self._clock = awake.clock()
        self._timer: awake.Timer | None = None
        self.start()

    def start(self) -> None:
        """Start the timer: there is no supervisor any more."""
        self.cancel()
        self._timer = self._clock.call_later(self.timeout, self._on_over)

    def cancel(self) -> None:
        """Stop the timer: there is a supervisor, or the shard ends."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
