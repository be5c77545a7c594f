"""An agent in one page: it dials out, registers, and decides about requests.

    python examples/agent.py /run/shardgate/agents.sock demo-agent

It blocks whatever asks for /admin and allows the rest. A lost connection is dialled again, with a delay that doubles up
to a minute, and a refusal waits as long as it says. Needs nothing but dialout.
"""

import asyncio
import contextlib
import random
import sys

from dialout import (
    ALLOWED,
    Block,
    Capabilities,
    Decision,
    Dialect,
    Event,
    FrameDecoder,
    Ping,
    RegistrationRequest,
    RequestHeaders,
    codec_for,
    parse_registration_response,
    pong_for,
)

DIALECT = Dialect.SDK


def decide(event: object) -> Decision:
    """Say what becomes of an event."""
    if isinstance(event, RequestHeaders) and event.uri.startswith("/admin"):
        return Decision(Block(403, "not for you"))
    return ALLOWED


async def serve(path: str, agent_id: str) -> float:
    """Register and serve until the connection ends; returns the seconds to wait before dialling again."""
    reader, writer = await asyncio.open_unix_connection(path)
    codec, decoder = codec_for(DIALECT), FrameDecoder()
    with contextlib.closing(writer):
        capabilities = Capabilities(events=int(Event.REQUEST_HEADERS))
        writer.write(RegistrationRequest(agent_id=agent_id, capabilities=capabilities).encode(DIALECT))
        frames: list[tuple[int, bytes]] = []
        registered = False
        while True:
            while not frames:
                data = await reader.read(65536)
                if not data:
                    return 0.0
                frames = decoder.feed(data)
            frame_type, payload = frames.pop(0)
            if not registered:
                answer = parse_registration_response(frame_type, payload)
                if not answer.accepted:
                    print(f"refused: {answer.error}", file=sys.stderr)
                    return (answer.retry_after_ms or 5000) / 1000
                registered = True
                print(f"registered as {answer.assigned_id}", flush=True)
                continue
            request_id, correlation_id, event = codec.decode_event(frame_type, payload)
            if isinstance(event, Ping):
                writer.write(pong_for(DIALECT, frame_type, payload) or b"")
            elif hasattr(event, "flag"):
                answer_frame = codec.encode_answer(decide(event), request_id=request_id, correlation_id=correlation_id)
                writer.write(answer_frame)
            await writer.drain()


async def main(path: str, agent_id: str) -> None:
    """Dial, and dial again."""
    delay = 1.0
    while True:
        try:
            wait = await serve(path, agent_id)
            delay = 1.0
        except OSError as error:
            print(f"cannot reach {path}: {error.strerror}", file=sys.stderr)
            wait, delay = delay, min(delay * 2, 60.0)
        # All agents of a host lose their connections at the same moment: they should not all come back at the same.
        await asyncio.sleep(wait * random.uniform(0.5, 1.0))  # noqa: S311 - spreads load, hides nothing


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(*sys.argv[1:]))
