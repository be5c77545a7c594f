"""An event loop as the product runs it, for tests that are scenarios on it."""

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any

import uvloop

from support.waiting import PATIENCE


class Loop:
    """Runs scenarios on uvloop; *errors* is what reached the loop's exception handler. It must be empty at the end."""

    def __init__(self) -> None:
        self.errors: list[dict[str, Any]] = []

    def run(self, scenario: Coroutine[Any, Any, None]) -> None:
        """Run *scenario* to its end."""

        async def bounded() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda _, context: self.errors.append(context))
            async with asyncio.timeout(2 * PATIENCE):
                await scenario

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(bounded())

    async def until(self, condition: Callable[[], object], what: str) -> None:
        """Run the loop until *condition* holds; AssertionError after `PATIENCE` seconds."""
        try:
            async with asyncio.timeout(PATIENCE):
                while not condition():  # noqa: ASYNC110 - what would set an event is what is tested
                    await asyncio.sleep(0.001)
        except TimeoutError:
            raise AssertionError(f"waited {PATIENCE:g} s for {what}; errors of the loop: {self.errors}") from None

    async def turns(self, count: int) -> None:
        """Let the loop turn *count* times, so that everything that is ready happens."""
        for _ in range(count):
            await asyncio.sleep(0)


def scenario(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Make a test of a coroutine function with the fixture *loop*, on which it runs."""

    @functools.wraps(test)
    def test_on_loop(*, loop: Loop, **fixtures: Any) -> None:
        loop.run(test(loop=loop, **fixtures))

    return test_on_loop
