"""Waiting for a condition with a deadline."""

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")


def wait_for(condition: Callable[[], Value], what: str, timeout: float = 10.0) -> Value:
    """The first true value of *condition*; AssertionError with the last one after *timeout* seconds."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout:g} s for {what}; the last value was {value!r}")
        time.sleep(0.005)


async def until(condition: Callable[[], Value], what: str, seconds: float = 10.0) -> Value:
    """`wait_for`, in a coroutine."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds:g} s for {what}; the last value was {value!r}")
        await asyncio.sleep(0.005)
