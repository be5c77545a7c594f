"""The request that hooks get, and an agent's counters."""

import time
from contextvars import Context, copy_context
from typing import Any

from dialout.events import RequestHeaders

__all__ = ["Counters", "Request"]


class Request:
    """The request that an event belongs to.

    ``request_id`` and ``correlation_id`` are the proxy's ids for it, None if the dialect has none. A correlation id may
    be the client's own text, so escape it for a log. ``headers`` is the event with the request's headers. ``context``
    is free for your own data, which later events of the same request can read.

    Later events have both only if the agent has hooks for such events, and None otherwise. A connection remembers at
    most a few thousand requests, since not every proxy says when one is over.

    ``variables`` is the context in which the request's hooks run. A ``ContextVar`` that a hook sets keeps its value for
    later events of the same request, and for no other request.
    """

    __slots__ = ("context", "correlation_id", "headers", "request_id", "variables")

    def __init__(self, request_id: int | None, correlation_id: str | None) -> None:
        self.request_id = request_id
        self.correlation_id = correlation_id
        self.headers: RequestHeaders | None = None
        self.context: Any = None
        self.variables: Context = copy_context()


class Counters:
    """The work of an agent since it was created, on all its connections."""

    __slots__ = ("active", "allowed", "blocked", "cancelled", "errored", "requests", "started_at")

    def __init__(self) -> None:
        self.requests = 0
        """Requests that began, counted by their headers."""
        self.active = 0
        """Asynchronous hooks at work now."""
        self.allowed = 0
        """Events answered with an allow."""
        self.blocked = 0
        """Events answered with a block, a redirect or a challenge."""
        self.errored = 0
        """Events that could not be read, or failed in their hook."""
        self.cancelled = 0
        """Requests given up before their answer: the proxy cancelled them, or their connection ended."""
        self.started_at = time.monotonic()
