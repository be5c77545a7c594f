"""The steps of a drain: read all events that the proxy has sent, and finish the events in flight."""

import asyncio
from collections.abc import Callable
from typing import Any, Final

from dialout.agent.serving import Serving
from dialout.codec import Codec

__all__ = ["all_read", "until_idle"]

_PONG_WAIT: Final = 0.5
"""Seconds to wait for the pong of a drain from a proxy that has not answered a ping before."""

_ASKED_WAIT: Final = 5.0
"""Seconds to wait for the rest of a requested body. Not every proxy says that it will not come."""

_LOOK_AGAIN: Final = 0.25
"""Seconds between checks for requested bodies."""


async def all_read(
    serving: Serving,
    codec: Codec,
    send: Callable[[bytes], None],
    sequence: int,
    closed: "asyncio.Future[None]",
    limit: float,
) -> None:
    """Tell the proxy that the agent drains, and wait until all events that it sent before it knew were read.

    The pong comes after all of these events. ``closed`` is done when the connection is over. ``limit`` is in seconds.
    """
    loop = asyncio.get_running_loop()
    ponged: asyncio.Future[None] = loop.create_future()
    timestamp_ms = int(loop.time() * 1000) + 1
    mark = codec.ping_mark(sequence=sequence, timestamp_ms=timestamp_ms)

    def on_pong(found: int | None) -> None:
        if found == mark and not ponged.done():
            ponged.set_result(None)

    serving.on_pong = on_pong
    send(codec.encode_ping(sequence=sequence, timestamp_ms=timestamp_ms, draining=True))
    limit = limit if serving.ponged else min(limit, _PONG_WAIT)
    await asyncio.wait({ponged, closed}, timeout=limit, return_when=asyncio.FIRST_COMPLETED)


async def until_idle(serving: Serving, closed: "asyncio.Future[None]", limit: float) -> bool:
    """Wait for ``limit`` seconds at most until nothing is in flight; returns whether that is so at the end."""
    loop = asyncio.get_running_loop()
    begin = loop.time()
    idle = asyncio.ensure_future(serving.idle())
    both: set[asyncio.Future[Any]] = {idle, closed}
    try:
        while not idle.done() and not closed.done():
            gone = loop.time() - begin
            if gone >= limit or (gone >= _ASKED_WAIT and not serving.in_flight):
                break
            wait = min(limit - gone, _LOOK_AGAIN)
            await asyncio.wait(both, timeout=wait, return_when=asyncio.FIRST_COMPLETED)
        return idle.done() or not serving.in_flight
    finally:
        idle.cancel()
