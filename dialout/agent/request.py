"""The request that hooks are told about, and what an agent counts."""

import time
from contextvars import Context, copy_context
from typing import Any

from dialout.events import RequestHeaders

__all__ = ["Counters", "Request"]


class Request:
    """The request that an event is about.

    ``request_id`` and ``correlation_id`` are the proxy's names for it, None where the dialect has none; a correlation
    id may be the client's own text, so escape it before it reaches a log. ``headers`` is what the request began with,
    and ``context`` is yours, to keep whatever the next event of the same request needs.

    Both are there for later events only in agents that have hooks for those, None otherwise; and a connection
    remembers no more than a few thousand requests, since not every proxy says when one is over.

    ``variables`` is the context in which the request's hooks run: what one of them sets in a ``ContextVar`` is there
    for the next event of the same request, and for no other request.
    """

    __slots__ = ("context", "correlation_id", "headers", "request_id", "variables")

    def __init__(self, request_id: int | None, correlation_id: str | None) -> None:
        self.request_id = request_id
        self.correlation_id = correlation_id
        self.headers: RequestHeaders | None = None
        self.context: Any = None
        self.variables: Context = copy_context()


class Counters:
    """What an agent has done since it was made, on all its connections."""

    __slots__ = ("active", "allowed", "blocked", "cancelled", "errored", "requests", "started_at")

    def __init__(self) -> None:
        self.requests = 0
        """Requests that began: events with their headers."""
        self.active = 0
        """Asynchronous hooks at work now."""
        self.allowed = 0
        """Events answered with an allow."""
        self.blocked = 0
        """Events answered with a block, a redirect or a challenge."""
        self.errored = 0
        """Events that could not be read, or whose hook failed."""
        self.cancelled = 0
        """Requests given up in the middle: cancelled by the proxy, or their connection ended."""
        self.started_at = time.monotonic()
