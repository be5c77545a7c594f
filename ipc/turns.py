"""A share of the loop for work that must not delay agents.

Readers of status queries and of the admin endpoint decide how much they ask. `Turns` limits their part of the
processor. One turn of the loop runs one piece of work. The owners take turns, and all of them together get a share of
the processor. Work beyond the share waits, for little more than its own cost divided by the share.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Hashable
from time import monotonic, thread_time


class Share:
    """A budget of processor time: *part* of a second for each second, with at most *burst* seconds saved up.

    Pure: the caller gives the time.
    """

    def __init__(self, part: float, burst: float, now: float) -> None:
        self._part, self._burst = part, burst
        self._left, self._seen = burst, now

    def spend(self, seconds: float, now: float) -> None:
        """Take *seconds* of processor time, used up to *now*, from the budget."""
        self._refill(now)
        self._left -= seconds

    def wait(self, now: float) -> float:
        """Seconds until the budget is not overdrawn any more."""
        self._refill(now)
        return max(0.0, -self._left / self._part)

    def _refill(self, now: float) -> None:
        self._left = min(self._burst, self._left + (now - self._seen) * self._part)
        self._seen = now


class Turns:
    """Gives pieces of work their turns on the running loop.

    Owners take turns, so an owner with many pieces delays each of the others by one piece. The pieces of one owner run
    in order. The share counts the processor time of the loop's thread (CLOCK_THREAD_CPUTIME_ID). So load from other
    processes takes nothing from it.
    """

    def __init__(self, share: Share | None = None) -> None:
        self._share = share
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[Hashable, deque[Callable[[], None]]] = {}
        self._handle: asyncio.Handle | None = None

    def take(self, owner: Hashable, work: Callable[[], None]) -> None:
        """Run *work* in a later turn. Its exceptions go to the loop's exception handler."""
        self._waiting.setdefault(owner, deque()).append(work)
        if self._handle is None:
            self._schedule()

    def charge(self, seconds: float) -> None:
        """Count *seconds* of processor time that were used outside of a turn."""
        if self._share is not None:
            self._share.spend(seconds, monotonic())

    def close(self) -> None:
        """Drop the waiting work, and run no more."""
        self._waiting.clear()
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _schedule(self) -> None:
        seconds = 0.0 if self._share is None else self._share.wait(monotonic())
        # Timers of a loop have a resolution of a millisecond. The share saves up the time of a late turn.
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
        """Take the next piece of *owner*, and move the owner to the end of the queue."""
        pieces = self._waiting.pop(owner, None)
        if pieces is None:
            return None
        work = pieces.popleft()
        if pieces:
            self._waiting[owner] = pieces
        return work
