"""What drives every path of the dispatch benchmark alike: N requests in flight, each answer followed by the next one.

A driver is a child process that answers lines on stdin, see `converse`:

    run COUNT IN_FLIGHT    makes that many requests, then answers "done"
    report                 answers with the `Report` of the last run, as JSON

Two questions, so that the CPU for sorting latencies is not counted as the path's own.
"""

import array
import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec

from dialout import Allow, Decision, RequestHeaders, RequestMetadata

__all__ = ["AGENT_ID", "SAMPLES", "NotTheAnswerError", "Report", "Run", "Sample", "converse", "echo_in", "run_tasks"]

#: The load generator's first agent; it owns all connections of a target.
AGENT_ID = "bench-0"

#: One request in so many asks the agent for its URI back, so that an answer to another request would show.
ECHO_EVERY = 64
#: Requests that a run takes turns with: far more than are in flight, so that no two of those are alike.
VARIETY = 1024
#: A run that is not over by then is one whose answers are missing.
RUN_TIMEOUT_S = 90.0

_Answer = TypeVar("_Answer")


class NotTheAnswerError(Exception):
    """An answer that is no allow, or that belongs to another request."""


class Sample(msgspec.Struct, frozen=True):
    """A request, and the URI that its answer must carry; None where it must be a bare allow."""

    event: RequestHeaders
    echo: str | None


def _sample(number: int) -> Sample:
    """What a proxy sends for a small GET: 0.5 KB on the wire."""
    echo = number % ECHO_EVERY == 0
    uri = f"/{'echo' if echo else 'api'}/items/{number}?page=2"
    headers = {
        "host": ["api.example.com"],
        "user-agent": ["curl/8.5.0"],
        "accept": ["application/json"],
        "cookie": ["session=0123456789abcdef"],
    }
    metadata = RequestMetadata(
        correlation_id=f"request-{number}",
        client_ip="203.0.113.7",
        client_port=54321,
        protocol="HTTP/2",
        server_name="api.example.com",
        tls_version="TLSv1.3",
        route_id="api",
        upstream_id="backend",
    )
    return Sample(RequestHeaders("GET", uri, headers, has_body=False, metadata=metadata), uri if echo else None)


SAMPLES = [_sample(number) for number in range(VARIETY)]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """A run: requests that got their own answer, and those that did not, with what the first one got."""

    answered: int
    echoes: int
    failures: int
    first_failure: str | None
    seconds: float
    p50_us: float
    p99_us: float
    max_us: float
    #: Connections that the path has when it is over.
    connections: int


class Run:
    """`count` requests, handed out one by one; each is settled or failed once."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._begun = 0
        self._latencies_ns = array.array("Q")
        self._echoes = 0
        self._failures: list[str] = []
        self._started_ns = time.perf_counter_ns()
        self._seconds = 0.0

    def take(self) -> Sample | None:
        """The next request, or None when all have been handed out."""
        number = self._begun
        if number >= self._count:
            return None
        self._begun = number + 1
        return SAMPLES[number % VARIETY]

    def settle(self, sample: Sample, started_ns: int, echo: str | None) -> None:
        """Take the allow that answers `sample`, with the URI that came with it."""
        self._latencies_ns.append(time.perf_counter_ns() - started_ns)
        if echo is not None:
            self._echoes += 1
        if echo != sample.echo:
            self.fail(f"the request for {sample.event.uri} got the answer to {echo or 'one that asks for no echo'}")

    def fail(self, why: str) -> None:
        """Take note of a request without an answer of its own."""
        self._failures.append(why)

    def end(self) -> None:
        """Stop the clock; what was handed out and never settled is a failure."""
        self._seconds = (time.perf_counter_ns() - self._started_ns) / 1e9
        missing = self._count - len(self._latencies_ns) - len(self._failures)
        if missing > 0:
            self.fail(f"{missing} requests were never answered")

    def report(self, connections: int) -> Report:
        """What came of it. Latencies run from before the request is handed over until its answer is there."""
        ordered = sorted(self._latencies_ns) or [0]
        last = len(ordered) - 1
        return Report(
            answered=len(self._latencies_ns),
            echoes=self._echoes,
            failures=len(self._failures),
            first_failure=self._failures[0] if self._failures else None,
            seconds=self._seconds,
            p50_us=ordered[last // 2] / 1e3,
            p99_us=ordered[last * 99 // 100] / 1e3,
            max_us=ordered[last] / 1e3,
            connections=connections,
        )


def echo_in(response: Decision) -> str | None:
    """The URI that an allow carries, None in a bare one. Raises `NotTheAnswerError` for everything else."""
    if type(response.verdict) is not Allow:
        raise NotTheAnswerError(f"the answer is no allow: {response.verdict}")
    return response.request_headers[0].value if response.request_headers else None


async def run_tasks(
    run: Run,
    in_flight: int,
    send: Callable[[RequestHeaders], Awaitable[_Answer]],
    read_echo: Callable[[_Answer], str | None],
) -> None:
    """Make the requests of `run` with one task for each that is in flight; a task that fails makes no more."""

    async def work() -> None:
        while (sample := run.take()) is not None:
            started_ns = time.perf_counter_ns()
            try:
                run.settle(sample, started_ns, read_echo(await send(sample.event)))
            except Exception as error:  # noqa: BLE001 - whatever it is, this request has no answer
                run.fail(f"{type(error).__name__}: {error}")
                return

    async with asyncio.TaskGroup() as tasks:
        for _ in range(in_flight):
            tasks.create_task(work())


async def converse(drive: Callable[[Run, int], Awaitable[None]], connections: Callable[[], int]) -> None:
    """Say READY, then answer questions until stdin ends. `drive` makes a run's requests, so many in flight."""
    questions = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    pipe, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(questions), sys.stdin)
    print("READY", flush=True)
    run = Run(0)
    async for line in questions:
        match line.split():
            case [b"run", count, in_flight]:
                run = Run(int(count))
                try:
                    async with asyncio.timeout(RUN_TIMEOUT_S):
                        await drive(run, int(in_flight))
                except TimeoutError:
                    pass  # what is missing is in the report
                run.end()
                print("done", flush=True)
            case [b"report"]:
                print(msgspec.json.encode(run.report(connections())).decode(), flush=True)
            case _:
                raise ValueError(f"expected `run COUNT IN_FLIGHT` or `report`, not {line!r}")
    pipe.close()
