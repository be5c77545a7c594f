"""Send each event to the right shard, and retry it once on another shard where that is safe."""

# ruff: noqa: ASYNC109  (the time limit goes to the shard with the event; it is not for this coroutine alone)

import asyncio
from typing import Final

from dialout.awake import clock
from dialout.errors import LocalProtocolError
from dialout.events import AgentEvent, CancelReason
from dialout.proxy.agent_places import AgentPlaces
from dialout.proxy.errors import (
    AgentNotFound,
    AgentUnavailable,
    BadRequest,
    ConnectionLost,
    Overloaded,
    PoolError,
    RequestTimeout,
    ShuttingDown,
)
from dialout.proxy.pool_response import Response
from dialout.proxy.shard_channel import ShardChannel
from dialout.proxy.shard_links import ShardLinks
from dialout.proxy.wire import MAX_TIMEOUT_MS, encode_request

__all__ = ["Dispatcher", "Request"]

_ELSEWHERE: Final = (AgentNotFound, AgentUnavailable, ConnectionLost, Overloaded, ShuttingDown)
"""Failures that may not occur on another shard."""

_LONGEST: Final = MAX_TIMEOUT_MS / 1000


class Request:
    """One HTTP request. All its events go to ``channel``, the shard that got its first event."""

    __slots__ = ("agent_id", "channel", "events", "over", "request_id")

    def __init__(self, request_id: int, agent_id: str) -> None:
        self.request_id = request_id
        self.agent_id = agent_id
        self.channel: ShardChannel | None = None
        self.events = 0
        # The reason why no more events may be sent; empty while they may.
        self.over = ""

    def cancel(self, reason: CancelReason) -> bool:
        """Cancel all unanswered events. Returns False if there are none."""
        if self.channel is None or not self.channel.cancel(self.request_id, self.agent_id, reason):
            return False
        self.over = "it was cancelled"
        return True

    def finish(self) -> None:
        """Cancel all unanswered events. If there are none, let the shard drop the affinity of the request."""
        if not self.over and not self.cancel(CancelReason.MANUAL) and self.channel is not None:
            self.channel.finish(self.request_id, self.agent_id)
        self.over = self.over or "it is finished"


class Dispatcher:
    """Chooses a shard for each request, and sends all further events of the request to it.

    Times are in seconds. ``shard_wait`` is the time for which a request waits while there is no shard.
    """

    def __init__(self, links: ShardLinks, places: AgentPlaces, *, default_timeout: float, shard_wait: float) -> None:
        self._links = links
        self._places = places
        self._default_timeout = default_timeout
        self._shard_wait = shard_wait
        self._loop = asyncio.get_running_loop()
        self._clock = clock()

    async def send(
        self, request: Request, event: AgentEvent, timeout: float | None, *, retry: bool, flags: int = 0
    ) -> Response:
        """Send an event and return the agent's answer. Raises a PoolError when there is none.

        An event that was never written, because its channel was lost, goes to another shard. With ``retry``, an event
        that certainly did not reach the agent goes to another shard once. Both apply only to the first event of a
        request. If the calling task is cancelled, the request is cancelled, too.
        """
        if request.over:
            raise BadRequest(f"this request takes no more events: {request.over}", agent_id=request.agent_id)
        if timeout is None:
            timeout = self._default_timeout
        if not 0 < timeout <= _LONGEST:
            raise BadRequest(f"a timeout is more than 0 and at most {_LONGEST:g} s, not {timeout}")
        deadline = self._loop.time() - self._clock.slept + timeout
        request.events += 1
        avoid: ShardChannel | None = None
        while True:
            if request.channel is None:
                chosen = self._choose(request.agent_id, avoid) or await self._next_channel(request.agent_id, deadline)
                # Another event of this request may have been sent in the meantime.
                request.channel = request.channel or chosen
            channel = request.channel
            frame = self._encode(request, event, deadline, flags)
            try:
                response = await channel.send(request.request_id, request.agent_id, frame, deadline)
            except asyncio.CancelledError:
                request.cancel(CancelReason.CLIENT_DISCONNECT)
                raise
            except PoolError as error:
                self._learn_from(error, channel, request)
                if not self._goes_elsewhere(error, channel, request, retry=retry and avoid is None):
                    raise
                avoid = channel
            else:
                self._places.learn(request.agent_id, channel.shard, response.shard, self._loop.time())
                return response

    def _choose(self, agent_id: str, avoid: ShardChannel | None) -> ShardChannel | None:
        """Choose the shard to ask. Returns None if there is none besides the one to avoid."""
        channels = [channel for channel in self._links.channels if channel is not avoid]
        if not channels:
            return None
        sure = [channel for channel in channels if not channel.doubtful]
        return self._places.choose(agent_id, sure or channels, self._loop.time())

    async def _next_channel(self, agent_id: str, deadline: float) -> ShardChannel:
        left = min(deadline - self._clock.time(), self._shard_wait)
        await self._links.wait_for_channel(self._loop.time() + left)
        return self._places.choose(agent_id, self._links.channels, self._loop.time())

    def _encode(self, request: Request, event: AgentEvent, deadline: float, flags: int) -> bytes:
        remaining_ms = int((deadline - self._loop.time() + self._clock.slept) * 1000)
        if remaining_ms < 1:
            raise RequestTimeout("no shard could be asked in time", agent_id=request.agent_id, retry_safe=True)
        try:
            return encode_request(
                event, request_id=request.request_id, agent_id=request.agent_id, timeout_ms=remaining_ms, flags=flags
            )
        except LocalProtocolError as error:
            raise BadRequest(str(error), agent_id=request.agent_id, retry_safe=True) from error

    def _learn_from(self, error: PoolError, channel: ShardChannel, request: Request) -> None:
        if isinstance(error, AgentNotFound):
            self._places.forget(request.agent_id)
        elif isinstance(error, ConnectionLost | AgentUnavailable):
            self._places.forget(request.agent_id, channel.shard)
        elif isinstance(error, RequestTimeout):
            # The answer may still come, and must not be taken for the answer to a later event.
            request.over = "an event of it timed out"

    def _goes_elsewhere(self, error: PoolError, channel: ShardChannel, request: Request, *, retry: bool) -> bool:
        """Whether to send the same event again. If the agent has not seen the request, also release its channel."""
        if request.over or request.events > 1 or not error.retry_safe or not isinstance(error, _ELSEWHERE):
            return False
        # The agent has seen nothing of this request. So the request may start on any shard, now or with its next event.
        request.channel = None
        if channel.is_lost:
            return not isinstance(error, ShuttingDown)
        if retry and len(self._links.channels) > 1:
            return True
        request.events = 0
        return False
