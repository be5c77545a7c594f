"""Waiting for a condition with a deadline."""

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")

PATIENCE = 60.0
"""Seconds after which what has not come never will. A deadline costs only the tests that fail: where more programs want
the processors, ten for each, what takes one second takes ten."""


def wait_for(condition: Callable[[], Value], what: str, timeout: float = PATIENCE) -> Value:
    """The first true value of *condition*; AssertionError with the last one after *timeout* seconds.

    Less than `PATIENCE` is as much as that.
    """
    timeout = max(timeout, PATIENCE)
    began = time.monotonic()
    while True:
        value = condition()
        if value:
            return value
        waited = time.monotonic() - began
        if waited > timeout:
            raise AssertionError(f"waited {timeout:g} s for {what}; the last value was {value!r}")
        time.sleep(_pause(waited))


async def until(condition: Callable[[], Value], what: str, seconds: float = PATIENCE) -> Value:
    """`wait_for`, in a coroutine."""
    seconds = max(seconds, PATIENCE)
    began = time.monotonic()
    while True:
        value = condition()
        if value:
            return value
        waited = time.monotonic() - began
        if waited > seconds:
            raise AssertionError(f"waited {seconds:g} s for {what}; the last value was {value!r}")
        await asyncio.sleep(_pause(waited))


def _pause(waited: float) -> float:
    """Seconds until the next look. Who has waited for long looks less often: looks take processor time from others."""
    return min(0.005 + waited / 20, 0.05)
