"""The pool for programs that embed it: awaitable requests, and clients that a listener has accepted.

Names and errors are the same as those of `dialout.PoolClient`, which asks the shards of another process.
"""

# ruff: noqa: ASYNC109  (the pool applies the time limit and tells the agent; the limit is not the coroutine's alone)
import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Self

import msgspec

from dialout import (
    AgentEvent,
    CancelReason,
    Capabilities,
    Configure,
    GuardrailInspect,
    RequestBodyChunk,
    RequestComplete,
    RequestHeaders,
    ResponseBodyChunk,
    ResponseHeaders,
    WebSocketFrame,
)
from dialout.proxy.errors import BadRequest, CannotReceive, PoolError, ShuttingDown
from dialout.proxy.pool_response import Response
from dialout.proxy.wire import Answer
from ipc.client import AcceptedClient, ClientGone, WrongAgent
from ipc.messages import Offer
from shards.calls import Call, Exchange, Outcome
from shards.connection import Connection
from shards.requests import Requests


class PoolApi(ABC):
    """The awaitable half of `AgentPool`.

    A failed request raises a `PoolError`. An error is never an "allow". *timeout* is in seconds, None means
    `PoolOptions.request_timeout`. Cancelling a task cancels its request.
    """

    requests: Requests
    shard: int
    closed: bool

    @abstractmethod
    def adopt(self, offer: Offer, fd: int, on_closed: Callable[[], None] | None = None) -> Connection:
        """See `AgentPool.adopt`."""

    @abstractmethod
    def probe(self, agent_id: str) -> bool:
        """See `AgentPool.probe`."""

    async def add_reverse_connection(
        self, agent_id: str, client: AcceptedClient, capabilities: Capabilities | None = None
    ) -> str:
        """Add an accepted client to the pool and tell its agent that it is accepted; returns its connection id.

        *capabilities* limit the events that the agent may be sent; None means the capabilities that it registered.
        Raises `WrongAgent` (the client is unchanged) and `ClientGone`, both `ipc.client.ClientError`, and
        `ShuttingDown` if the pool is closed.
        """
        offer = client.offer
        if offer.agent_id != agent_id:
            raise WrongAgent(f"{client.connection_id} cannot be added as another agent")
        if self.closed:
            raise ShuttingDown("the pool is closed", agent_id=agent_id)
        if capabilities is not None and capabilities != offer.capabilities:
            offer = msgspec.structs.replace(offer, capabilities=capabilities)
        fd, on_closed = client.take(self.probe)
        connection = self.adopt(offer, fd, on_closed)
        if connection.fd < 0:
            raise ClientGone("the agent hung up before it was told that it is accepted")
        return connection.connection_id

    def exchange(self, agent_id: str, *, session: str | None = None) -> "OpenExchange":
        """A handle for all events of one HTTP request. They go to the connection that gets the first event.

        Requests of one *session* go to the same connection as long as it can take them.
        """
        return OpenExchange(self, Exchange(agent_id, session))

    # Single events.

    async def send_request_headers(
        self, agent_id: str, event: RequestHeaders, timeout: float | None = None, *, session: str | None = None
    ) -> Response:
        """The agent's answer to a request's headers. Use `exchange` if the body will follow."""
        return await self.send(Exchange(agent_id, session), event, timeout, final=True)

    async def send_response_headers(
        self, agent_id: str, event: ResponseHeaders, timeout: float | None = None
    ) -> Response:
        """The answer to a response's headers, from an agent that takes no request headers.

        An agent that takes request headers must have seen them first: send both in an `exchange`.
        """
        return await self.send(Exchange(agent_id), event, timeout, final=True)

    async def send_request_complete(
        self, agent_id: str, event: RequestComplete, timeout: float | None = None
    ) -> Response:
        """The agent's answer to the end of a request."""
        return await self.send(Exchange(agent_id), event, timeout, final=True)

    async def send_websocket_frame(
        self, agent_id: str, event: WebSocketFrame, timeout: float | None = None
    ) -> Response:
        """The answer to one WebSocket frame, from an agent that takes no request headers; see `exchange`."""
        return await self.send(Exchange(agent_id), event, timeout, final=True)

    async def send_guardrail_inspect(
        self, agent_id: str, event: GuardrailInspect, timeout: float | None = None
    ) -> Response:
        """The agent's answer to a text. Many agents never answer this event, so set a short timeout."""
        return await self.send(Exchange(agent_id), event, timeout, final=True)

    async def send_configure(self, agent_id: str, event: Configure, timeout: float | None = None) -> Response:
        """One connection's answer to a configuration. A block means that the agent refuses the configuration."""
        return await self.send(Exchange(agent_id), event, timeout, final=True)

    async def send(
        self, exchange: Exchange, event: AgentEvent, timeout: float | None = None, *, final: bool = False
    ) -> Response:
        """The agent's answer to *event* of *exchange*; *final* says that no further event follows."""
        if self.closed:
            raise ShuttingDown("the pool is closed", agent_id=exchange.agent_id)
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        started = time.monotonic()  # uvloop's own clock has milliseconds.

        def on_done(_call: Call, outcome: Outcome) -> None:
            if not future.done():
                future.set_result(outcome)

        call = self.requests.submit(exchange, event, on_done, timeout, final=final)
        try:
            outcome = await future
        except asyncio.CancelledError:
            self.requests.cancel(call, CancelReason.CLIENT_DISCONNECT)
            raise
        if isinstance(outcome, PoolError):
            raise outcome
        assert call.connection is not None
        return Response.of(
            Answer(
                call.request_id,
                int((time.monotonic() - started) * 1_000_000),
                0,
                outcome,
                exchange.agent_id,
                call.connection.connection_id,
                self.shard,
            )
        )


class OpenExchange:
    """The events of one request for one agent; `AgentPool.exchange` creates it.

    Use it as an ``async with`` block. At its end the agent may forget the request, and unanswered events are cancelled.
    After a `PoolError` other than `CannotReceive` it takes no more events. A late answer must not be taken for the
    answer to another event.
    """

    __slots__ = ("_exchange", "_pool")

    def __init__(self, pool: PoolApi, exchange: Exchange) -> None:
        self._pool = pool
        self._exchange = exchange

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cancel()

    @property
    def agent_id(self) -> str:
        """The id of the agent that gets this request."""
        return self._exchange.agent_id

    async def request_headers(self, event: RequestHeaders, timeout: float | None = None) -> Response:
        """Send the request's headers."""
        return await self._pool.send(self._exchange, event, timeout)

    async def request_body_chunk(self, event: RequestBodyChunk, timeout: float | None = None) -> Response:
        """Send one chunk of the request's body."""
        return await self._pool.send(self._exchange, event, timeout)

    async def response_headers(self, event: ResponseHeaders, timeout: float | None = None) -> Response:
        """Send the response's headers."""
        return await self._pool.send(self._exchange, event, timeout)

    async def response_body_chunk(self, event: ResponseBodyChunk, timeout: float | None = None) -> Response:
        """Send one chunk of the response's body."""
        return await self._pool.send(self._exchange, event, timeout)

    async def websocket_frame(self, event: WebSocketFrame, timeout: float | None = None) -> Response:
        """Send one frame of the WebSocket that the request was upgraded to."""
        return await self._pool.send(self._exchange, event, timeout)

    async def complete(self, event: RequestComplete, timeout: float | None = None) -> Response | None:
        """Send the end of the request; None if the agent does not take this event."""
        try:
            return await self._pool.send(self._exchange, event, timeout, final=True)
        except CannotReceive:
            return None
        finally:
            self._end()

    def cancel(self, reason: CancelReason = CancelReason.MANUAL) -> None:
        """Cancel the unanswered events and end the exchange. A second call does nothing."""
        self._pool.requests.give_up(self._exchange, reason)
        self._end()

    def _end(self) -> None:
        exchange = self._exchange
        exchange.over = exchange.over or BadRequest("the exchange is over", agent_id=exchange.agent_id)
