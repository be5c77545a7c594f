"""Failures in a line of a log: what happened where, and nothing of a peer's that is not escaped."""

import traceback

from dialout.agent.agent import Request
from dialout.agent.errors import printable

__all__ = ["described", "places", "request_name"]


def request_name(request: Request) -> str:
    """What a log calls a request."""
    if request.request_id is not None:
        return f"request {request.request_id}"
    return f"request {printable(request.correlation_id, 64)}" if request.correlation_id else "a request without a name"


def described(error: BaseException) -> str:
    """An exception in one line: what it says, which may be a peer's words, escaped, and where it was raised."""
    text = printable(traceback.format_exception_only(error)[-1].strip())
    where = places(error)
    return f"{text} ({where[0]})" if where else text


def places(error: BaseException) -> list[str]:
    """Where it was raised, innermost first. These are places in code, so they need no escape."""
    frames = traceback.extract_tb(error.__traceback__)
    return [f"{frame.filename}:{frame.lineno} in {frame.name}" for frame in reversed(frames)]
