"""A pool in this process, and agents at the other ends of socket pairs: one loop, and every step in the test's hand."""

import asyncio
import functools
import itertools
import socket
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, ParamSpec

import uvloop

from dialout import (
    ALLOW,
    AgentEvent,
    Cancel,
    Capabilities,
    Decision,
    Dialect,
    FrameDecoder,
    HeaderOp,
    RequestBodyChunk,
    RequestHeaders,
    RequestMetadata,
    acceptance_frame,
    codec_for,
    encode_frame,
)
from dialout.proxy.errors import PoolError
from ipc.messages import Offer
from ipc.options import PoolOptions
from shards.calls import Call, Exchange, Outcome
from shards.pool import AgentPool
from support.agents import without_pings
from support.pools import until
from support.serving import EVERYTHING
from support.waiting import PATIENCE

LIMIT = 2 * PATIENCE
"""Seconds for the whole of a test."""

PAUSE = encode_frame(0x33, b'{"correlation_id":null,"action":"pause","timestamp_ms":1}')
RESUME = encode_frame(0x33, b'{"correlation_id":null,"action":"resume","timestamp_ms":1}')
"""Flow control of a core agent."""

Arguments = ParamSpec("Arguments")


class Seen:
    """A frame that an agent got: an event or a cancel, and the ids to answer with."""

    def __init__(self, request_id: int | None, correlation_id: str | None, event: object) -> None:
        self.request_id = request_id
        self.correlation_id = correlation_id
        self.event = event

    @property
    def is_event(self) -> bool:
        """Whether it wants an answer."""
        return hasattr(self.event, "flag")

    def __repr__(self) -> str:
        return f"Seen({self.request_id}, {self.correlation_id}, {self.event})"


class PairedAgent:
    """The agent's end of one connection of *pool*; what it gets is read when it is asked for.

    `pool_of_this_loop` closes it at last.
    """

    all_ends: ClassVar[list["PairedAgent"]] = []
    _numbers = itertools.count(1)

    def __init__(
        self,
        pool: AgentPool,
        agent_id: str = "waf",
        dialect: Dialect = Dialect.SDK,
        capabilities: Capabilities = EVERYTHING,
        send_buffer: int = 0,
    ) -> None:
        self.sock, theirs = socket.socketpair()
        self.sock.setblocking(False)
        theirs.setblocking(False)
        if send_buffer:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        self.agent_id = agent_id
        self.dialect = dialect
        self.codec = codec_for(dialect)
        self.at_end = False
        self._decoder = FrameDecoder()
        number = next(self._numbers)
        acceptance = acceptance_frame(dialect.answer_type, f"{agent_id}-conn-{number}", proxy_id="p", proxy_version="1")
        offer = Offer(number, agent_id, dialect, capabilities, "uds", b"", b"", acceptance)
        self.connection = pool.adopt(offer, theirs.detach())
        self.all_ends.append(self)

    def frames(self) -> list[tuple[int, bytes]]:
        """All frames that have come; *at_end* is set at the end of the stream."""
        frames: list[tuple[int, bytes]] = []
        while self.sock.fileno() >= 0:
            try:
                data = self.sock.recv(1 << 20)
            except BlockingIOError:
                break
            except ConnectionResetError:
                data = b""
            if not data:
                self.at_end = True
                break
            frames += self._decoder.feed(data)
        return [frame for frame in frames if frame[0] != self.dialect.answer_type]

    def read(self) -> list[Seen]:
        """All events and cancels that have come."""
        return [Seen(*self.codec.decode_event(*frame)) for frame in without_pings(self.frames())]

    def send(self, data: bytes) -> None:
        """Send bytes as they are; nothing happens when the other side has closed."""
        try:
            self.sock.sendall(data)
        except (BrokenPipeError, ConnectionResetError, BlockingIOError):
            pass
        except OSError:
            if self.sock.fileno() >= 0:
                raise

    def frame(self, frame_type: int, payload: bytes) -> None:
        """Send a frame."""
        self.send(encode_frame(frame_type, payload))

    def answer(self, seen: Seen, response: Decision | None = None) -> None:
        """Answer an event, by default with an allow that tells which event it answers."""
        response = response or Decision(ALLOW, request_headers=(HeaderOp.set("x-tag", tag_of(seen.event)),))
        self.send(self.codec.encode_answer(response, request_id=seen.request_id, correlation_id=seen.correlation_id))

    def close(self) -> None:
        """Hang up."""
        self.sock.close()


def headers(tag: str = "/", *, has_body: bool = False, correlation_id: str = "") -> RequestHeaders:
    """A request's headers, known by *tag*."""
    return RequestHeaders("GET", tag, {}, has_body, RequestMetadata(correlation_id=correlation_id))


def chunk(tag: str = "c", index: int = 0, *, last: bool = True) -> RequestBodyChunk:
    """A chunk of a body, known by *tag*."""
    return RequestBodyChunk(index, tag.encode(), last)


def tag_of(event: object) -> str:
    """What an event is known by."""
    if isinstance(event, RequestHeaders):
        return event.uri
    if isinstance(event, RequestBodyChunk):
        return event.data.decode()
    return type(event).__name__


def answered_tag(outcome: Outcome | None) -> str | None:
    """The event that an agent says it answers; None for an answer without it."""
    assert isinstance(outcome, Decision), outcome
    return next((op.value for op in outcome.request_headers if op.name == "x-tag"), None)


class Asked:
    """One event that was submitted, and its outcome."""

    submitted: ClassVar[Counter[AgentPool]] = Counter()

    def __init__(
        self,
        pool: AgentPool,
        exchange: Exchange | str,
        event: AgentEvent,
        timeout: float | None = None,
        *,
        final: bool = False,
        on_done: Callable[[], None] | None = None,
    ) -> None:
        if isinstance(exchange, str):
            exchange, final = Exchange(exchange), True
        self.event = event
        self.exchange = exchange
        self.outcomes: list[Outcome] = []
        self._on_done = on_done
        self.submitted[pool] += 1
        self.call = pool.requests.submit(exchange, event, self._done, timeout, final=final)

    def _done(self, _call: Call, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        if self._on_done is not None:
            self._on_done()

    @property
    def outcome(self) -> Outcome | None:
        """The one outcome; None while there is none."""
        assert len(self.outcomes) <= 1, "more than one outcome"
        return self.outcomes[0] if self.outcomes else None

    @property
    def error(self) -> PoolError:
        """Why there is no answer; AssertionError when there is one."""
        outcome = self.outcome
        assert isinstance(outcome, PoolError), outcome
        return outcome


async def all_done(*asked: Asked) -> None:
    """Wait until each has its outcome; the test has a limit."""
    await until(lambda: all(one.outcome is not None for one in asked))


def cancels(agent: PairedAgent) -> list[Cancel]:
    """The cancels among what has come; everything else is thrown away."""
    return [seen.event for seen in agent.read() if isinstance(seen.event, Cancel)]


async def next_event(agent: PairedAgent) -> Seen:
    """The next event of an agent that is asked for one thing at a time."""
    seen: list[Seen] = []
    while not seen:
        await turns()
        seen = [found for found in agent.read() if found.is_event]
    (event,) = seen
    return event


async def turns() -> None:
    """Let the loop do all that it can do without waiting: reads, writes, and what follows from them."""
    for _ in range(4):
        await asyncio.sleep(0)


@contextmanager
def pool_of_this_loop(options: PoolOptions | None = None, **keywords: Any) -> Iterator[AgentPool]:
    """A pool that is closed at the end, and has nothing left then."""
    pool = AgentPool(options, **keywords)
    try:
        yield pool
    finally:
        pool.close()
        while PairedAgent.all_ends:
            PairedAgent.all_ends.pop().close()
        Asked.submitted.clear()
    assert (pool.connections, pool.agents) == ({}, {})


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run *test* on a loop of uvloop with a limit; whatever ends in the loop's exception handler fails it."""
    failures: list[dict[str, Any]] = []

    async def limited() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
        async with asyncio.timeout(LIMIT):
            await test()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(limited())
    assert failures == []


def on_loop(test: Callable[Arguments, Coroutine[Any, Any, None]]) -> Callable[Arguments, None]:
    """Make a test of a coroutine function: it is `run`."""

    @functools.wraps(test)
    def test_on_loop(*arguments: Arguments.args, **keywords: Arguments.kwargs) -> None:
        run(lambda: test(*arguments, **keywords))

    return test_on_loop


def assert_nothing_left(pool: AgentPool) -> None:
    """Nothing is in flight, and nothing of it is remembered."""
    requests = pool.requests
    assert requests.in_flight == 0
    assert len(requests._deadlines) == 0
    assert requests.answered + requests.failed.total() == Asked.submitted[pool], "each is counted, once"
    for connection in pool.connections.values():
        assert connection.in_flight == 0
        assert not [call for call in (connection.pending or {}).values() if not call.done]
