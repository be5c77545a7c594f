"""Hundreds of agents in one process, which serve, come and go, and keep account of what happens to them.

    python -m bench.crowd --uds PATH [--tcp HOST:PORT] --agents N --connections K --limit L

Agents are named ``agent-0`` and so on, dialects take turns, and every eighth agent comes over TCP. Each keeps K
connections open, and opens another one for each that is lost. It allows every event and names it in a header, so that
whoever asks can tell whose answer it is; an event for a URI that begins with ``/slow`` is answered after a while.

Besides, every fifth of them comes and goes (`pace`): a connection is closed and opened again at once. And agents at
their limit try for one more. An agent that holds more accepted connections than the limit, as the kernel sees it at
that instant, has overshot. Times in reports are seconds of CLOCK_MONOTONIC.

An *end* names a connection for whoever looks from the other side: ``u`` and the inode of the agent's own socket, or
``t`` and its port.
"""

import argparse
import asyncio
import os
import random
import select
import time
from collections.abc import Callable
from typing import cast

import msgspec
import uvloop

from bench.conversation import converse
from dialout import (
    ALLOW,
    AgentEvent,
    Capabilities,
    Decision,
    Dialect,
    Event,
    FrameDecoder,
    HeaderOp,
    Ping,
    RegistrationRequest,
    RequestBodyChunk,
    RequestHeaders,
    codec_for,
    parse_registration_response,
    pong_for,
)
from ipc import process

__all__ = ["Closed", "CrowdReport", "Refused"]

DIALECTS = (Dialect.SDK, Dialect.CORE)
SLOW_S = 0.15
RETRY_S = 0.05
FICKLE = 5
"""Every so manieth agent, the last ones, comes and goes."""

REFUSED_RETRY_S = 0.2
MOST_TOLD = 20_000


class Closed(msgspec.Struct, array_like=True, frozen=True):
    """An accepted connection that the other side has closed."""

    at: float
    agent_id: str
    connection_id: str
    end: str
    how: str


class Refused(msgspec.Struct, array_like=True, frozen=True):
    """A registration that was refused; *wrongly* when the agent was below its limit at that instant."""

    at: float
    agent_id: str
    error_code: str
    wrongly: bool


class CrowdReport(msgspec.Struct, kw_only=True):
    """What the agents met since the last report, and how many connections are open now.

    *cut* are registrations that ended without an answer. *slowest_s* is the longest time from connect to acceptance.
    """

    connected: int
    wanted: int
    accepted: int
    closed: list[Closed]
    refused: list[Refused]
    cut: int
    cannot_connect: int
    overshoots: list[tuple[float, str, int]]
    served: int
    garbled: int
    left_by_themselves: int
    slowest_s: float


class _Account:
    def __init__(self) -> None:
        self.accepted = self.cut = self.cannot_connect = self.served = self.garbled = self.left = 0
        self.closed: list[Closed] = []
        self.refused: list[Refused] = []
        self.overshoots: list[tuple[float, str, int]] = []
        self.slowest = 0.0


class AgentOfCrowd:
    """One agent and its connections."""

    def __init__(self, crowd: "Crowd", number: int) -> None:
        self.crowd = crowd
        self.agent_id = f"agent-{number}"
        self.dialect = DIALECTS[number % len(DIALECTS)]
        self.over_tcp = crowd.tcp is not None and number % 8 == 7
        self.codec = codec_for(self.dialect)
        capabilities = Capabilities(events=int(~Event(0)), max_concurrent=None, cancellation=True, streaming_body=True)
        self.registration = RegistrationRequest(agent_id=self.agent_id, capabilities=capabilities).encode(self.dialect)
        self.accepted: set[End] = set()
        self.asking: set[End] = set()

    @property
    def total(self) -> int:
        """Connections that are open, accepted or not."""
        return len(self.accepted) + len(self.asking)

    def living(self) -> int:
        """Accepted connections whose other side is there, as the kernel says."""
        poll = select.poll()
        for end in self.accepted:
            poll.register(end.fd, select.POLLRDHUP)
        return len(self.accepted) - len(poll.poll(0))


class End(asyncio.Protocol):
    """The agent's end of one connection, or of its attempt; an *extra* one is beyond what the agent wants to keep."""

    def __init__(self, agent: AgentOfCrowd, *, extra: bool = False) -> None:
        self.agent = agent
        self.extra = extra
        self.decoder = FrameDecoder()
        self.transport: asyncio.Transport | None = None
        self.name = ""
        self.connection_id: str | None = None
        self.fd = -1
        self.began = 0.0
        self.was_below_limit = False
        self.leaves = False
        self.retry_s = RETRY_S

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Register."""
        # uvloop's transports are none of asyncio's classes.
        self.transport = cast("asyncio.Transport", transport)
        sock = transport.get_extra_info("socket")
        self.fd = sock.fileno()
        self.name = f"t{sock.getsockname()[1]}" if self.agent.over_tcp else f"u{os.fstat(self.fd).st_ino}"
        self.began = time.monotonic()
        self.was_below_limit = self.agent.total <= self.agent.crowd.limit
        self.transport.write(self.agent.registration)

    def data_received(self, data: bytes) -> None:
        """Take the answer to the registration first, then events."""
        for frame_type, payload in self.decoder.feed(data):
            if self.connection_id is None:
                self._answered(frame_type, payload)
            else:
                self._serve(frame_type, payload)

    def _answered(self, frame_type: int, payload: bytes) -> None:
        agent, account, now = self.agent, self.agent.crowd.account, time.monotonic()
        answer = parse_registration_response(frame_type, payload)
        if not answer.accepted:
            wrongly = answer.error_code == "connection_limit" and self.was_below_limit
            wrongly = wrongly and agent.total <= agent.crowd.limit
            account.refused.append(Refused(now, agent.agent_id, str(answer.error_code), wrongly))
            self.retry_s = REFUSED_RETRY_S
            self.connection_id = ""
            self.leave()
            return
        self.connection_id = answer.assigned_id or "?"
        account.accepted += 1
        account.slowest = max(account.slowest, now - self.began)
        agent.asking.discard(self)
        agent.accepted.add(self)
        if len(agent.accepted) > agent.crowd.limit and (living := agent.living()) > agent.crowd.limit:
            account.overshoots.append((now, agent.agent_id, living))
        if self.extra:
            self.leave()

    def _serve(self, frame_type: int, payload: bytes) -> None:
        agent = self.agent
        request_id, correlation_id, event = agent.codec.decode_event(frame_type, payload)
        if isinstance(event, Ping):
            self._write(pong_for(agent.dialect, frame_type, payload) or b"")
            return
        if not isinstance(event, AgentEvent):
            return  # A cancel.
        agent.crowd.account.served += 1
        tag = ""
        if isinstance(event, RequestHeaders):
            tag = event.uri
        elif isinstance(event, RequestBodyChunk):
            tag = event.data.decode()
        decision = Decision(ALLOW, request_headers=(HeaderOp.set("x-tag", tag),))
        frame = agent.codec.encode_answer(decision, request_id=request_id, correlation_id=correlation_id)
        if tag.startswith("/slow"):
            asyncio.get_running_loop().call_later(SLOW_S, self._write, frame)
        else:
            self._write(frame)

    def _write(self, frame: bytes) -> None:
        if self.transport is not None:
            self.transport.write(frame)

    def leave(self) -> None:
        """Close it from this side."""
        self.leaves = True
        if self.transport is not None:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Account for it, and see to it that the agent has what it wants."""
        agent, account = self.agent, self.agent.crowd.account
        agent.asking.discard(self)
        agent.accepted.discard(self)
        self.transport = None
        if self.connection_id is None:
            account.cut += 1
        elif self.leaves:
            account.left += bool(self.connection_id)
        else:
            how = "end" if exc is None else str(exc)
            account.closed.append(Closed(time.monotonic(), agent.agent_id, self.connection_id, self.name, how))
        agent.crowd.tend_soon(agent, 0.0 if self.leaves and self.connection_id else random.uniform(0, self.retry_s))


class Crowd:
    """All agents, and how they come and go."""

    def __init__(self, uds: str, tcp: tuple[str, int] | None, agents: int, connections: int, limit: int) -> None:
        self.uds, self.tcp, self.connections, self.limit = uds, tcp, connections, limit
        self.account = _Account()
        self.agents = [AgentOfCrowd(self, number) for number in range(agents)]
        self._loop = asyncio.get_running_loop()
        self._connecting: set[asyncio.Task[None]] = set()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._is_over = False

    def begin(self) -> None:
        """Have everybody connect, over a second or so."""
        for number, agent in enumerate(self.agents):
            self.tend_soon(agent, number / max(400, len(self.agents)))

    def tend_soon(self, agent: AgentOfCrowd, seconds: float) -> None:
        """Look after a while whether the agent has the connections that it wants."""
        if not self._is_over:
            self._loop.call_later(seconds, self._tend, agent)

    def _tend(self, agent: AgentOfCrowd) -> None:
        kept = sum(not end.extra for end in (*agent.accepted, *agent.asking))
        for _ in range(self.connections - kept):
            self._open(agent)

    def _open(self, agent: AgentOfCrowd, *, extra: bool = False) -> None:
        if self._is_over:
            return
        end = End(agent, extra=extra)
        agent.asking.add(end)
        task = self._loop.create_task(self._connect(agent, end))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, agent: AgentOfCrowd, end: End) -> None:
        try:
            if agent.over_tcp:
                assert self.tcp is not None
                await self._loop.create_connection(lambda: end, *self.tcp)
            else:
                await self._loop.create_unix_connection(lambda: end, self.uds)
        except OSError:
            agent.asking.discard(end)
            self.account.cannot_connect += 1
            self.tend_soon(agent, RETRY_S)

    # What is asked.

    def pace(self, churn: str, extra: str) -> bool:
        """Have so many connections a second closed and opened again, and so many tried for beyond the limit."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        for rate, act in ((float(churn), self._churn), (float(extra), self._try_for_more)):
            if rate:
                self._every(1 / rate, act)
        return True

    def _every(self, seconds: float, act: Callable[[], None]) -> None:
        self._timers[act.__name__] = self._loop.call_later(random.expovariate(1 / seconds), self._every, seconds, act)
        act()

    def _churn(self) -> None:
        agent = random.choice(self.agents[-(len(self.agents) // FICKLE) :])
        if agent.accepted:
            random.choice(tuple(agent.accepted)).leave()

    def _try_for_more(self) -> None:
        agent = random.choice(self.agents)
        if agent.total == self.connections == self.limit:
            self._open(agent, extra=True)

    def ends(self) -> dict[str, str]:
        """All accepted connections: their ends, and the ids that they were told."""
        return {end.name: end.connection_id or "" for agent in self.agents for end in agent.accepted}

    def report(self) -> CrowdReport:
        """What has happened since the last report."""
        account, self.account = self.account, _Account()
        return CrowdReport(
            connected=sum(len(agent.accepted) for agent in self.agents),
            wanted=len(self.agents) * self.connections,
            accepted=account.accepted,
            closed=account.closed[:MOST_TOLD],
            refused=account.refused[:MOST_TOLD],
            cut=account.cut,
            cannot_connect=account.cannot_connect,
            overshoots=account.overshoots,
            served=account.served,
            garbled=account.garbled,
            left_by_themselves=account.left,
            slowest_s=account.slowest,
        )

    async def end(self) -> None:
        """Close everything."""
        self._is_over = True
        self.pace("0", "0")
        for agent in self.agents:
            for end in (*agent.accepted, *agent.asking):
                end.leave()
        for task in list(self._connecting):
            task.cancel()
        await asyncio.sleep(0)


async def serve(options: argparse.Namespace) -> None:
    """Be the crowd until stdin ends."""
    tcp = None
    if options.tcp:
        host, _, port = options.tcp.rpartition(":")
        tcp = (host, int(port))
    crowd = Crowd(options.uds, tcp, options.agents, options.connections, options.limit)
    crowd.begin()
    await converse({"report": crowd.report, "ends": crowd.ends, "pace": crowd.pace})
    await crowd.end()


def main() -> None:
    """Command line, see the module's docstring."""
    parser = argparse.ArgumentParser(description="Many agents in one process.")
    parser.add_argument("--uds", required=True, help="Unix socket of the listener")
    parser.add_argument("--tcp", metavar="HOST:PORT", help="its TCP address, for every eighth agent")
    parser.add_argument("--agents", type=int, default=100)
    parser.add_argument("--connections", type=int, default=1, help="connections of each agent")
    parser.add_argument("--limit", type=int, default=1, help="how many of them the listener allows")
    options = parser.parse_args()
    process.raise_descriptor_limit()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(options))


if __name__ == "__main__":
    main()
