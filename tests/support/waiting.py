"""Waiting for a condition with a deadline."""

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")


def wait_for(condition: Callable[[], Value], what: str, timeout: float = 10.0) -> Value:
    """The first true value of *condition*; AssertionError with the last one after *timeout* seconds."""
    began = time.monotonic()
    while True:
        value = condition()
        if value:
            return value
        waited = time.monotonic() - began
        if waited > timeout:
            raise AssertionError(f"waited {timeout:g} s for {what}; the last value was {value!r}")
        time.sleep(_pause(waited))


async def until(condition: Callable[[], Value], what: str, seconds: float = 10.0) -> Value:
    """`wait_for`, in a coroutine."""
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
