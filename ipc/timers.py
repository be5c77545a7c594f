"""Timers that only their owner ends. An exception in one turn is reported, and the next turn still comes."""

import asyncio
from collections.abc import Callable

SAY_AGAIN = 60.0
"""Seconds between two reports about one timer that keeps failing."""


class Every:
    """Calls *act* every *seconds* until `cancel`. The first call comes after *seconds*, or at once with *at_once*.

    Exceptions of *act* go to the loop's exception handler: the first one, and then at most one per `SAY_AGAIN` seconds,
    with the number of failures. Needs a running loop.
    """

    __slots__ = ("_act", "_failures", "_handle", "_loop", "_said_at", "_seconds")

    def __init__(self, seconds: float, act: Callable[[], object], *, at_once: bool = False) -> None:
        self._loop = asyncio.get_running_loop()
        self._seconds = seconds
        self._act = act
        self._failures = 0
        self._said_at = float("-inf")
        self._handle: asyncio.Handle = (
            self._loop.call_soon(self._turn) if at_once else self._loop.call_later(seconds, self._turn)
        )

    def cancel(self) -> None:
        """Stop calling the function."""
        self._handle.cancel()

    def _turn(self) -> None:
        # First of all: the call below may fail, and may cancel this timer.
        self._handle = self._loop.call_later(self._seconds, self._turn)
        try:
            self._act()
        except Exception as error:  # noqa: BLE001 - reported, and the timer goes on
            self._failures += 1
            now = self._loop.time()
            if now - self._said_at >= SAY_AGAIN:
                self._said_at = now
                times = f" ({self._failures} times)" if self._failures > 1 else ""
                self._failures = 0
                report(self._loop, f"a timer failed{times}, and goes on", error)


def all_of(*steps: Callable[[], object]) -> None:
    """Run all *steps*, in this order. An exception goes to the loop's exception handler, and the next step follows.

    For a point of no return, after which every step must be tried.
    """
    loop = asyncio.get_running_loop()
    for step in steps:
        try:
            step()
        except Exception as error:  # noqa: BLE001 - reported, and the next step follows
            report(loop, "a step failed, and the others were done", error)


def report(loop: asyncio.AbstractEventLoop, message: str, error: Exception) -> None:
    """Give *error* to the loop's exception handler, which logs it."""
    loop.call_exception_handler({"message": message, "exception": error})
