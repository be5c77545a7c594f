"""Answers that take time to make: made in steps, shared by all who ask meanwhile, and given again for a moment.

How long an answer is given again follows from what it cost, so that making it takes a bounded part of a processor
however often it is asked for: one that cost 4 ms is given again for 0.1 s, one that cost 40 ms for a second. An answer
is fresh where that is cheap.
"""

import asyncio
from collections.abc import Awaitable, Callable, Generator, Hashable
from functools import partial
from time import monotonic, thread_time

from ipc.turns import Turns
from supervisor.admin.http import Response

KEPT_TIMES = 25
"""Seconds for which an answer is given again, for each second of processor time that it cost."""

MOST_SECONDS = 1.0
"""The longest time for which an answer is given again."""

MOST_KEPT = 16

Steps = Generator[None, None, Response]
"""Makes an answer: each step is the work of about a millisecond."""


class Renderings:
    """Answers by a key that names what they show. Each step is a turn of *turns*."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._kept: dict[Hashable, _Rendering] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Hashable, make: Callable[[], Steps]) -> Response | Awaitable[Response]:
        """The answer of *key*, which *make* makes unless there is one. To be called in a turn."""
        rendering = self._kept.get(key)
        if rendering is None or rendering.is_over(monotonic()):
            self._kept.pop(key, None)
            while len(self._kept) >= MOST_KEPT:
                del self._kept[next(iter(self._kept))]
            rendering = self._kept[key] = _Rendering(make())
            self._step(rendering)
        if rendering.answer.done():
            return rendering.answer.result()
        # A client that hangs up must not take the answer from the others.
        return asyncio.shield(rendering.answer)

    def _step(self, rendering: "_Rendering") -> None:
        if not rendering.step():
            self._turns.take(self, partial(self._step, rendering))


class _Rendering:
    """One answer on its way, or made."""

    def __init__(self, steps: Steps) -> None:
        self.answer: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        self._steps = steps
        self._cost = 0.0
        self._until = 0.0

    def is_over(self, now: float) -> bool:
        """Whether it must be made again."""
        return self.answer.done() and now >= self._until

    def step(self) -> bool:
        """Do one step; whether it was the last one."""
        before = thread_time()
        try:
            next(self._steps)
        except StopIteration as made:
            self.answer.set_result(made.value)
        except Exception as error:  # noqa: BLE001 - it goes to all who wait for the answer
            self.answer.set_exception(error)
            self.answer.exception()
        self._cost += thread_time() - before
        if self.answer.done():
            self._until = monotonic() + min(MOST_SECONDS, self._cost * KEPT_TIMES)
        return self.answer.done()
