"""A connection's memory of requests that have more than one event."""

from typing import Final

from dialout.agent.request import Request
from dialout.decisions import Allow, Decision
from dialout.dialects import Dialect
from dialout.events import RequestComplete, RequestHeaders, ResponseBodyChunk

__all__ = ["MOST_REMEMBERED", "Memory", "key_of"]

MOST_REMEMBERED: Final = 4096
"""Requests of one connection that are kept with headers and context. Not every proxy says that a request is over."""


def key_of(request: Request) -> int | str | None:
    """The key of a request among those of its connection: the number if it has one, else the text."""
    return request.correlation_id if request.request_id is None else request.request_id


class Memory:
    """The requests of one connection. The oldest is removed when there are too many."""

    __slots__ = ("_dialect", "_lost", "_requests")

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._requests: dict[int | str | None, Request] = {}
        self._lost: dict[int | str | None, None] = {}

    def __len__(self) -> int:
        return len(self._requests)

    def recall(self, request: Request, event: object) -> Request:
        """The stored request with the same key, or this one, which is stored from now on.

        Headers always begin a new request.
        """
        key = key_of(request)
        if type(event) is not RequestHeaders:
            return self._requests.setdefault(key, request)
        request.headers = event
        self._requests.pop(key, None)  # An id may be used again. The newest request goes to the end.
        self._lost.pop(key, None)
        self._requests[key] = request
        if len(self._requests) > MOST_REMEMBERED:
            oldest = next(iter(self._requests))
            del self._requests[oldest]
            self._lost[oldest] = None
            if len(self._lost) > MOST_REMEMBERED:
                del self._lost[next(iter(self._lost))]
        return request

    def has_lost(self, key: int | str | None) -> bool:
        """Whether a request was removed for lack of room and may still go on. Its earlier body is then unknown."""
        return bool(self._lost) and key in self._lost

    def forget(self, request: Request) -> Request:
        """Remove a request, and return its stored form."""
        return self._requests.pop(key_of(request), request)

    def forget_if_over(self, request: Request, event: object, decision: Decision) -> None:
        """Remove a request that no event will follow: it was refused, is complete, or had its last chunk.

        Core proxies send the end of a request after its last chunk.
        """
        refused = decision.verdict is not None and type(decision.verdict) is not Allow
        last_chunk = type(event) is ResponseBodyChunk and event.is_last and self._dialect is not Dialect.CORE
        if refused or last_chunk or type(event) is RequestComplete:
            key = key_of(request)
            # Another request may have begun by its name.
            if self._requests.get(key) is request:
                del self._requests[key]

    def clear(self) -> None:
        """Remove all requests."""
        self._requests.clear()
        self._lost.clear()
