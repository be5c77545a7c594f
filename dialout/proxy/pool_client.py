"""Ask agents for decisions: the proxy's side of shardgate, for asyncio."""

import asyncio
import itertools
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final, Self

from dialout.events import (
    AgentEvent,
    Configure,
    GuardrailInspect,
    RequestComplete,
    RequestHeaders,
    ResponseHeaders,
    WebSocketFrame,
)
from dialout.proxy.agent_places import AgentPlaces
from dialout.proxy.dispatcher import Dispatcher, Request
from dialout.proxy.errors import ShuttingDown
from dialout.proxy.exchange import Exchange
from dialout.proxy.pool_response import Response
from dialout.proxy.shard_channel import ShardChannel
from dialout.proxy.shard_links import ShardLinks
from dialout.proxy.wire import FINAL

__all__ = ["PoolClient"]

_MAX_BUFFERED: Final = 32 * 1024 * 1024
"""Two frames of the largest size. A shard with a longer backlog reads too slowly to be useful."""


class PoolClient:
    """Sends events to the agents of a shardgate on this host, through its runtime directory.

    Use it as an ``async with`` block, in one event loop (stock asyncio or uvloop). It keeps one connection to each
    shard, and follows shards that start and end. Any number of requests may be in flight on each connection. Among the
    shards that have the agent, it sends a request to the one with the fewest in flight.

    ``client_name`` is the name of this client in the logs of the shards. ``default_timeout`` is the time limit in
    seconds of an event without its own. ``shard_wait`` is the time in seconds for which an event waits while there is
    no shard at all. ``max_buffered`` is the most bytes that may wait to be written to one shard.

    Every error of a request is a PoolError. None of them is an "allow".
    """

    def __init__(
        self,
        runtime_dir: str | os.PathLike[str],
        *,
        client_name: str = "",
        default_timeout: float = 30.0,
        shard_wait: float = 1.0,
        max_buffered: int = _MAX_BUFFERED,
    ) -> None:
        self._directory = Path(runtime_dir)
        self._client_name = client_name
        self._default_timeout = default_timeout
        self._shard_wait = shard_wait
        self._max_buffered = max_buffered
        # Ids are unique over all connections, old and new, so an answer cannot reach the wrong request.
        self._ids = itertools.count(1)
        self._links: ShardLinks | None = None
        self._dispatcher: Dispatcher | None = None

    async def __aenter__(self) -> Self:
        if self._links is not None:
            raise ShuttingDown("a PoolClient can be entered once: make another one")
        places = AgentPlaces()
        self._links = ShardLinks(self._directory, self._new_channel, places.forget_shard)
        self._dispatcher = Dispatcher(
            self._links, places, default_timeout=self._default_timeout, shard_wait=self._shard_wait
        )
        try:
            await self._links.start()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections. All events in flight fail with ShuttingDown."""
        self._dispatcher = None
        if self._links is not None:
            await self._links.close()

    @property
    def shards(self) -> dict[int, int]:
        """The shards that can be asked now, each with its number of events in flight for this client."""
        return {} if self._links is None else {channel.shard: channel.in_flight for channel in self._links.channels}

    def exchange(self, agent_id: str) -> Exchange:
        """Make a handle for the events of one HTTP request. All of them go to the connection that gets the first."""
        return Exchange(self._open(), Request(next(self._ids), agent_id))

    # --- single events ---

    def send_request_headers(
        self, agent_id: str, event: RequestHeaders, timeout: float | None = None, *, retry: bool = True
    ) -> Coroutine[Any, Any, Response]:
        """Send a request's headers and return the agent's answer. Use ``exchange`` if the body will follow.

        With ``retry`` an event that certainly did not reach the agent goes to one more shard.
        """
        return self._send(agent_id, event, timeout, retry)

    def send_response_headers(
        self, agent_id: str, event: ResponseHeaders, timeout: float | None = None, *, retry: bool = True
    ) -> Coroutine[Any, Any, Response]:
        """Send a response's headers to an agent that takes no request headers, and return its answer.

        An agent that takes request headers must have seen them. Send both in an ``exchange``.
        """
        return self._send(agent_id, event, timeout, retry)

    def send_request_complete(
        self, agent_id: str, event: RequestComplete, timeout: float | None = None, *, retry: bool = False
    ) -> Coroutine[Any, Any, Response]:
        """Send the completion of a request and return the agent's answer."""
        return self._send(agent_id, event, timeout, retry)

    def send_websocket_frame(
        self, agent_id: str, event: WebSocketFrame, timeout: float | None = None, *, retry: bool = False
    ) -> Coroutine[Any, Any, Response]:
        """Send one WebSocket frame to an agent that takes no request headers. For others see ``exchange``."""
        return self._send(agent_id, event, timeout, retry)

    def send_guardrail_inspect(
        self, agent_id: str, event: GuardrailInspect, timeout: float | None = None, *, retry: bool = False
    ) -> Coroutine[Any, Any, Response]:
        """Send a text to inspect and return the agent's answer. Many agents never answer, so set a short timeout."""
        return self._send(agent_id, event, timeout, retry)

    def send_configure(
        self, agent_id: str, event: Configure, timeout: float | None = None, *, retry: bool = False
    ) -> Coroutine[Any, Any, Response]:
        """Send a configuration to one connection of the agent. A block as its answer means that it refuses."""
        return self._send(agent_id, event, timeout, retry)

    # --- inside ---

    def _open(self) -> Dispatcher:
        if self._dispatcher is None:
            raise ShuttingDown("this PoolClient is not open: use it inside its `async with` block")
        return self._dispatcher

    def _send(
        self, agent_id: str, event: AgentEvent, timeout: float | None, retry: bool
    ) -> Coroutine[Any, Any, Response]:
        return self._open().send(Request(next(self._ids), agent_id), event, timeout, retry=retry, flags=FINAL)

    def _new_channel(
        self, shard: int, on_close: Callable[[ShardChannel], None], on_leave: Callable[[ShardChannel], None]
    ) -> ShardChannel:
        from dialout import __version__

        return ShardChannel(
            shard,
            asyncio.get_running_loop(),
            client=self._client_name,
            version=__version__,
            max_buffered=self._max_buffered,
            on_close=on_close,
            on_leave=on_leave,
        )
