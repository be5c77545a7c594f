"""Move connections from one shard to another: orders, and the result for each connection.

An `Order` names connections of one shard. The shard is asked for a few of them at a time. Each connection that it lets
go of arrives here with its descriptor. In the ledger the connection keeps its slot and is on no shard. It goes through
`Handoffs` like a new connection. When no other shard takes it, it goes back to its old shard, which still holds it.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from itertools import islice

from dialout import awake
from ipc.handoff import close_all
from ipc.histogram import Histogram
from ipc.logs import get_logger
from ipc.messages import MoveOut, Moving, Staying
from supervisor.handoffs import Handoffs
from supervisor.ledger import Ledger
from supervisor.newcomer import Mover

WINDOW = 256
"""Most connections of one order that are asked for and not decided. This process holds their descriptors briefly."""

MOVER_LIMIT = 2.0
"""Seconds within which another shard must take a connection, before it goes back. No shard serves it meanwhile."""

ASK_AGAIN = 0.05
"""Seconds until connections are asked for again, after there was no room here or in the channel."""

ANSWER_LIMIT = 5.0
"""Seconds after an order's deadline until an unresponsive shard is not waited for any more."""


class Order:
    """Connections that *shard* must let go of before *deadline*.

    *done* is set when each connection has *moved* or *stayed*, or is *gone* with its shard. A connection stays when it
    was busy for too long, no shard took it, or it was closed meanwhile. *seconds* has, for each moved connection, the
    time without a shard.
    """

    def __init__(self, shard: int, numbers: Iterable[int], deadline: float, *, force: bool) -> None:
        self.shard = shard
        self.deadline = deadline
        self.force = force
        self.queue: deque[int] = deque(numbers)
        self.asked: dict[int, float] = {}
        self.moved = 0
        self.gone = 0
        self.stayed: set[int] = set()
        self.seconds: list[float] = []
        self.done = asyncio.Event()


class Moves:
    """All orders that are not done. *handoffs* reports the shard of each connection under way.

    *room* returns how many more agents' descriptors this process may hold.
    """

    def __init__(self, ledger: Ledger, handoffs: Handoffs, room: Callable[[], int]) -> None:
        self._room = room
        self._ledger = ledger
        self._handoffs = handoffs
        self._loop = asyncio.get_running_loop()
        self._clock = awake.clock()
        self._log = get_logger()
        self._orders: set[Order] = set()
        self._by_number: dict[int, Order] = {}
        self._wanted: dict[int, int] = {}
        self.under_way: dict[int, Mover] = {}
        """Connections between two shards, by number: one has let go of them, and no other serves them. Read only."""
        self.seconds = Histogram()
        """The time without a shard, for each moved connection."""
        self._timer: asyncio.TimerHandle | None = None
        self.on_moved: Callable[[Mover, int | None], None] | None = None
        """Called with each connection that was under way and the shard that serves it now, None when it was lost."""
        self.on_recalled: Callable[[int, int], None] | None = None
        """Called with a shard and the number of each connection that it has let go of."""
        handoffs.on_moved = self._moved

    def order(
        self,
        shard: int,
        numbers: Iterable[int],
        seconds: float,
        *,
        force: bool = False,
        wanted: Mapping[int, int] | None = None,
    ) -> Order:
        """Have *shard* let these connections go within *seconds*. *wanted* maps connections to their new shards.

        With *force* connections that are busy until then move nevertheless, and their requests in flight fail.
        """
        order = Order(shard, numbers, self._clock.time() + seconds, force=force)
        self._orders.add(order)
        self._wanted.update(wanted or {})
        self._go_on(order)
        return order

    # What shards say.

    def let_go(self, shard: int, message: Moving, descriptors: list[int]) -> None:
        """Take connections that a shard has let go of, and offer them to other shards."""
        if len(descriptors) != len(message.offers):
            self._log.warning("out of descriptors, connections do not move", shard=shard, n=len(message.offers))
            close_all(descriptors)
            for offer in message.offers:
                self._handoffs.commit_found(shard, offer.number)
                self._decided(offer.number, stayed=True)
            return
        deadline = self._clock.time() + MOVER_LIMIT
        for offer, fd in zip(message.offers, descriptors, strict=True):
            if self._ledger.recall(offer.agent_id, offer.number, shard):
                if self.on_recalled is not None:
                    self.on_recalled(shard, offer.number)
                wanted = self._wanted.pop(offer.number, None)
                mover = self.under_way[offer.number] = Mover(fd, offer, shard, wanted, deadline)
                self._handoffs.offer(mover)
            else:
                # The ledger does not have it on this shard. It stays. The counts differ, so a snapshot corrects that.
                close_all([fd])
                self._handoffs.commit_found(shard, offer.number)
                self._decided(offer.number, stayed=True)

    def staying(self, message: Staying) -> None:
        """Note connections that a shard goes on serving, or that are gone."""
        for number in message.numbers:
            self._decided(number, stayed=True)

    def shard_ended(self, shard: int) -> None:
        """Note that a shard's process has ended, with all connections that it had not let go of."""
        for mover in self.under_way.values():
            if mover.came_from == shard:
                mover.came_from = None
        for order in list(self._orders):
            if order.shard == shard:
                order.gone += len(order.queue)
                order.queue.clear()
                for number in list(order.asked):
                    if number not in self.under_way:
                        self._decided(number)
                self._go_on(order)

    # The result for a connection under way.

    def _moved(self, mover: Mover, shard: int | None) -> None:
        """Note that *mover* was committed to *shard*. With None send it back to its old shard."""
        del self.under_way[mover.number]
        source = mover.came_from
        if source is not None and not self._handoffs.has_link(source):
            # The old shard has no channel. The snapshot after its next Hello shows that it holds the connection.
            source = None
        if shard is None:
            shard = self._send_back(mover, source)
        elif source is not None:
            self._handoffs.revoke_found(source, mover.number)
        self._settled(mover, shard)

    def _send_back(self, mover: Mover, source: int | None) -> int | None:
        """Have *source* serve a connection that no other shard took, or free its slot without one. Returns *source*."""
        assert mover.offer is not None
        agent_id, number = mover.offer.agent_id, mover.number
        if source is None:
            self._ledger.release(agent_id, number)
        else:
            self._ledger.place(agent_id, number, source)
            self._ledger.commit(agent_id, number)
            self._handoffs.commit_found(source, number)
        return source

    def _settled(self, mover: Mover, shard: int | None) -> None:
        """Report and count the shard that serves a connection that was under way."""
        if self.on_moved is not None:
            self.on_moved(mover, shard)
        order = self._by_number.get(mover.number)
        if order is None:
            return
        if shard is not None and shard != order.shard:
            assert mover.offer is not None
            assert mover.offer.state is not None
            order.moved += 1
            order.seconds.append(time.monotonic() - mover.offer.state.left_at)
            self.seconds.observe(order.seconds[-1])
            self._decided(mover.number)
        else:
            self._decided(mover.number, stayed=shard is not None)

    # Inside.

    def _go_on(self, order: Order) -> None:
        """Ask for the next connections of an order, and end it when there are none."""
        if order not in self._orders:
            return
        if order.queue and len(order.asked) <= WINDOW // 2:
            self._ask(order)
        if not order.asked and not order.queue:
            self._orders.discard(order)
            order.done.set()
        elif self._timer is None:
            self._timer = self._loop.call_later(1.0, self._look)

    def _ask(self, order: Order) -> None:
        now = self._clock.time()
        # Connections that were asked for and have not come will need room, too.
        room = min(WINDOW - len(order.asked), self._room() - len(self._by_number))
        if room > 0:
            numbers = list(islice(order.queue, room))
            seconds = max(0.0, order.deadline - now)
            if self._handoffs.order_out(order.shard, MoveOut(numbers, seconds, order.force)):
                for number in numbers:
                    order.queue.popleft()
                    order.asked[number] = now
                    self._by_number[number] = order
                return
        # Out of descriptors, or the channel is full or away. The end of the shard's process would end the order.
        if now >= order.deadline:
            order.stayed.update(order.queue)
            order.queue.clear()
        elif not order.asked:
            self._loop.call_later(ASK_AGAIN, self._go_on, order)

    def _decided(self, number: int, *, stayed: bool = False) -> None:
        self._wanted.pop(number, None)
        order = self._by_number.pop(number, None)
        if order is None:
            return
        del order.asked[number]
        if stayed:
            order.stayed.add(number)
        self._go_on(order)

    def _look(self) -> None:
        """Give up the orders of shards that have not answered in time."""
        self._timer = None
        now = self._clock.time()
        for order in list(self._orders):
            if now > order.deadline + ANSWER_LIMIT:
                self._log.warning("shard does not answer, its connections stay", shard=order.shard, n=len(order.asked))
                order.stayed.update(order.queue)
                order.queue.clear()
                for number in list(order.asked):
                    if number not in self.under_way:
                        self._decided(number, stayed=True)
        if self._orders:
            self._timer = self._loop.call_later(1.0, self._look)

    def close(self) -> None:
        """End all orders in their present state."""
        if self._timer is not None:
            self._timer.cancel()
        for order in self._orders:
            order.done.set()
        self._orders.clear()
        self._by_number.clear()
