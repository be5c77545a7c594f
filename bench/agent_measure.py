"""One round of requests to one agent, from a proxy that does nothing else; `NotMeasuredError` when it did not answer.

The proxy is a blocking socket in the benchmark's own process. It knows each answer beforehand, byte for byte, so that
looking at one costs a lookup, and neither a missing nor a wrong one is counted as served.
"""

import contextlib
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from bench.accounting import cpu_ns
from bench.children import Child, ChildError
from bench.closed_loop import SAMPLES
from bench.measure import NotMeasuredError
from dialout import (
    ALLOWED,
    Decision,
    Dialect,
    FrameDecoder,
    RequestHeaders,
    acceptance_frame,
    codec_for,
    parse_registration,
)

__all__ = ["AgentRound", "AgentTarget", "Kind", "agent_target", "measure_round"]

Kind = Literal["plain", "async", "streams"]

#: One request in so many is for a URI that the agent blocks.
BLOCK_EVERY = 64
TIMEOUT_S = 30.0
_CODEC = codec_for(Dialect.SDK)


class AgentRound(msgspec.Struct, frozen=True):
    """One round; CPU is the agent's, as the kernel accounts for it. Latencies include the proxy's own work."""

    agent: str
    in_flight: int
    requests: int
    per_s: float
    cpu_us: float
    busy: float
    p50_us: float
    p99_us: float


class AgentTarget:
    """A registered agent, and the proxy's end of its connection."""

    def __init__(self, name: str, child: Child, sock: socket.socket) -> None:
        self.name = name
        self.child = child
        self.sock = sock
        self.decoder = FrameDecoder()
        self.first_id = 1

    @property
    def decisions(self) -> int:
        """What the agent itself counted. Raises `ChildError`."""
        return int(self.child.ask("count", TIMEOUT_S))


@contextlib.contextmanager
def agent_target(directory: Path, kind: Kind, loop: Literal["asyncio", "uvloop"]) -> Iterator[AgentTarget]:
    """An agent of this kind, registered here, ended on leaving."""
    name = f"{'streams' if kind == 'streams' else 'dialout, ' + kind + ' hook'}, {loop}"
    path = directory / f"{kind}-{loop}.sock"
    command = [sys.executable, "-m", "bench.agent_target", "--kind", kind, "--loop", loop, "--connect", str(path)]
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        server.settimeout(TIMEOUT_S)
        with Child.start(name, command) as child:
            sock, _ = server.accept()
            with sock:
                sock.settimeout(TIMEOUT_S)
                target = AgentTarget(name, child, sock)
                registration = parse_registration(*_read(target)[0])
                answer_type = registration.answer_type
                sock.sendall(acceptance_frame(answer_type, "bench-conn-1", proxy_id="bench", proxy_version="1"))
                yield target


def measure_round(target: AgentTarget, requests: int, in_flight: int) -> AgentRound:
    """Send `requests` events, so many unanswered at any moment, and check every answer."""
    frames, answers = _prepare(target.first_id, requests)
    target.first_id += requests
    try:
        decisions = target.decisions
        cpu = cpu_ns([target.child.pid])
        begin = time.perf_counter_ns()
        latencies, wrong = _exchange(target, frames, answers, in_flight)
        seconds = (time.perf_counter_ns() - begin) / 1e9
        cpu = cpu_ns([target.child.pid]) - cpu
        decisions = target.decisions - decisions
    except (OSError, ChildError) as failed:
        raise NotMeasuredError(f"{target.name}: {failed}") from failed
    if wrong or answers or decisions != requests:
        raise NotMeasuredError(
            f"{target.name}: {wrong} answers were other ones, {len(answers)} of {requests} are missing, "
            f"the agent counted {decisions}"
        )
    latencies.sort()
    return AgentRound(
        agent=target.name,
        in_flight=in_flight,
        requests=requests,
        per_s=requests / seconds,
        cpu_us=cpu / 1e3 / requests,
        busy=cpu / 1e9 / seconds,
        p50_us=latencies[len(latencies) // 2] / 1e3,
        p99_us=latencies[len(latencies) * 99 // 100] / 1e3,
    )


def _prepare(first: int, count: int) -> tuple[list[bytes], dict[bytes, int]]:
    """The frames of a round, and the payloads that answer them, each with its place in the order."""
    frames, answers = [], {}
    for place in range(count):
        event = SAMPLES[place % len(SAMPLES)].event
        blocked = place % BLOCK_EVERY == 0
        if blocked:
            event = RequestHeaders(event.method, f"/admin{event.uri}", event.headers, metadata=event.metadata)
        number = first + place
        frames.append(_CODEC.encode_event(event, request_id=number, correlation_id="", now=""))
        decision = Decision.block(403) if blocked else ALLOWED
        answers[_CODEC.encode_answer(decision, request_id=number)[5:]] = place
    return frames, answers


def _exchange(
    target: AgentTarget, frames: list[bytes], answers: dict[bytes, int], in_flight: int
) -> tuple[list[int], int]:
    """Play a round: takes each answer out of `answers`; returns latencies in ns, and how many were none of them."""
    sent_at = [0] * len(frames)
    latencies: list[int] = []
    wrong = 0

    def send(begin: int, end: int) -> int:
        now = time.perf_counter_ns()
        sent_at[begin:end] = [now] * (end - begin)
        target.sock.sendall(b"".join(frames[begin:end]))
        return end

    sent = send(0, min(in_flight, len(frames)))
    while len(latencies) + wrong < len(frames):
        got = _read(target)
        now = time.perf_counter_ns()
        before = len(latencies)
        for _, payload in got:
            place = answers.pop(payload, None)
            if place is None:
                wrong += 1
            else:
                latencies.append(now - sent_at[place])
        done = len(latencies) - before
        if done and sent < len(frames):
            sent = send(sent, min(sent + done, len(frames)))
    return latencies, wrong


def _read(target: AgentTarget) -> list[tuple[int, bytes]]:
    """The next frames, pings left out."""
    while True:
        data = target.sock.recv(256 * 1024)
        if not data:
            raise ConnectionError("the agent closed its connection")
        ping = Dialect.SDK.ping_type
        if frames := [frame for frame in target.decoder.feed(data) if frame[0] != ping]:
            return frames
