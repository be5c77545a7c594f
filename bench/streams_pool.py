"""The comparison: a pool of agents' connections as one would write it with asyncio streams, in one process.

It does for the same requests what the product's pool does in the simplest case: choose the connection with the fewest
in flight, write the event, find the request that an answer names, give up after 30 s. A StreamReader, a StreamWriter
and a reading task for each connection, a future and a timeout for each request; JSON by msgspec on both sides, so that
the difference is not that of two JSON libraries. It has no dialects, no health, no breaker, no cancel, no back-pressure
but the writer's own.

    python -m bench.streams_pool --loop asyncio|uvloop --uds PATH

See `bench.closed_loop` for the questions that it answers.
"""

import argparse
import asyncio
import itertools
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from bench.closed_loop import NotTheAnswerError, Run, converse, run_tasks
from bench.streams_listener import MAX_FRAME_BYTES, MAX_REGISTRATION_BYTES, read_frame
from dialout import RequestHeaders, acceptance_frame

REQUEST_HEADERS, DECISION = 0x10, 0x20
REQUEST_TIMEOUT_S = 30.0


class HeaderChange(msgspec.Struct):
    """A header that the agent sets."""

    operation: str
    name: str
    value: str | None = None


class Decision(msgspec.Struct):
    """An agent's answer, as far as this pool looks at it."""

    request_id: int
    decision: str | dict[str, Any]
    request_headers: list[HeaderChange] = []


class _Connection:
    """One agent's connection: its writer, and the requests that have no answer yet."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        self.waiting: dict[int, asyncio.Future[Decision]] = {}


class StreamsPool:
    """The connections of one agent."""

    def __init__(self) -> None:
        self.connections: list[_Connection] = []
        self._ids = itertools.count(1)
        self._decode = msgspec.json.Decoder(Decision).decode

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, from its registration to its end."""
        connection = _Connection(writer)
        try:
            await read_frame(reader, MAX_REGISTRATION_BYTES)
            name = f"streams-{len(self.connections)}"
            writer.write(acceptance_frame(0x04, name, proxy_id="streams", proxy_version="1"))
            await writer.drain()
            self.connections.append(connection)
            while True:
                kind, payload = await read_frame(reader, MAX_FRAME_BYTES)
                if kind == DECISION:
                    decision = self._decode(payload)
                    waiting = connection.waiting.pop(decision.request_id)
                    if not waiting.done():
                        waiting.set_result(decision)
        except (asyncio.IncompleteReadError, OSError, ValueError, KeyError, msgspec.MsgspecError) as ended:
            for waiting in connection.waiting.values():
                if not waiting.done():
                    waiting.set_exception(ConnectionError(f"the connection was lost: {ended}"))
        finally:
            if connection in self.connections:
                self.connections.remove(connection)
            writer.close()

    async def request(self, event: RequestHeaders) -> Decision:
        """Send an event and wait for the answer to it."""
        connection = min(self.connections, key=lambda c: len(c.waiting))
        request_id = next(self._ids)
        answer: asyncio.Future[Decision] = asyncio.get_running_loop().create_future()
        connection.waiting[request_id] = answer
        fields = {"request_id": request_id, **msgspec.structs.asdict(event)}
        connection.writer.write(_frame(REQUEST_HEADERS, fields))
        await connection.writer.drain()
        async with asyncio.timeout(REQUEST_TIMEOUT_S):
            return await answer


def _frame(kind: int, payload: object) -> bytes:
    body = msgspec.json.encode(payload)
    return (len(body) + 1).to_bytes(4) + bytes([kind]) + body


def read_echo(decision: Decision) -> str | None:
    """The URI that an allow carries, None in a bare one. Raises `NotTheAnswerError` for everything else."""
    if decision.decision != "allow":
        raise NotTheAnswerError(f"the answer is no allow: {decision.decision}")
    return decision.request_headers[0].value if decision.request_headers else None


async def run(uds: Path) -> None:
    """Listen on `uds` and answer questions on stdin until its end."""
    pool = StreamsPool()
    server = await asyncio.start_unix_server(pool.serve, uds)

    async def drive(this: Run, in_flight: int) -> None:
        await run_tasks(this, in_flight, pool.request, read_echo)

    await converse(drive, lambda: len(pool.connections))
    server.close()


def main() -> None:
    """Command line, see the module's docstring."""
    parser = argparse.ArgumentParser(description="Plain asyncio-streams pool, for comparison.")
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), required=True)
    parser.add_argument("--uds", type=Path, required=True, help="Unix socket to listen on")
    options = parser.parse_args()
    factory = uvloop.new_event_loop if options.loop == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(run(options.uds))


if __name__ == "__main__":
    main()
