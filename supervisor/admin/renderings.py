"""Makes expensive answers in steps, and caches them briefly. Clients that ask meanwhile share one answer.

The lifetime of an answer depends on its cost. So making answers takes a bounded part of a processor, for any number of
requests. An answer that cost 4 ms lives for 0.1 s, and one that cost 40 ms for a second. Cheap answers are fresh.
"""

import asyncio
from collections.abc import Awaitable, Callable, Generator, Hashable
from functools import partial
from time import monotonic, thread_time

from ipc.turns import Turns
from supervisor.admin.http import Response

KEPT_TIMES = 25
"""Lifetime of an answer, in multiples of the processor time that it cost."""

MOST_SECONDS = 1.0
"""The longest lifetime of an answer."""

MOST_KEPT = 16

Steps = Generator[None, None, Response]
"""Makes an answer. Each step takes about a millisecond."""


class Renderings:
    """Answers by their keys. Each step after the first takes a turn of *turns*."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._kept: dict[Hashable, _Rendering] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Hashable, make: Callable[[], Steps]) -> Response | Awaitable[Response]:
        """The answer of *key*. Without a live one *make* makes it. Must be called in a turn."""
        rendering = self._kept.get(key)
        if rendering is None or rendering.is_over(monotonic()):
            self._kept.pop(key, None)
            while len(self._kept) >= MOST_KEPT:
                del self._kept[next(iter(self._kept))]
            rendering = self._kept[key] = _Rendering(make())
            self._step(rendering)
        if rendering.answer.done():
            return rendering.answer.result()
        # A client that hangs up must not cancel the answer for other clients.
        return asyncio.shield(rendering.answer)

    def _step(self, rendering: "_Rendering") -> None:
        if not rendering.step():
            self._turns.take(self, partial(self._step, rendering))


class _Rendering:
    """One answer, finished or not."""

    def __init__(self, steps: Steps) -> None:
        self.answer: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        self._steps = steps
        self._cost = 0.0
        self._until = 0.0

    def is_over(self, now: float) -> bool:
        """Whether the answer must be made again."""
        return self.answer.done() and now >= self._until

    def step(self) -> bool:
        """Run one step. Returns whether it was the last one."""
        before = thread_time()
        try:
            next(self._steps)
        except StopIteration as made:
            self.answer.set_result(made.value)
        except Exception as error:  # noqa: BLE001 - all clients that wait for the answer get it
            self.answer.set_exception(error)
            self.answer.exception()
        self._cost += thread_time() - before
        if self.answer.done():
            self._until = monotonic() + min(MOST_SECONDS, self._cost * KEPT_TIMES)
        return self.answer.done()
