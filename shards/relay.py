"""Requests for agents of other shards: relayed once, from shard to shard, over the socket that proxies use.

No supervisor is needed. The last published counts give the place of an agent. Without counts, a running sibling is
asked. A relayed event carries a flag and is never relayed again, so there are no loops. Its time limit is the rest of
the original one. The sibling applies the limit. This side guards against a sibling that has stopped.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Collection
from pathlib import Path
from typing import cast

from dialout import (
    AgentEvent,
    CancelReason,
    FrameDecoder,
    FrameError,
    LocalProtocolError,
    awake,
)
from dialout.proxy.errors import (
    BadAnswer,
    BadRequest,
    ConnectionLost,
    Overloaded,
    PoolError,
    RequestTimeout,
    pool_error,
)
from dialout.proxy.wire import (
    FINAL,
    GOING_AWAY,
    MAX_ANSWER_LENGTH,
    MAX_TIMEOUT_MS,
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
    encode_ping,
    encode_request,
)
from ipc.rundir import RuntimeDir
from ipc.version import __version__
from shards.deadlines import Deadlines
from shards.directory import Directory

MOST_WAITING = 16 * 1024 * 1024
"""Bytes that may wait for a sibling that does not read."""

NEWS_WAIT = 0.1
"""Seconds that the news of a new agent may take from shard to shard. The supervisor gathers changes for 20 ms of
these."""

MOST_MISSED = 10_000

MARGIN = 0.1
"""Seconds after a deadline in which the sibling may still report the timeout itself."""

SWEEP = 0.05
"""Seconds between checks of deadlines, while there are any."""

OnRelayed = Callable[[Answer | PoolError], None]


class _Asked:
    """One event sent to a sibling. *on_done* is None once the event was given up."""

    __slots__ = ("on_done", "timeout")

    def __init__(self, on_done: OnRelayed) -> None:
        self.on_done: OnRelayed | None = on_done
        self.timeout = 0.0


class Link(asyncio.Protocol):
    """The connection to one sibling. It is made at its first use, and made anew after a loss."""

    def __init__(self, shard: int, sibling: int, on_lost: "Callable[[Link], None]") -> None:
        self._shard = shard
        self._sibling = sibling
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._clock = awake.clock()
        self._decoder = FrameDecoder(MAX_ANSWER_LENGTH)
        self._transport: asyncio.Transport | None = None
        self._early: list[bytes] = []
        self._early_bytes = 0
        self._asked: dict[int, deque[_Asked]] = {}
        self._deadlines: Deadlines[_Asked] = Deadlines()
        self._timer: asyncio.TimerHandle | None = None
        self._failed = ""
        self.leaves = False
        """Whether the sibling is going away and takes no new requests."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the frames that were queued while connecting."""
        # uvloop's transports are not asyncio's classes.
        self._transport = cast("asyncio.Transport", transport)
        if self._failed:
            # The queued events have failed already, and may have gone another way.
            self._transport.abort()
            return
        self._transport.write(b"".join([encode_hello(f"shard-{self._shard}", __version__), *self._early]))
        self._early.clear()
        self._early_bytes = 0

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Fail all events that wait for the sibling."""
        self.fail("the connection to the other shard was lost")

    def data_received(self, data: bytes) -> None:
        """Pass answers to the callbacks that wait for them."""
        try:
            for frame_type, payload in self._decoder.feed(data):
                self._serve(frame_type, payload)
        except (FrameError, ProxyWireError) as error:
            self.fail(f"shard {self._sibling} sent what makes no sense: {error}")

    def ask(self, request_id: int, frame: bytes, on_done: OnRelayed, seconds: float) -> None:
        """Send an event. *on_done* gets its answer, or a failure after *seconds* and a margin at the latest."""
        if self._failed:
            on_done(ConnectionLost(self._failed, shard=self._sibling, retry_safe=True))
            return
        asked = _Asked(on_done)
        asked.timeout = self._deadlines.put(asked, seconds + MARGIN, self._clock.time())
        if self._timer is None:
            self._timer = self._loop.call_later(SWEEP, self._sweep)
        self._asked.setdefault(request_id, deque()).append(asked)
        self.tell(frame)

    def tell(self, frame: bytes) -> None:
        """Send a frame that has no answer."""
        if self._failed:
            return
        if self._transport is None:
            self._early.append(frame)
            self._early_bytes += len(frame)
        else:
            self._transport.write(frame)

    @property
    def waiting_bytes(self) -> int:
        """Bytes that the sibling has not taken yet."""
        return self._early_bytes if self._transport is None else self._transport.get_write_buffer_size()

    def fail(self, reason: str) -> None:
        """Close the link and fail all events that wait for the sibling. A second call does nothing."""
        if self._failed:
            return
        self._failed = reason
        self._on_lost(self)
        if self._timer is not None:
            self._timer.cancel()
        # A frame that was never written cannot have been seen.
        unseen = self._transport is None
        if self._transport is not None:
            self._transport.abort()
        everything, self._asked = self._asked, {}
        for queue in everything.values():
            for asked in queue:
                if asked.on_done is not None:
                    asked.on_done(ConnectionLost(reason, shard=self._sibling, retry_safe=unseen))

    def _serve(self, frame_type: int, payload: bytes) -> None:
        try:
            result = decode_from_shard(frame_type, payload)
        except ProxyWireError as error:
            if error.request_id is None:
                raise
            self._give(error.request_id, BadAnswer(str(error), shard=self._sibling))
            return
        if isinstance(result, Answer):
            self._give(result.request_id, result)
        elif isinstance(result, Failure):
            self._give(
                result.request_id,
                pool_error(
                    result.error_code,
                    result.error,
                    retry_safe=bool(result.flags & RETRY_SAFE),
                    shard=result.shard,
                    policy=result.policy,
                ),
            )
        elif isinstance(result, Welcome) and result.error:
            self.fail(f"refused by shard {self._sibling}: {result.error}")
        elif isinstance(result, Welcome) and result.going_away:
            self.leaves = True
            self.tell(encode_ping(GOING_AWAY))

    def _give(self, request_id: int, result: Answer | PoolError) -> None:
        queue = self._asked.get(request_id)
        if not queue:
            return
        asked = queue.popleft()
        if not queue:
            del self._asked[request_id]
        self._deadlines.remove(asked, asked.timeout)
        if asked.on_done is not None:
            asked.on_done(result)

    def _sweep(self) -> None:
        """Give up overdue events. They keep their place, so that a late answer is not assigned to another event."""
        self._timer = self._loop.call_later(SWEEP, self._sweep)
        for asked in self._deadlines.expired(self._clock.time()):
            on_done, asked.on_done = asked.on_done, None
            if on_done is not None:
                on_done(RequestTimeout(f"no answer in time, and no word from shard {self._sibling}"))
        if not len(self._deadlines):
            self._timer.cancel()
            self._timer = None


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

    @property
    def links(self) -> int:
        """The number of links. Each has a descriptor."""
        return len(self._links)

    def holder(self, agent_id: str, asked: Collection[int] = (), *, is_here: bool = False) -> int | None:
        """The sibling to relay a request for *agent_id* to; None if there is none.

        *asked* are the shards that said they do not have the agent. One of them is returned if there is no other.
        *is_here* says that this shard has the agent, though it cannot serve it now.
        """
        known = self.directory.holders(agent_id)
        holders = [shard for shard in known if shard != self._shard and not self._leaves(shard)]
        unasked = [shard for shard in holders if shard not in asked]
        if unasked:
            return unasked[0]
        # A dead supervisor cannot publish the agent's move.
        is_wrong = bool(known) and (bool(asked) or self._shard in known) and not is_here
        if self.directory.stale or is_wrong:
            others = (s for s in self._rundir.recorded_shards() if s != self._shard and s not in asked)
            other = next((shard for shard in others if not self._leaves(shard)), None)
            if other is not None:
                return other
        return holders[0] if holders else None

    def _leaves(self, shard: int) -> bool:
        link = self._links.get(shard)
        return link is not None and link.leaves

    def may_be_news(self, agent_id: str, waited: float) -> bool:
        """Whether an unknown agent may have been accepted just now, so that the request should wait a little more.

        After a wait in vain, requests for the same agent do not wait for a second. Requests for agents that do not
        exist therefore fail at once.
        """
        now = self._loop.time()
        if waited < NEWS_WAIT:
            return self._missed.get(agent_id, 0.0) < now
        if len(self._missed) > MOST_MISSED:
            self._missed.clear()
        self._missed[agent_id] = now + 1.0
        return False

    def begin(self, shard: int, agent_id: str) -> "RelayedExchange":
        """Begin an exchange that *shard* serves."""
        request_id, self._next_id = self._next_id, self._next_id + 1
        return RelayedExchange(self._link(shard), shard, agent_id, request_id)

    def _link(self, shard: int) -> Link:
        """The link to a sibling, connected or connecting."""
        link = self._links.get(shard)
        if link is None:
            link = self._links[shard] = Link(self._shard, shard, self._forget)
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
    """An exchange that another shard serves. Its later events follow the first one.

    Once an event of it was not sent, the later ones fail for the same reason. An agent must not see a body with a gap.
    """

    __slots__ = ("_begun", "_unsent", "agent_id", "link", "request_id", "shard")

    def __init__(self, link: Link, shard: int, agent_id: str, request_id: int) -> None:
        self.link = link
        self.shard = shard
        self.agent_id = agent_id
        self.request_id = request_id
        self._begun = False
        self._unsent: PoolError | None = None

    def submit(self, event: AgentEvent, on_done: OnRelayed, seconds: float, *, final: bool) -> None:
        """Send *event* with its remaining time."""
        if self._unsent is None and self.link.waiting_bytes > MOST_WAITING:
            self._not_sent(Overloaded("the other shard does not read", agent_id=self.agent_id))
        if self._unsent is not None:
            on_done(self._unsent)
            return
        flags = RELAYED | (FINAL if final else 0)
        try:
            frame = encode_request(
                event,
                request_id=self.request_id,
                agent_id=self.agent_id,
                timeout_ms=min(max(1, int(seconds * 1000)), MAX_TIMEOUT_MS),
                flags=flags,
            )
        except LocalProtocolError as error:
            on_done(self._not_sent(BadRequest(str(error), agent_id=self.agent_id)))
            return
        self._begun = True
        self.link.ask(self.request_id, frame, on_done, seconds)

    def _not_sent(self, error: PoolError) -> PoolError:
        self._unsent = error
        if self._begun:
            # The sibling would wait for the rest, with the agent's connection.
            self.finish()
        return error

    def cancel(self, reason: CancelReason) -> None:
        """Cancel the exchange. Waiting events still get their failure."""
        self.link.tell(encode_cancel(self.request_id, self.agent_id, reason))

    def finish(self) -> None:
        """Tell the shard that no further event follows."""
        self.link.tell(encode_finish(self.request_id, self.agent_id))
