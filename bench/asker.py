"""A proxy that asks agents without a pause, through `dialout.PoolClient`, and keeps account of what came back.

    python -m bench.asker --runtime-dir PATH --agents N --in-flight M [--pause SECONDS]

So many tasks ask, each one request after the other: most of one event, some that take the agent a while, some with a
body in several chunks. Every answer must name the event that it answers. Times in reports are seconds of
CLOCK_MONOTONIC.
"""

import argparse
import asyncio
import random
import time
from pathlib import Path

import msgspec
import uvloop

from bench.conversation import converse
from dialout import Allow, RequestBodyChunk, RequestHeaders
from dialout.proxy.errors import PoolError
from dialout.proxy.pool_client import PoolClient
from dialout.proxy.pool_response import Response

__all__ = ["AskerReport", "Failed"]

MOST_TOLD = 20_000
TIMEOUT_S = 10.0


class Failed(msgspec.Struct, array_like=True, frozen=True):
    """A request without an answer of its own; it took *seconds*, until *at*."""

    at: float
    seconds: float
    agent_id: str
    code: str
    retry_safe: bool
    shard: int | None
    message: str


class AskerReport(msgspec.Struct, kw_only=True):
    """What came back since the last report. *wrong* are answers to another request; they must never be."""

    answered: int
    relayed: int
    failed: list[Failed]
    wrong: list[str]
    p50_ms: float
    p99_ms: float
    longest_ms: float


class Asker:
    """The tasks, and their account."""

    def __init__(self, client: PoolClient, agents: int, pause_s: float) -> None:
        self._client = client
        self._agents = agents
        self._pause_s = pause_s
        self._number = 0
        self._in_flight: dict[int, float] = {}
        self._clear()

    def _clear(self) -> None:
        self._times: list[float] = []
        self._relayed = 0
        self._failed: list[Failed] = []
        self._wrong: list[str] = []

    def report(self) -> AskerReport:
        """What has come back since the last report."""
        times = sorted(self._times) or [0.0]
        report = AskerReport(
            answered=len(self._times),
            relayed=self._relayed,
            failed=self._failed[:MOST_TOLD],
            wrong=self._wrong,
            p50_ms=times[len(times) // 2] * 1000,
            p99_ms=times[len(times) * 99 // 100] * 1000,
            longest_ms=times[-1] * 1000,
        )
        self._clear()
        return report

    def oldest(self) -> float | None:
        """When the oldest request without an end began; None when there is none."""
        return next(iter(self._in_flight.values()), None)

    async def work(self) -> None:
        """Ask, for ever."""
        await asyncio.sleep(random.uniform(0, self._pause_s))
        while True:
            await self._ask()
            await asyncio.sleep(self._pause_s)

    async def _ask(self) -> None:
        self._number += 1
        number = self._number
        agent_id = f"agent-{random.randrange(self._agents)}"
        kind = random.random()
        self._in_flight[number] = began = time.monotonic()
        try:
            if kind < 0.1:
                await self._with_body(agent_id, f"/body/{number}")
            else:
                uri = f"/slow/{number}" if kind < 0.15 else f"/{number}"
                event = RequestHeaders("GET", uri, {"host": ["a.example"]})
                self._check(uri, await self._client.send_request_headers(agent_id, event, TIMEOUT_S))
        except PoolError as error:
            now = time.monotonic()
            failed = Failed(now, now - began, agent_id, str(error.code), error.retry_safe, error.shard, str(error))
            self._failed.append(failed)
        else:
            self._times.append(time.monotonic() - began)
        finally:
            del self._in_flight[number]

    async def _with_body(self, agent_id: str, uri: str) -> None:
        async with self._client.exchange(agent_id) as exchange:
            event = RequestHeaders("POST", uri, {"host": ["a.example"]}, has_body=True)
            self._check(uri, await exchange.request_headers(event, TIMEOUT_S))
            for index in range(3):
                tag = f"{uri}#{index}"
                chunk = RequestBodyChunk(index, tag.encode(), index == 2)
                self._check(tag, await exchange.request_body_chunk(chunk, TIMEOUT_S))

    def _check(self, tag: str, response: Response) -> None:
        self._relayed += response.relayed
        value = response.request_headers[0].value if response.request_headers else None
        if type(response.verdict) is not Allow or value != tag:
            self._wrong.append(f"{tag} got {response.verdict} for {value} of {response.connection_id}")


async def serve(options: argparse.Namespace) -> None:
    """Ask until stdin ends."""
    async with PoolClient(options.runtime_dir, client_name="asker") as client:
        asker = Asker(client, options.agents, options.pause)
        tasks = [asyncio.create_task(asker.work()) for _ in range(options.in_flight)]
        await converse({"report": asker.report, "oldest": asker.oldest})
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def main() -> None:
    """Command line, see the module's docstring."""
    parser = argparse.ArgumentParser(description="A proxy that asks without a pause.")
    parser.add_argument("--runtime-dir", type=Path, required=True)
    parser.add_argument("--agents", type=int, required=True)
    parser.add_argument("--in-flight", type=int, default=16)
    parser.add_argument("--pause", type=float, default=0.02, help="seconds between a task's requests")
    options = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(options))


if __name__ == "__main__":
    main()
