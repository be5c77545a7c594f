"""Connections that move to another shard: the old shard's part, until the supervisor has their descriptors."""

import asyncio
from collections.abc import Callable

from dialout import awake
from ipc.messages import BATCH_BYTES, MAX_BATCH, MoveOut, Moving, Offer
from ipc.tickets import leave_ticket
from shards.connection import Connection
from shards.pool import AgentPool

LOOK_AGAIN = 0.002
"""Seconds between checks of busy connections. An agent takes about as long to answer."""


class _Leaving:
    """A connection that waits to be idle before it moves. *due* is its deadline (`dialout.awake`)."""

    __slots__ = ("connection", "due", "force")

    def __init__(self, connection: Connection, due: float, *, force: bool) -> None:
        self.connection = connection
        self.due = due
        self.force = force


class Departures:
    """Hands connections to the supervisor, each as soon as nothing is in flight on it.

    *send* sends a Moving with its descriptors; it returns False while the supervisor takes no more. *hold* takes each
    sent connection, which stays untouched until the supervisor has decided. *stay* takes the numbers that do not move.
    """

    def __init__(
        self,
        pool: AgentPool,
        send: Callable[[Moving, list[int]], bool],
        hold: Callable[[Offer, int], None],
        stay: Callable[[list[int]], None],
    ) -> None:
        self._pool = pool
        self._send, self._hold, self._stay = send, hold, stay
        self._loop = asyncio.get_running_loop()
        self._clock = awake.clock()
        self._leaving: dict[int, _Leaving] = {}
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, order: MoveOut) -> None:
        """Send no more requests to these connections, and hand them over when they are idle."""
        due = self._clock.time() + order.seconds
        unknown = []
        for number in order.numbers:
            connection = self._pool.connections.get(number)
            if connection is None:
                unknown.append(number)
            else:
                connection.leave(leaving=True)
                self._leaving[number] = _Leaving(connection, due, force=order.force)
        if unknown:
            self._stay(unknown)
        self._look()

    def abandon(self) -> None:
        """Hand over no more connections. Connections that were not sent yet are served on."""
        for leaving in self._leaving.values():
            leaving.connection.leave(leaving=False)
        self._leaving.clear()
        self._stop_looking()

    def _stop_looking(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._stop_looking()
        now = self._clock.time()
        ready: list[Connection] = []
        staying: list[int] = []
        for number, leaving in self._leaving.items():
            connection = leaving.connection
            overdue = leaving.due <= now
            if connection.fd < 0:
                staying.append(number)
            elif connection.is_idle:
                ready.append(connection)
            elif overdue and leaving.force:
                connection.give_up_all("it moves to another shard, and was busy for too long")
                if connection.has_large_frame:
                    staying.append(number)
                else:
                    ready.append(connection)
            elif overdue:
                staying.append(number)
        for number in staying:
            connection = self._leaving.pop(number).connection
            if connection.fd >= 0:
                connection.leave(leaving=False)
        if staying:
            self._stay(staying)
        self._let_go(ready)
        if self._leaving:
            self._timer = self._loop.call_later(LOOK_AGAIN, self._look)

    def _let_go(self, ready: list[Connection]) -> None:
        """Send the connections in *ready*, as many as the supervisor takes.

        The others stay in the pool until the next try.
        """
        position = 0
        now = self._loop.time()
        while position < len(ready):
            offers: list[Offer] = []
            size = 0
            for connection in ready[position : position + MAX_BATCH]:
                offer = connection.as_offer(now, leave_ticket(connection.fd, connection.transport))
                size += offer.weight
                if offers and size > BATCH_BYTES:
                    break
                offers.append(offer)
            batch = ready[position : position + len(offers)]
            if not self._send(Moving(offers), [connection.fd for connection in batch]):
                return
            # Nothing has run since the offers were made, so nothing has changed.
            for offer, connection in zip(offers, batch, strict=True):
                del self._leaving[offer.number]
                self._hold(offer, self._pool.let_go(connection))
            position += len(batch)
