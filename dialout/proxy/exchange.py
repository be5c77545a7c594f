"""The events of one HTTP request, in order, all to the connection that saw its headers."""

# ruff: noqa: ASYNC109  (the time limit goes to the shard with the event: it is not one for this coroutine alone)

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
"""Bytes of a body in one chunk: what agents ask for when they say nothing else."""


class Exchange:
    """A request's conversation with one agent; ``PoolClient.exchange`` makes it.

    Use it as an ``async with`` block: at its end the shard may forget where the request's events went.
    Every method returns the agent's answer, or raises a PoolError; ``timeout`` is seconds for each event.
    After a RequestTimeout, or when a task was cancelled that waited for an answer, the exchange takes no
    more events: an answer that is late must not be taken for the answer to another event.
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
        """The agent that this request is shown to."""
        return self._request.agent_id

    async def request_headers(
        self, event: RequestHeaders, timeout: float | None = None, *, retry: bool = True
    ) -> Response:
        """Show the request's headers."""
        return await self._dispatcher.send(self._request, event, timeout, retry=retry)

    async def request_body_chunk(self, event: RequestBodyChunk, timeout: float | None = None) -> Response:
        """Show one chunk of the request's body."""
        return await self._send(event, timeout)

    async def request_body(
        self,
        body: bytes | AsyncIterable[bytes],
        timeout: float | None = None,
        *,
        chunk_size: int = CHUNK_SIZE,
    ) -> Response:
        """Show the request's body, chunk by chunk, until the agent decides against it or the body ends.

        The answer is that block, redirect or challenge, or else the one to the last chunk. An allow before
        the end does not end it: a later chunk may still be blocked. One chunk of an asynchronous body is
        held back until the next one has come, because the last one must say that it is the last. Answers
        to earlier chunks are not returned: send ``request_body_chunk`` yourself to apply body mutations.
        """
        return await self._body(RequestBodyChunk, body, timeout, chunk_size)

    async def response_headers(
        self, event: ResponseHeaders, timeout: float | None = None, *, retry: bool = True
    ) -> Response:
        """Show the response's headers."""
        return await self._dispatcher.send(self._request, event, timeout, retry=retry)

    async def response_body_chunk(self, event: ResponseBodyChunk, timeout: float | None = None) -> Response:
        """Show one chunk of the response's body."""
        return await self._send(event, timeout)

    async def response_body(
        self,
        body: bytes | AsyncIterable[bytes],
        timeout: float | None = None,
        *,
        chunk_size: int = CHUNK_SIZE,
    ) -> Response:
        """Show the response's body; see ``request_body``."""
        return await self._body(ResponseBodyChunk, body, timeout, chunk_size)

    async def websocket_frame(self, event: WebSocketFrame, timeout: float | None = None) -> Response:
        """Show one frame of the WebSocket that the request became."""
        return await self._send(event, timeout)

    async def complete(self, event: RequestComplete, timeout: float | None = None) -> Response | None:
        """Say that the request is over; None when the agent does not take this event."""
        try:
            response = await self._dispatcher.send(self._request, event, timeout, retry=False, flags=FINAL)
        except CannotReceive:
            return None
        self._request.over = "it is complete"
        return response

    def cancel(self, reason: CancelReason = CancelReason.MANUAL) -> None:
        """Give up the events that have no answer yet: they raise RequestCancelled. Ends the exchange."""
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
    """The body in pieces of at most ``size`` bytes, none of them empty."""
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
