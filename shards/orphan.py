"""A shard without a supervisor: it serves on, but not for ever."""

from collections.abc import Callable

from dialout import awake

DEFAULT_TIMEOUT = 600.0
"""Seconds that a shard waits for its first supervisor, which then says how long it may be without one."""


class OrphanTimer:
    """Calls *on_over* when the shard was without a supervisor for *timeout* seconds; it is without one at first.

    Seconds in which the shard was stopped do not count: the supervisor may wait to be let in.
    """

    def __init__(self, on_over: Callable[[], None]) -> None:
        self.timeout = DEFAULT_TIMEOUT
        self._on_over = on_over
        self._clock = awake.clock()
        self._timer: awake.Timer | None = None
        self.start()

    def start(self) -> None:
        """Note that there is no supervisor any more."""
        self.cancel()
        self._timer = self._clock.call_later(self.timeout, self._on_over)

    def cancel(self) -> None:
        """Note that there is a supervisor, or that the shard ends anyway."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
