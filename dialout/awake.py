"""Time in which this process ran: the measure of how long another party is silent.

A process can be stopped for any time (a debugger, Ctrl-Z, ``docker pause``, a virtual machine that is moved). When it
wakes up, its timers are due before it reads its sockets. By a common clock all others have been silent for that long.
So this clock stands still while the process does not run, and for `SETTLE_SECONDS` more. In that time the loop reads
what has come.
"""

import asyncio
import contextlib
import time
import weakref
from collections.abc import AsyncIterator, Callable
from typing import Any

LOOK_SECONDS = 0.25
"""Between looks at the clock. While it is not looked at, a stop cannot be told from a pause with nothing to do."""

MOST_SECONDS = 1.0
"""What counts between two looks at most: a loop that is late by less than that is slow, and has not been stopped."""

SETTLE_SECONDS = 0.1
"""For how long the clock stands still after a stop."""

_SOONEST = 0.01


class AwakeTime:
    """Seconds of a common clock without the gaps between looks. Pure: that clock comes in as an argument.

    At first both clocks are the same; *slept* is by how much this one is behind. Of a gap `MOST_SECONDS` count, or
    nothing would ever time out in a loop whose turns are that long; they count when the clock goes on.
    """

    __slots__ = ("_owed", "_seen", "_still_until", "slept")

    def __init__(self, now: float) -> None:
        self.slept = 0.0
        self._seen = now
        self._still_until = now
        self._owed = 0.0

    def at(self, now: float) -> float:
        """The time, looked at *now*. It never goes backwards."""
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
    """A callback that is due when so much awake time has passed."""

    __slots__ = ("_callback", "_clock", "_due", "_handle")

    def __init__(self, clock: "AwakeClock", seconds: float, callback: Callable[[], object]) -> None:
        self._clock, self._callback = clock, callback
        self._due = clock.time() + seconds
        self._handle = clock.loop.call_later(seconds, self._look)

    def cancel(self) -> None:
        """Do not call it."""
        self._handle.cancel()

    def _look(self) -> None:
        left = self._due - self._clock.time()
        # The loop's clock has milliseconds.
        if left > 0.002:
            self._handle = self._clock.loop.call_later(max(left, _SOONEST), self._look)
        else:
            self._callback()


class AwakeClock:
    """The awake time of one loop; `clock` makes it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._time = AwakeTime(time.monotonic())
        self.at = self._time.at
        _look(weakref.ref(self))

    def time(self) -> float:
        """Seconds; near to the loop's own time as long as the process was never stopped."""
        return self._time.at(time.monotonic())

    @property
    def slept(self) -> float:
        """Seconds by which it is behind: a time of `time.monotonic` less this is one of this clock."""
        return self._time.slept

    def call_later(self, seconds: float, callback: Callable[..., object], *args: Any) -> Timer:
        """Call *callback* when the process has run for so long, and has read what came while it did not."""
        return Timer(self, seconds, (lambda: callback(*args)) if args else callback)

    @contextlib.asynccontextmanager
    async def timeout(self, seconds: float) -> AsyncIterator[None]:
        """As `asyncio.timeout`, by this clock."""
        async with asyncio.timeout(None) as limit:
            timer = self.call_later(seconds, lambda: limit.reschedule(self.loop.time()))
            try:
                yield
            finally:
                timer.cancel()


_clocks: "weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, weakref.ref[AwakeClock]]" = weakref.WeakKeyDictionary()


def clock() -> AwakeClock:
    """The clock of the running loop: one for all who ask. It goes as long as one of them keeps it."""
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
