"""Failures as log lines: the failed step and its place in the code, with a peer's text escaped."""

import contextlib
import logging
import time
import traceback
from typing import Final

from dialout.agent.errors import printable
from dialout.agent.request import Request

__all__ = ["FailureLog", "described", "places", "request_name", "said"]

_log = logging.getLogger("dialout.agent")

MOST_LINES: Final = 20
"""Lines a second about failures of one kind on one connection. Clients decide how often a hook fails."""


def request_name(request: Request) -> str:
    """The name of a request in a log."""
    if request.request_id is not None:
        return f"request {request.request_id}"
    return f"request {printable(request.correlation_id, 64)}" if request.correlation_id else "a request without a name"


def described(error: BaseException) -> str:
    """An exception in one line: its message, escaped because it may be a peer's text, and the place that raised it."""
    where = places(error)
    return f"{said(error)} ({where[0]})" if where else said(error)


def said(error: BaseException) -> str:
    """The class and message of an exception, escaped."""
    return printable(traceback.format_exception_only(error)[-1].strip())


def places(error: BaseException) -> list[str]:
    """The places of its traceback, innermost first. These are places in code, so they need no escape."""
    frames = traceback.extract_tb(error.__traceback__)
    return [f"{frame.filename}:{frame.lineno} in {frame.name}" for frame in reversed(frames)]


class FailureLog:
    """Logs the failures on the connection ``name``: up to ``MOST_LINES`` lines a second for each kind, then a sum.

    No method raises: a failing log must not stop an answer.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._since: dict[str, float] = {}
        self._lines: dict[str, int] = {}

    def write(self, request: Request, step: str, error: BaseException) -> None:
        """Log that ``step`` failed for a request."""
        now = time.monotonic()
        if now - self._since.get(step, -1.0) >= 1.0:
            self._sum_up(step)
            self._since[step], self._lines[step] = now, 0
        self._lines[step] += 1
        if self._lines[step] > MOST_LINES:
            return
        with contextlib.suppress(Exception):
            named = request_name(request)
            _log.error("%s: %s: %s failed: %s", self._name, named, step, described(error))
            if _log.isEnabledFor(logging.DEBUG):
                # Places in this library and in the hook, without the peer's values.
                _log.debug("%s: %s: %s", self._name, named, " <- ".join(places(error)))

    def complain(self, step: str, error: BaseException) -> None:
        """Log that ``step`` failed, for a step that no request waits for."""
        with contextlib.suppress(Exception):
            _log.error("%s: %s failed: %s", self._name, step, described(error))

    def close(self) -> None:
        """Log the number of failures that had no line of their own."""
        for step in self._since:
            self._sum_up(step)
        self._since.clear()
        self._lines.clear()

    def _sum_up(self, step: str) -> None:
        more = self._lines.get(step, 0) - MOST_LINES
        if more > 0:
            with contextlib.suppress(Exception):
                _log.error("%s: %s failed %d times more within a second", self._name, step, more)
