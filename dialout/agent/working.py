"""Coroutines of one connection: a limited number at once, one at a time for each request, and a queue."""

import asyncio
import inspect
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context
from typing import Any, Final, TypeAlias

from dialout.agent.hooks import Hook
from dialout.agent.request import Counters, Request

__all__ = ["LEAST_QUEUE", "Key", "Work", "Workers"]

Key: TypeAlias = int | str | None

LEAST_QUEUE: Final = 16
"""Events that may wait for their turn on every connection, even with a low limit of coroutines. From that number on
the connection is not read, and a cancel is not read either. Some room is therefore useful even to an agent with one
request at a time."""


class Work:
    """The events of one request that have no answer yet. The first one is being served, or waits for its turn."""

    __slots__ = ("dropped", "event", "given", "hook", "later", "request", "started", "task")

    def __init__(self, request: Request, event: Any, hook: Hook) -> None:
        self.request = request
        self.event = event
        self.hook = hook
        # The awaitable that a plain hook has returned.
        self.given: Awaitable[Any] | None = None
        self.later: deque[tuple[Any, Hook, Request | None]] | None = None
        self.task: asyncio.Task[None] | None = None
        self.started = False
        self.dropped = False

    def add(self, event: Any, hook: Hook, request: Request | None = None) -> None:
        """Serve another event of the same id after the others. With ``request`` another request begins with it."""
        if self.later is None:
            self.later = deque()
        self.later.append((event, hook, request))

    def take_next(self) -> bool:
        """Go on to the next event; False if there is none."""
        if not self.later:
            return False
        self.event, self.hook, request = self.later.popleft()
        self.request = request or self.request
        return True


class Workers:
    """Requests with an event in a coroutine, or waiting for one. Up to ``limit`` coroutines run at once.

    ``serve`` serves one event. It raises only CancelledError, and only for dropped work. ``hold`` is called with True
    when so many events wait that reading should pause, and with False when there is room again.
    """

    def __init__(
        self,
        limit: int,
        counters: Counters,
        serve: Callable[[Work], Coroutine[Any, Any, None]],
        hold: Callable[[bool], None],
    ) -> None:
        self.by_key: dict[Key, Work] = {}
        self.on_idle: Callable[[], None] | None = None
        """Called when no work is left."""
        self._limit = limit
        self._queue_limit = max(limit, LEAST_QUEUE)
        self._counters = counters
        self._serve = serve
        self._hold = hold
        self._loop = asyncio.get_running_loop()
        self._queue: deque[tuple[Key, Work]] = deque()
        self._running = 0
        self._refilling = False
        self._holding = False

    def begin(self, key: Key, work: Work) -> None:
        """Serve a request, now or in its turn."""
        self.by_key[key] = work
        if self._running < self._limit:
            self._start(key, work)
            return
        # More requests than the agent has declared. They wait, and a queue of that many stops the reading.
        self._queue.append((key, work))
        if len(self._queue) >= self._queue_limit and not self._holding:
            self._holding = True
            self._hold(True)

    def drop(self, key: Key) -> Work | None:
        """Give a request up and return it; None if it is not here."""
        work = self.by_key.pop(key, None)
        if work is not None:
            work.dropped = True
            self._counters.cancelled += 1
            # A task that is cancelled before its first step would never reach its end. It finds the work dropped
            # instead.
            if work.task is not None and work.started:
                work.task.cancel()
            elif inspect.iscoroutine(work.given):
                work.given.close()  # It will not be awaited.
        return work

    def close(self) -> None:
        """Give all requests up."""
        for key in tuple(self.by_key):
            self.drop(key)
        self._queue.clear()

    def _start(self, key: Key, work: Work) -> None:
        self._running += 1
        self._counters.active += 1
        work.task = _create_task(self._run(key, work), self._loop, work.request.variables)

    async def _run(self, key: Key, work: Work) -> None:
        """Serve the events of one request, one after the other."""
        work.started = True
        try:
            while not work.dropped:
                await self._serve(work)
                if not work.take_next():
                    break
        finally:
            self._done(key, work)

    def _done(self, key: Key, work: Work) -> None:
        self._running -= 1
        self._counters.active -= 1
        if self.by_key.get(key) is work:
            del self.by_key[key]
        if self._queue and not self._refilling:
            # Not nested: a task that takes its first step at once may be done before it is noted.
            self._refilling = True
            while self._queue and self._running < self._limit:
                next_key, following = self._queue.popleft()
                if not following.dropped:
                    self._start(next_key, following)
            self._refilling = False
        if self._holding and len(self._queue) <= self._queue_limit // 2:
            self._holding = False
            self._hold(False)
        if self.on_idle is not None and not self.by_key:
            self.on_idle()


if sys.version_info >= (3, 12):

    def _create_task(
        coroutine: Coroutine[Any, Any, None], loop: asyncio.AbstractEventLoop, variables: Context
    ) -> "asyncio.Task[None]":
        """A task that takes its first step at once: a hook that never has to wait costs no turn of the loop."""
        return asyncio.Task(coroutine, loop=loop, context=variables, eager_start=True)

else:

    def _create_task(
        coroutine: Coroutine[Any, Any, None], loop: asyncio.AbstractEventLoop, variables: Context
    ) -> "asyncio.Task[None]":
        """A task, which begins with the next turn of the loop."""
        return loop.create_task(coroutine, context=variables)
