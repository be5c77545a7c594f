"""Send the events of one HTTP request, in order, to the connection that got its headers."""

# ruff: noqa: ASYNC109  (the time limit goes to the shard with the event; it is not for this coroutine alone)

from collections.abc import AsyncIterable, AsyncIterator
from typing import Final, Self

from dialout.events import (
    AgentEvent,
    CancelReason,
    RequestBodyChunk,
    RequestComplete,
    RequestHeaders,
    ResponseBodyChunk,
    ResponseHeaders,
    WebSocketFrame,
)
from dialout.proxy.dispatcher import Dispatcher, Request
from dialout.proxy.errors import CannotReceive
from dialout.proxy.pool_response import Response
from dialout.proxy.wire import FINAL

__all__ = ["CHUNK_SIZE", "Exchange"]

CHUNK_SIZE: Final = 64 * 1024
"""Bytes of a body in one chunk. This is the default preference of agents."""


class Exchange:
    """The events of one request for one agent, and their answers. ``PoolClient.exchange`` makes it.

    Use it as an ``async with`` block. At its end the shard may drop the affinity of the request. Every method returns
    the agent's answer, or raises a PoolError. ``timeout`` is in seconds, for each event. After a RequestTimeout, or
    after the cancellation of a task that waited for an answer, the exchange takes no more events. Otherwise a late
    answer could be taken for the answer to another event.
    """

    __slots__ = ("_dispatcher", "_request")

    def __init__(self, dispatcher: Dispatcher, request: Request) -> None:
        self._dispatcher = dispatcher
        self._request = request

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._request.finish()

    @property
    def agent_id(self) -> str:
        """The agent that gets the events of this request."""
        return self._request.agent_id

    async def request_headers(
        self, event: RequestHeaders, timeout: float | None = None, *, retry: bool = True
    ) -> Response:
        """Send the request's headers."""
        return await self._dispatcher.send(self._request, event, timeout, retry=retry)

    async def request_body_chunk(self, event: RequestBodyChunk, timeout: float | None = None) -> Response:
        """Send one chunk of the request's body."""
        return await self._send(event, timeout)

    async def request_body(
        self,
        body: bytes | AsyncIterable[bytes],
        timeout: float | None = None,
        *,
        chunk_size: int = CHUNK_SIZE,
    ) -> Response:
        """Send the request's body, chunk by chunk, until the agent refuses the request or the body ends.

        Returns the first block, redirect or challenge, or else the answer to the last chunk. An allow before the end
        does not stop the body, because a later chunk may still be blocked. The last chunk must be marked as the last,
        so one chunk of an asynchronous body is held until the next one has come. Answers to earlier chunks are not
        returned. To apply body mutations, call ``request_body_chunk`` for each chunk.
        """
        return await self._body(RequestBodyChunk, body, timeout, chunk_size)

    async def response_headers(
        self, event: ResponseHeaders, timeout: float | None = None, *, retry: bool = True
    ) -> Response:
        """Send the response's headers."""
        return await self._dispatcher.send(self._request, event, timeout, retry=retry)

    async def response_body_chunk(self, event: ResponseBodyChunk, timeout: float | None = None) -> Response:
        """Send one chunk of the response's body."""
        return await self._send(event, timeout)

    async def response_body(
        self,
        body: bytes | AsyncIterable[bytes],
        timeout: float | None = None,
        *,
        chunk_size: int = CHUNK_SIZE,
    ) -> Response:
        """Send the response's body; see ``request_body``."""
        return await self._body(ResponseBodyChunk, body, timeout, chunk_size)

    async def websocket_frame(self, event: WebSocketFrame, timeout: float | None = None) -> Response:
        """Send one frame of the WebSocket that the request was upgraded to."""
        return await self._send(event, timeout)

    async def complete(self, event: RequestComplete, timeout: float | None = None) -> Response | None:
        """Send the completion of the request. Returns None if the agent does not take this event."""
        try:
            response = await self._dispatcher.send(self._request, event, timeout, retry=False, flags=FINAL)
        except CannotReceive:
            return None
        self._request.over = "it is complete"
        return response

    def cancel(self, reason: CancelReason = CancelReason.MANUAL) -> None:
        """Cancel all unanswered events, which then raise RequestCancelled, and end the exchange."""
        if not self._request.cancel(reason):
            self._request.finish()

    async def _send(self, event: AgentEvent, timeout: float | None) -> Response:
        return await self._dispatcher.send(self._request, event, timeout, retry=False)

    async def _body(
        self,
        kind: type[RequestBodyChunk] | type[ResponseBodyChunk],
        body: bytes | AsyncIterable[bytes],
        timeout: float | None,
        chunk_size: int,
    ) -> Response:
        total = len(body) if isinstance(body, bytes) else None
        index = before = 0
        held = b""
        async for chunk in _pieces(body, chunk_size):
            if held:
                before += len(held)
                response = await self._show(kind(index, held, False, total, before), timeout)
                if response.is_final:
                    return response
                index += 1
            held = chunk
        return await self._show(kind(index, held, True, total, before + len(held)), timeout)

    async def _show(self, event: AgentEvent, timeout: float | None) -> Response:
        channel = self._request.channel
        if channel is not None:
            await channel.room()
        return await self._send(event, timeout)


async def _pieces(body: bytes | AsyncIterable[bytes], size: int) -> AsyncIterator[bytes]:
    """Cut the body into pieces of at most ``size`` bytes, none of them empty."""
    if isinstance(body, bytes):
        for start in range(0, len(body), size):
            yield body[start : start + size]
        return
    async for chunk in body:
        if len(chunk) <= size:
            if chunk:
                yield chunk
        else:
            for start in range(0, len(chunk), size):
                yield chunk[start : start + size]
