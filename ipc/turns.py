"""A share of the loop for work that must not keep agents waiting.

Peers who only look (status queries, the admin endpoint) decide how much they ask. `Turns` decides how much of the
processor they get: one piece of work in a turn of the loop, owner by owner, and a share of the processor in all. Work
beyond the share waits; what it waits for is little more than its own cost divided by the share.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Hashable
from time import monotonic, thread_time


class Share:
    """A budget of processor time: *part* of a second for each second, of which at most *burst* seconds are saved up.

    Pure: the caller says what time it is.
    """

    def __init__(self, part: float, burst: float, now: float) -> None:
        self._part, self._burst = part, burst
        self._left, self._seen = burst, now

    def spend(self, seconds: float, now: float) -> None:
        """Note that *seconds* of processor time were used up to *now*."""
        self._refill(now)
        self._left -= seconds

    def wait(self, now: float) -> float:
        """Seconds until there is something to spend again; 0 when there is."""
        self._refill(now)
        return max(0.0, -self._left / self._part)

    def _refill(self, now: float) -> None:
        self._left = min(self._burst, self._left + (now - self._seen) * self._part)
        self._seen = now


class Turns:
    """Gives pieces of work their turns on the running loop.

    Owners take turns, so that an owner with many pieces delays the others by one piece each. The pieces of one owner
    run in their order. Processor time is that of the loop's thread (CLOCK_THREAD_CPUTIME_ID): a busy machine takes
    nothing from the share.
    """

    def __init__(self, share: Share | None = None) -> None:
        self._share = share
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[Hashable, deque[Callable[[], None]]] = {}
        self._handle: asyncio.Handle | None = None

    def take(self, owner: Hashable, work: Callable[[], None]) -> None:
        """Run *work* when it is its turn. What it raises goes to the loop's exception handler."""
        self._waiting.setdefault(owner, deque()).append(work)
        if self._handle is None:
            self._schedule()

    def charge(self, seconds: float) -> None:
        """Count processor time that was used outside of a turn, in seconds."""
        if self._share is not None:
            self._share.spend(seconds, monotonic())

    def close(self) -> None:
        """Run nothing any more."""
        self._waiting.clear()
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _schedule(self) -> None:
        seconds = 0.0 if self._share is None else self._share.wait(monotonic())
        # A loop's timers have a resolution of a millisecond; what is too late is saved up by the share.
        run, loop = self._run, self._loop
        self._handle = loop.call_later(seconds, run) if seconds > 0 else loop.call_soon(run)

    def _run(self) -> None:
        self._handle = None
        owner = next(iter(self._waiting), None)
        work = self._next_of(owner)
        if work is None:
            return
        before = thread_time()
        try:
            work()
        except Exception as error:  # noqa: BLE001 - a defect in one piece must not stop the others
            self._loop.call_exception_handler({"message": "a turn failed", "exception": error})
        self.charge(thread_time() - before)
        if self._waiting and self._handle is None:
            self._schedule()

    def _next_of(self, owner: Hashable) -> Callable[[], None] | None:
        """The next piece of *owner*, who is the last in the row afterwards."""
        pieces = self._waiting.pop(owner, None)
        if pieces is None:
            return None
        work = pieces.popleft()
        if pieces:
            self._waiting[owner] = pieces
        return work
