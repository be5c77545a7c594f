"""The orderly end of a shard: it accepts no more connections, and closes each one when it is idle."""

import asyncio
from collections.abc import Callable

from dialout import awake
from ipc.events import CloseCode
from shards.pool import AgentPool

DRAIN_LIMIT = 10.0
"""Seconds after which requests in flight are given up."""

TICK = 0.02
"""Seconds between checks for requests in flight."""


class Drain:
    """Empties *pool*, then calls *on_empty* with the time (`dialout.awake`) by which the shard should have ended.

    Requests that begin meanwhile find no agent in this shard, and go to another one.
    """

    def __init__(self, pool: AgentPool, on_empty: Callable[[float], None]) -> None:
        self._pool = pool
        self._on_empty = on_empty
        self._loop = asyncio.get_running_loop()
        self._clock = awake.clock()
        self._timer: asyncio.Handle | None = None
        self._deadline = 0.0

    @property
    def has_begun(self) -> bool:
        """Whether `begin` was called."""
        return self._timer is not None

    def begin(self) -> None:
        """Empty the pool from now on."""
        self._pool.draining = True
        self._deadline = self._clock.time() + DRAIN_LIMIT
        self._turn()

    def close(self) -> None:
        """Stop. The owner of the pool closes the remaining connections."""
        if self._timer is not None:
            self._timer.cancel()

    def _turn(self) -> None:
        for connection in list(self._pool.connections.values()):
            if connection.is_idle:
                connection.close(CloseCode.SHARD_DRAINED, "the shard drains")
        if not self._pool.connections or self._clock.time() >= self._deadline:
            self._timer = self._loop.call_soon(self._on_empty, self._deadline)
        else:
            self._timer = self._loop.call_later(TICK, self._turn)
