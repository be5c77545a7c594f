"""An agent under measurement, in a process of its own: it blocks ``/admin`` and allows the rest.

    python -m bench.agent_target --kind plain|async|streams --loop asyncio|uvloop --connect PATH

``plain`` and ``async`` are dialout's agents with a hook of that kind. ``streams`` is what one would write by hand with
asyncio streams and dialout's codec: a loop that reads a frame, decodes it, decides, writes the answer and drains. It
has no cancels, no answer for a hook that fails, no reports, and serves one request at a time. Each line on stdin is
answered with the number of decisions so far.
"""

import argparse
import asyncio
import sys
import threading
from typing import Any

import uvloop

from bench.streams_listener import MAX_FRAME_BYTES, read_frame
from dialout import (
    Agent,
    Capabilities,
    Decision,
    Dialect,
    RegistrationRequest,
    RequestHeaders,
    codec_for,
    connect_to_proxy,
)

AGENT_ID = "bench-agent"


class _Count:
    decisions = 0


def _decide(event: Any) -> Decision:
    _Count.decisions += 1
    return Decision.block(403) if event.uri.startswith("/admin") else Decision.allow()


def _agent(kind: str) -> Agent:
    agent = Agent(max_concurrent_requests=10_000)
    if kind == "plain":

        @agent.hook
        def on_request_headers(event: RequestHeaders) -> Decision:
            return _decide(event)

    else:

        async def decide(event: RequestHeaders) -> Decision:
            return _decide(event)

        decide.__name__ = "on_request_headers"
        agent.hook(decide)
    return agent


async def run_dialout(kind: str, address: str) -> None:
    """Serve one connection with dialout's agent."""
    agent = _agent(kind)
    connection = await connect_to_proxy(address, AGENT_ID, agent.capabilities)
    await connection.serve(agent)


async def run_streams(address: str) -> None:
    """Serve one connection by hand."""
    codec = codec_for(Dialect.SDK)
    reader, writer = await asyncio.open_unix_connection(address)
    writer.write(RegistrationRequest(agent_id=AGENT_ID, capabilities=Capabilities()).encode(Dialect.SDK))
    await read_frame(reader, MAX_FRAME_BYTES)
    try:
        while True:
            request_id, correlation_id, event = codec.decode_event(*await read_frame(reader, MAX_FRAME_BYTES))
            if isinstance(event, RequestHeaders):
                decision = _decide(event)
                writer.write(codec.encode_answer(decision, request_id=request_id, correlation_id=correlation_id))
                await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


def _answer_questions() -> None:
    for _ in sys.stdin:
        print(_Count.decisions, flush=True)


def main() -> None:
    """Command line, see the module's docstring."""
    parser = argparse.ArgumentParser(description="An agent under measurement.")
    parser.add_argument("--kind", choices=("plain", "async", "streams"), required=True)
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), required=True)
    parser.add_argument("--connect", required=True, help="Unix socket of the proxy")
    options = parser.parse_args()
    threading.Thread(target=_answer_questions, daemon=True).start()
    factory = uvloop.new_event_loop if options.loop == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        if options.kind == "streams":
            runner.run(run_streams(options.connect))
        else:
            runner.run(run_dialout(options.kind, options.connect))


if __name__ == "__main__":
    main()
