"""Connections that an operator closes: each gets no new requests, and is closed when nothing is in flight on it."""

import asyncio

from dialout import awake
from ipc.events import CloseCode, Kick
from shards.pool import AgentPool

LOOK_AGAIN = 0.005
"""Seconds between checks of busy connections."""


class Kicks:
    """Closes connections of *pool* as ordered by the supervisor."""

    def __init__(self, pool: AgentPool) -> None:
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self._clock = awake.clock()
        self._due: dict[int, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def order(self, kick: Kick) -> None:
        """Close these connections, after the order's *seconds* at the latest.

        Connections that have closed or moved meanwhile are skipped.
        """
        due = self._clock.time() + kick.seconds
        for number in kick.numbers:
            connection = self._pool.connections.get(number)
            if connection is not None:
                connection.leave(leaving=True)
                self._due[number] = due
        if self._timer is None:
            self._look()

    def close(self) -> None:
        """Stop. The owner of the pool closes the remaining connections."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self._timer = None
        now = self._clock.time()
        for number, due in list(self._due.items()):
            connection = self._pool.connections.get(number)
            if connection is None:
                del self._due[number]
            elif due <= now or (connection.is_idle and not connection.waiting_bytes):
                del self._due[number]
                connection.close(CloseCode.KICKED, "kicked by an operator")
        if self._due:
            self._timer = self._loop.call_later(LOOK_AGAIN, self._look)
