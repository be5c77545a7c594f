"""Connections that move to another shard: this shard's part of it, until their descriptors are with the supervisor."""

import asyncio
from collections.abc import Callable

from dialout import awake
from ipc.messages import BATCH_BYTES, MAX_BATCH, MoveOut, Moving, Offer
from ipc.tickets import leave_ticket
from shards.connection import Connection
from shards.pool import AgentPool

LOOK_AGAIN = 0.002
"""Seconds between looks at connections that are busy. An answer takes an agent about as long."""


class _Leaving:
    """A connection that is to move, until it is idle; *due* is when its time is up (`dialout.awake`)."""

    __slots__ = ("connection", "due", "force")

    def __init__(self, connection: Connection, due: float, *, force: bool) -> None:
        self.connection = connection
        self.due = due
        self.force = force


class Departures:
    """Lets connections go, each as soon as nothing is in flight on it.

    *send* sends a Moving with its descriptors, False when the supervisor takes no more now; *hold* gets each connection
    that was sent, which nobody may touch until the supervisor has decided; *stay* is told of those that do not move.
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
        """Take no more requests on these connections, and let them go."""
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
        """Let nobody go any more: who was not sent yet is served on."""
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
        """Send those that are idle, as far as the supervisor takes them; the rest stays in the pool until it does."""
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
