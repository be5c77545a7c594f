"""The comparison: a reverse-connection listener as one would write it with asyncio streams, in one process.

It does the same handshake, with dialout's own functions: one registration frame under a timeout, read and checked, a
limit per agent, the answer written, then frames read until the agent leaves. One task and one pair of streams for each
connection, nothing tuned but the backlog and the descriptor limit, without which it could not be measured.

    python -m bench.streams_listener --loop asyncio|uvloop --uds PATH

It prints READY when it listens, and answers each line `count` on stdin with one JSON object,
`{"connections": 3, "agents": 1, "accepted_total": 8}`. It ends when stdin does.
"""

import argparse
import asyncio
import resource
import sys
from pathlib import Path

import msgspec
import uvloop

from dialout import ErrorCode, Rejection, acceptance_frame, parse_registration, rejection_frame

MAX_REGISTRATION_BYTES = 64 * 1024
MAX_FRAME_BYTES = 16 * 1024 * 1024
HANDSHAKE_TIMEOUT_S = 10.0
BACKLOG = 1024


class Count(msgspec.Struct):
    """What is in the pool now, and how many were ever accepted."""

    connections: int
    agents: int
    accepted_total: int


class StreamsListener:
    """The pool is a count per agent; a connection is in it from its acceptance to its end."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._per_agent: dict[str, int] = {}
        self._accepted_total = 0

    def count(self) -> Count:
        """What the pool holds."""
        return Count(sum(self._per_agent.values()), len(self._per_agent), self._accepted_total)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, from its first byte to its end."""
        agent_id = ""
        try:
            async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
                kind, payload = await read_frame(reader, MAX_REGISTRATION_BYTES)
                answer, agent_id = self._admit(kind, payload)
                writer.write(answer)
                await writer.drain()
            while agent_id:
                await read_frame(reader, MAX_FRAME_BYTES)
        except (asyncio.IncompleteReadError, OSError, TimeoutError, ValueError, msgspec.MsgspecError):
            pass  # whatever the agent did, its connection is over
        finally:
            if agent_id:
                self._leave(agent_id)
            writer.close()

    def _admit(self, kind: int, payload: bytes) -> tuple[bytes, str]:
        """The answer to a registration, and the agent's id, counted, when it is an acceptance."""
        try:
            registration = parse_registration(kind, payload)
        except Rejection as error:
            answer = rejection_frame(
                error.answer_type, error.message, error.error_code, proxy_id="streams", proxy_version="1"
            )
            return answer, ""
        agent_id = registration.agent_id
        owned = self._per_agent.get(agent_id, 0)
        if owned >= self._limit:
            answer = rejection_frame(
                registration.answer_type,
                "too many connections",
                ErrorCode.CONNECTION_LIMIT,
                proxy_id="streams",
                proxy_version="1",
            )
            return answer, ""
        self._per_agent[agent_id] = owned + 1
        self._accepted_total += 1
        name = f"{agent_id}-conn-{self._accepted_total}"
        answer = acceptance_frame(registration.answer_type, name, proxy_id="streams", proxy_version="1")
        return answer, agent_id

    def _leave(self, agent_id: str) -> None:
        self._per_agent[agent_id] -= 1
        if not self._per_agent[agent_id]:
            del self._per_agent[agent_id]


async def read_frame(reader: asyncio.StreamReader, limit: int) -> tuple[int, bytes]:
    """The type and payload of one frame; `ValueError` when its length is out of range."""
    length = int.from_bytes(await reader.readexactly(4))
    if not 1 <= length <= limit:
        raise ValueError(f"frame of {length} bytes")
    kind = await reader.readexactly(1)
    return kind[0], await reader.readexactly(length - 1)


async def run(uds: Path, limit: int) -> None:
    """Listens on `uds` and answers questions on stdin until its end."""
    listener = StreamsListener(limit)
    server = await asyncio.start_unix_server(listener.serve, uds, backlog=BACKLOG)
    questions = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(questions), sys.stdin)
    print("READY", flush=True)
    async for line in questions:
        if line.strip() == b"count":
            print(msgspec.json.encode(listener.count()).decode(), flush=True)
    server.close()


def main() -> None:
    """Command line, see the module's docstring."""
    parser = argparse.ArgumentParser(description="Plain asyncio-streams listener, for comparison.")
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), required=True)
    parser.add_argument("--uds", type=Path, required=True, help="Unix socket to listen on")
    parser.add_argument("--max-connections-per-agent", type=int, default=4)
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    factory = uvloop.new_event_loop if options.loop == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(run(options.uds, options.max_connections_per_agent))


if __name__ == "__main__":
    main()
