"""Limit an action to one call a second, for any number of requests."""

import asyncio
from collections.abc import Callable

PAUSE = 1.0
"""Seconds between the beginnings of two calls."""


class Gathered:
    """Calls *act* on request, with the number of gathered requests.

    The first request is served at once. Requests within the next `PAUSE` seconds are served by one call at their end.
    So no request is lost.
    """

    def __init__(self, act: Callable[[int], None]) -> None:
        self._act = act
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._asked = 0

    def ask(self) -> None:
        """Request a call: now, or together with other requests at the end of the pause."""
        self._asked += 1
        if self._timer is None:
            self._do()

    def close(self) -> None:
        """Cancel the pending call."""
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
