"""Requests for agents of other shards: handed on once, from shard to shard, over the socket that proxies use.

It needs no supervisor: the counts that were heard last say where an agent is, and when nobody has told, the sibling
that is there is asked. A relayed event carries a flag, and is never relayed again, so there are no loops; its time
limit is what is left of the first one.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import cast

from dialout import (
    AgentEvent,
    CancelReason,
    FrameDecoder,
    FrameError,
    LocalProtocolError,
)
from dialout.pool_errors import BadRequest, ConnectionLost, PoolError, pool_error
from dialout.proxy_wire import (
    FINAL,
    MAX_ANSWER_LENGTH,
    RELAYED,
    RETRY_SAFE,
    Answer,
    Failure,
    ProxyWireError,
    Welcome,
    decode_from_shard,
    encode_cancel,
    encode_finish,
    encode_hello,
    encode_request,
)
from ipc.rundir import RuntimeDir
from ipc.version import __version__
from shards.directory import Directory

MOST_WAITING = 16 * 1024 * 1024
"""Bytes that may wait for a sibling that does not read."""

NEWS_WAIT = 0.1
"""Seconds that word of a new agent may take from shard to shard; 20 ms are spent on gathering."""

MOST_MISSED = 10_000

OnRelayed = Callable[[Answer | PoolError], None]


class Link(asyncio.Protocol):
    """The connection to one sibling; made when it is needed first, made anew when it is lost."""

    def __init__(self, shard: int, on_lost: "Callable[[Link], None]") -> None:
        self._shard = shard
        self._on_lost = on_lost
        self._decoder = FrameDecoder(MAX_ANSWER_LENGTH)
        self._transport: asyncio.Transport | None = None
        self._early: list[bytes] = []
        self._waiting: dict[int, deque[OnRelayed]] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send what was asked for while connecting."""
        # uvloop's transports are none of asyncio's classes.
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(b"".join([encode_hello(f"shard-{self._shard}", __version__), *self._early]))
        self._early.clear()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Fail everything that waits for the sibling."""
        self.fail("the connection to the other shard was lost")

    def data_received(self, data: bytes) -> None:
        """Give answers to those who wait for them."""
        try:
            for frame_type, payload in self._decoder.feed(data):
                result = decode_from_shard(frame_type, payload)
                if isinstance(result, Answer | Failure):
                    self._give(result)
                elif isinstance(result, Welcome) and result.error:
                    self.fail(f"refused by shard {self._shard}: {result.error}")
        except (FrameError, ProxyWireError) as error:
            self.fail(f"shard {self._shard} sent what makes no sense: {error}")

    def ask(self, request_id: int, frame: bytes, on_done: OnRelayed) -> None:
        """Send an event; *on_done* gets its answer."""
        self._waiting.setdefault(request_id, deque()).append(on_done)
        self.tell(frame)

    def tell(self, frame: bytes) -> None:
        """Send a frame that has no answer."""
        if self._transport is None:
            self._early.append(frame)
        else:
            self._transport.write(frame)

    @property
    def waiting_bytes(self) -> int:
        """Bytes that the sibling has not taken yet."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def fail(self, reason: str) -> None:
        """Close the link and fail everything that waits for the sibling."""
        self._on_lost(self)
        if self._transport is not None:
            self._transport.abort()
        waiting, self._waiting = self._waiting, {}
        for callbacks in waiting.values():
            for on_done in callbacks:
                on_done(ConnectionLost(reason, shard=self._shard))

    def _give(self, result: Answer | Failure) -> None:
        callbacks = self._waiting.get(result.request_id)
        if not callbacks:
            return
        on_done = callbacks.popleft()
        if not callbacks:
            del self._waiting[result.request_id]
        if isinstance(result, Answer):
            on_done(result)
        else:
            safe = bool(result.flags & RETRY_SAFE)
            on_done(pool_error(result.error_code, result.error, retry_safe=safe, shard=result.shard))


class Relay:
    """The links of one shard to its siblings."""

    def __init__(self, shard: int, rundir: RuntimeDir, directory: Directory) -> None:
        self.directory = directory
        self._shard = shard
        self._rundir = rundir
        self._loop = asyncio.get_running_loop()
        self._links: dict[int, Link] = {}
        self._connecting: set[asyncio.Task[None]] = set()
        self._next_id = 1
        self._missed: dict[str, float] = {}
        self.total = 0

    def holder(self, agent_id: str) -> int | None:
        """The sibling to hand a request for *agent_id* to; None when there is no one to ask."""
        holders = self.directory.holders(agent_id, self._shard)
        if holders:
            return holders[0]
        if not self.directory.stale:
            return None
        return next((shard for shard in self._rundir.recorded_shards() if shard != self._shard), None)

    def may_be_news(self, agent_id: str, waited: float) -> bool:
        """Whether an agent that is nowhere may have been accepted just now, so that waiting a little more makes sense.

        An agent that was waited for in vain is not waited for again within a second: proxies that ask for an agent that
        does not exist get their failure at once.
        """
        now = self._loop.time()
        if waited < NEWS_WAIT:
            return self._missed.get(agent_id, 0.0) < now
        if len(self._missed) > MOST_MISSED:
            self._missed.clear()
        self._missed[agent_id] = now + 1.0
        return False

    def begin(self, shard: int, agent_id: str) -> "RelayedExchange":
        """Hand an exchange on to *shard*."""
        request_id, self._next_id = self._next_id, self._next_id + 1
        return RelayedExchange(self, shard, agent_id, request_id)

    def link(self, shard: int) -> Link:
        """The link to a sibling, connected or on its way."""
        link = self._links.get(shard)
        if link is None:
            link = self._links[shard] = Link(self._shard, self._forget)
            task = self._loop.create_task(self._connect(link, self._rundir.shard_proxy(shard)))
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)
        return link

    def close(self) -> None:
        """Close all links."""
        for task in self._connecting:
            task.cancel()
        for link in list(self._links.values()):
            link.fail("this shard stops")

    async def _connect(self, link: Link, path: Path) -> None:
        try:
            await self._loop.create_unix_connection(lambda: link, str(path))
        except OSError as error:
            link.fail(f"the other shard cannot be reached: {error.strerror}")

    def _forget(self, link: Link) -> None:
        self._links = {shard: other for shard, other in self._links.items() if other is not link}


class RelayedExchange:
    """An exchange that another shard serves; its events follow the first one."""

    __slots__ = ("agent_id", "link", "relay", "request_id", "shard")

    def __init__(self, relay: Relay, shard: int, agent_id: str, request_id: int) -> None:
        self.relay = relay
        self.shard = shard
        self.agent_id = agent_id
        self.request_id = request_id
        self.link = relay.link(shard)

    def submit(self, event: AgentEvent, on_done: OnRelayed, seconds: float, *, final: bool) -> None:
        """Send *event* with the time that is left for it."""
        if self.link.waiting_bytes > MOST_WAITING:
            on_done(pool_error("overloaded", "the other shard does not read", agent_id=self.agent_id))
            return
        flags = RELAYED | (FINAL if final else 0)
        try:
            frame = encode_request(
                event,
                request_id=self.request_id,
                agent_id=self.agent_id,
                timeout_ms=max(1, int(seconds * 1000)),
                flags=flags,
            )
        except LocalProtocolError as error:
            on_done(BadRequest(str(error), agent_id=self.agent_id))
            return
        self.relay.total += 1
        self.link.ask(self.request_id, frame, on_done)

    def cancel(self, reason: CancelReason) -> None:
        """Give the exchange up; what waits still gets its failure."""
        self.link.tell(encode_cancel(self.request_id, self.agent_id, reason))

    def finish(self) -> None:
        """Say that no further event follows."""
        self.link.tell(encode_finish(self.request_id, self.agent_id))
