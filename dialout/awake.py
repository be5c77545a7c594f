"""A clock that counts only the time in which this process runs. It measures the silence of peers.

A process can be stopped for any time (a debugger, Ctrl-Z, ``docker pause``, a virtual machine that is moved). When it
continues, its timers are due before it reads its sockets. By an ordinary clock every peer has been silent for that
long. This clock stands still while the process is stopped, and for `SETTLE_SECONDS` after it. In that time the loop
reads the bytes that are waiting in its sockets.
"""

import asyncio
import contextlib
import time
import weakref
from collections.abc import AsyncIterator, Callable
from typing import Any

LOOK_SECONDS = 0.25
"""Interval at which the clock is read. Without it, a stopped process looks the same as an idle one."""

MOST_SECONDS = 1.0
"""The most time that counts between two readings. A loop that is late by less is slow; it was not stopped."""

SETTLE_SECONDS = 0.1
"""Time for which the clock stands still after a stop."""

_SOONEST = 0.01


class AwakeTime:
    """Seconds of an ordinary clock without the long gaps between readings. Pure: the caller passes the time in.

    Both clocks agree at first; *slept* is the lag of this one. `MOST_SECONDS` of each gap count. Otherwise nothing
    would time out in a loop with turns that long. They are added when the clock runs again.
    """

    __slots__ = ("_owed", "_seen", "_still_until", "slept")

    def __init__(self, now: float) -> None:
        self.slept = 0.0
        self._seen = now
        self._still_until = now
        self._owed = 0.0

    def at(self, now: float) -> float:
        """Return the time at *now*, a reading of the ordinary clock. It never goes backwards."""
        passed = now - self._seen
        if passed < 0:
            return self._seen - self.slept
        self._seen = now
        if passed > MOST_SECONDS:
            self.slept += passed - self._owed
            self._owed = MOST_SECONDS
            self._still_until = now + SETTLE_SECONDS
        elif now < self._still_until:
            self.slept += passed
        elif self._owed:
            self.slept -= self._owed
            self._owed = 0.0
        return now - self.slept


class Timer:
    """A callback that is due after a number of seconds of awake time."""

    __slots__ = ("_callback", "_clock", "_due", "_handle")

    def __init__(self, clock: "AwakeClock", seconds: float, callback: Callable[[], object]) -> None:
        self._clock, self._callback = clock, callback
        self._due = clock.time() + seconds
        self._handle = clock.loop.call_later(seconds, self._look)

    def cancel(self) -> None:
        """Cancel the callback."""
        self._handle.cancel()

    def _look(self) -> None:
        left = self._due - self._clock.time()
        # The selector waits in whole milliseconds.
        if left > 0.002:
            self._handle = self._clock.loop.call_later(max(left, _SOONEST), self._look)
        else:
            self._callback()


class AwakeClock(AwakeTime):
    """The awake time of one loop; `clock` makes it.

    A reading of `time.monotonic` or of the loop's clock, minus *slept*, is a time of this clock as well. It takes a
    third of the 0.4 µs of `time`, and is good enough for a beginning. An end must be judged by `time`.
    """

    __slots__ = ("__weakref__", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(time.monotonic())
        self.loop = loop
        _look(weakref.ref(self))

    def time(self) -> float:
        """Return the awake time in seconds. It is close to the loop's time if the process was never stopped."""
        return self.at(time.monotonic())

    def call_later(self, seconds: float, callback: Callable[..., object], *args: Any) -> Timer:
        """Call *callback* after *seconds* of awake time."""
        return Timer(self, seconds, (lambda: callback(*args)) if args else callback)

    @contextlib.asynccontextmanager
    async def timeout(self, seconds: float) -> AsyncIterator[None]:
        """`asyncio.timeout`, measured by this clock."""
        async with asyncio.timeout(None) as limit:
            timer = self.call_later(seconds, lambda: limit.reschedule(self.loop.time()))
            try:
                yield
            finally:
                timer.cancel()


_clocks: "weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, weakref.ref[AwakeClock]]" = weakref.WeakKeyDictionary()


def clock() -> AwakeClock:
    """Return the clock of the running loop. All callers share it. It runs as long as a caller holds a reference."""
    loop = asyncio.get_running_loop()
    found = _clocks.get(loop)
    current = None if found is None else found()
    if current is None:
        current = AwakeClock(loop)
        _clocks[loop] = weakref.ref(current)
    return current


def _look(reference: "weakref.ref[AwakeClock]") -> None:
    current = reference()
    if current is not None:
        current.time()
        current.loop.call_later(LOOK_SECONDS, _look, reference)
