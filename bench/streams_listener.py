"""The comparison: a reverse-connection listener as one would write it with asyncio streams, in one process.

It does the same handshake: one registration frame under a timeout, version, agent id and a limit per agent
checked, the answer written, then frames read until the agent leaves. One task and one pair of streams for
each connection, nothing tuned but the backlog and the descriptor limit, without which it could not be measured.

    python -m bench.streams_listener --loop asyncio|uvloop --uds PATH

It prints READY when it listens, and answers each line `count` on stdin with one JSON object,
`{"connections": 3, "agents": 1, "accepted_total": 8}`. It ends when stdin does.
"""

import argparse
import asyncio
import re
import resource
import sys
from pathlib import Path

import msgspec
import uvloop

REGISTRATION, REGISTRATION_ACK = 0x03, 0x04
MAX_REGISTRATION_BYTES = 64 * 1024
MAX_FRAME_BYTES = 16 * 1024 * 1024
HANDSHAKE_TIMEOUT_S = 10.0
BACKLOG = 1024
AGENT_ID = re.compile(r"[A-Za-z0-9._:@-]{1,128}")


class Registration(msgspec.Struct):
    """What an agent says of itself, as far as this listener looks at it."""

    protocol_version: int
    agent_id: str


class Answer(msgspec.Struct, omit_defaults=True):
    """The answer to a registration, in the form that agents of every dialect can read."""

    accepted: bool
    success: bool
    proxy_id: str
    proxy_version: str
    connection_id: str
    assigned_id: str = ""
    error: str = ""


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
                body = msgspec.json.encode(answer)
                writer.write((len(body) + 1).to_bytes(4) + bytes([REGISTRATION_ACK]) + body)
                await writer.drain()
            while agent_id:
                await read_frame(reader, MAX_FRAME_BYTES)
        except (asyncio.IncompleteReadError, OSError, TimeoutError, ValueError, msgspec.MsgspecError):
            pass  # whatever the agent did, its connection is over
        finally:
            if agent_id:
                self._leave(agent_id)
            writer.close()

    def _admit(self, kind: int, payload: bytes) -> tuple[Answer, str]:
        """The answer to a registration, and the agent's id, counted, when it is an acceptance."""
        registration = msgspec.json.decode(payload, type=Registration)
        agent_id = registration.agent_id
        owned = self._per_agent.get(agent_id, 0)
        if kind != REGISTRATION:
            error = "expected a registration"
        elif registration.protocol_version != 2:
            error = "unsupported protocol version"
        elif not AGENT_ID.fullmatch(agent_id):
            error = "invalid agent id"
        elif owned >= self._limit:
            error = "too many connections"
        else:
            self._per_agent[agent_id] = owned + 1
            self._accepted_total += 1
            name = f"{agent_id}-{self._accepted_total}"
            return Answer(True, True, "streams", "1", connection_id=name, assigned_id=name), agent_id
        return Answer(False, False, "streams", "1", connection_id="", error=error), ""

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
