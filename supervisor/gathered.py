"""Something that may be asked for hundreds of times a second, and is done once a second at most."""

import asyncio
from collections.abc import Callable

PAUSE = 1.0
"""Seconds between the beginnings of two."""


class Gathered:
    """Calls *act* when it is asked to, with the number of times for which it was asked.

    The first is done at once. What is asked for within `PAUSE` seconds after it is done together at their end, so that
    the last of many is never left out.
    """

    def __init__(self, act: Callable[[int], None]) -> None:
        self._act = act
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._asked = 0

    def ask(self) -> None:
        """Do it now, or with others in a moment."""
        self._asked += 1
        if self._timer is None:
            self._do()

    def close(self) -> None:
        """Do nothing more."""
        if self._timer is not None:
            self._timer.cancel()

    def _do(self) -> None:
        self._timer = self._loop.call_later(PAUSE, self._over)
        asked, self._asked = self._asked, 0
        self._act(asked)

    def _over(self) -> None:
        self._timer = None
        if self._asked:
            self._do()
