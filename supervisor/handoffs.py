"""Handoffs of connections to shards: offers, the shards' answers, and timeouts.

A connection goes through a `ShardLink` in three steps, each gathered per turn of the loop: *unsent* (its Prepare has
not left), *offered* (the shard has it and has not answered), *committing* (the shard holds it, the Commit has not
left). Its descriptor is closed only after the Commit has left. Until then it can be offered to another shard::

    unsent ──Prepare──► offered ──Prepared──► committing ──Commit──► done
       ▲                   │                       │
       └── another link ◄──┴── declined, timeout, shard gone

A `Mover` is a connection that another shard has let go of. It takes the same way, and `supervisor.moves` handles the
result.

`Handoffs` updates the ledger in an order that can only overcount.
"""

import asyncio
import resource
from collections import deque
from collections.abc import Callable, Mapping
from time import monotonic

from dialout import ErrorCode, Rejection, awake
from ipc.handoff import HandoffChannel
from ipc.histogram import Histogram
from ipc.logs import get_logger
from ipc.messages import (
    Commit,
    Declined,
    Entrust,
    KeptListener,
    Message,
    MoveOut,
    Prepared,
    entrusting,
)
from supervisor.config.model import Placement
from supervisor.ledger import Ledger
from supervisor.links import ShardLink
from supervisor.newcomer import Mover, Newcomer
from supervisor.placement import choose

TICK = 0.05
"""Seconds between two checks of the age of offers, while there are any."""

DECLINED_PAUSE = 1.0
"""Seconds without offers for a shard that has declined one: it has no descriptor to spare."""

WIDEST_WINDOW = 256
"""Most unanswered offers for one shard. Descriptors in flight count against the user's RLIMIT_NOFILE (unix(7))."""


class Handoffs:
    """The links to all shards that take connections.

    *reject* refuses a connection that no shard can take. Its slot is free by then.
    """

    def __init__(
        self,
        ledger: Ledger,
        placement: Placement,
        reject: Callable[[Newcomer, Rejection], None],
        shards: int,
    ) -> None:
        self.placement = placement
        self.accepted_total = 0
        self.handoff_seconds = Histogram()
        """From a Prepare until the shard's answer to it. The Commit leaves right after the answer."""
        self.registration_seconds = Histogram()
        """From accept until the Commit, for each accepted agent."""
        self.on_accepted: Callable[[int, list[Newcomer]], None] | None = None
        """Called with a shard and the connections whose Commit has left, movers too; descriptors are still open."""
        self.on_moved: Callable[[Mover, int | None], None] | None = None
        """Called with each mover and the shard that it was committed to, None when no shard takes it. Then it still has
        a reserved slot. Its descriptor is closed in both cases."""
        self._draining: set[int] = set()
        self._ledger = ledger
        self._reject = reject
        self._loop = asyncio.get_running_loop()
        self._clock = awake.clock()
        self._links: dict[int, ShardLink] = {}
        self._usable: list[int] = []
        self._parked: deque[Newcomer] = deque()
        self._dirty: list[ShardLink] = []
        self._gathering = False
        self._timer: asyncio.TimerHandle | None = None
        self._log = get_logger()
        # A stuck shard's window stays in flight. All windows together may use a quarter of the limit.
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._window = max(8, min(WIDEST_WINDOW, limit // (4 * shards)))
        # The orders to keep copies of the listening sockets, for every shard.
        self._custody: list[tuple[Entrust, list[int]]] = []

    def __len__(self) -> int:
        return len(self._parked) + sum(link.pending + len(link.committing) for link in self._links.values())

    @property
    def parked(self) -> int:
        """How many connections have a slot, and no shard that can take them now."""
        return len(self._parked)

    # Calls of the fleet.

    def entrust(self, listeners: Mapping[KeptListener, int], orphan_timeout: float) -> None:
        """Have every shard keep copies of these sockets and of no others. The caller still owns the descriptors."""
        self._custody = entrusting(listeners, orphan_timeout)
        for link in self._links.values():
            link.custody = list(self._custody)
            self._touch(link)

    def add_shard(self, shard: int, channel: HandoffChannel) -> None:
        """Offer connections to *shard* from now on, over *channel*."""
        link = self._links[shard] = ShardLink(shard, channel)
        link.custody = list(self._custody)
        self._touch(link)
        self._refresh()

    def remove_shard(self, shard: int) -> None:
        """Close the channel to *shard*, and offer the connections on their way to other shards."""
        link = self._links.pop(shard, None)
        if link is None:
            return
        link.channel.close()
        self._refresh()
        for newcomer in link.newcomers:
            self.offer(newcomer)

    def heard_from(self, shard: int) -> None:
        """Note a heartbeat: the shard's loop runs."""
        link = self._links.get(shard)
        if link is not None and link.silent:
            link.silent = False
            self._refresh()

    def set_silent(self, shard: int) -> None:
        """Offer nothing to the shard until it is heard from again, and offer its pending connections to others."""
        link = self._links.get(shard)
        if link is not None and not link.silent:
            link.silent = True
            self._refresh()
            for newcomer in self._take_back(link):
                self.offer(newcomer)

    def drain(self, shard: int, *, draining: bool) -> None:
        """Offer nothing to *shard* while it is *draining*. The shard need not have a link now."""
        if draining:
            self._draining.add(shard)
        else:
            self._draining.discard(shard)
        self._refresh()

    def has_offers(self, shard: int) -> bool:
        """Whether connections are on their way to *shard*."""
        link = self._links.get(shard)
        return link is not None and bool(link.pending or link.committing)

    # Newcomers.

    def offer(self, newcomer: Newcomer) -> None:
        """Offer *newcomer*, which has a reserved slot, to a shard. Park it when no shard can take a connection now."""
        assert newcomer.offer is not None
        usable = self._usable
        if newcomer.declined_by is not None:
            usable = [shard for shard in usable if shard not in newcomer.declined_by]
            if newcomer.wanted_by in usable:
                usable = [newcomer.wanted_by]
        shard = choose(self.placement, self._ledger, newcomer.offer.agent_id, usable)
        if shard is None:
            self._ledger.place(newcomer.offer.agent_id, newcomer.number, None)
            self._parked.append(newcomer)
            self._start_timer()
            return
        self._ledger.place(newcomer.offer.agent_id, newcomer.number, shard)
        link = self._links[shard]
        link.unsent.append(newcomer)
        link.pending += 1
        if link.pending >= self._window:
            self._refresh()
        self._touch(link)

    def has_link(self, shard: int) -> bool:
        """Whether *shard* has an open channel to this supervisor."""
        return shard in self._links

    def order_out(self, shard: int, order: MoveOut) -> bool:
        """Order *shard* to let connections go. False when the order cannot be sent now."""
        link = self._links.get(shard)
        return link is not None and link.channel.try_send(order)

    def commit_found(self, shard: int, number: int) -> None:
        """Commit a connection that a shard already holds: for an earlier supervisor, or because it does not move."""
        self._links[shard].found.append(number)
        self._touch(self._links[shard])

    def refuse_found(self, shard: int, number: int) -> None:
        """Have a shard refuse a connection that it holds for an earlier supervisor: its agent is at the limit."""
        self._links[shard].refused.append(number)
        self._touch(self._links[shard])

    def revoke_found(self, shard: int, number: int) -> None:
        """Have a shard close its copy of a connection that another shard serves."""
        self._links[shard].revoked.append(number)
        self._touch(self._links[shard])

    def refuse_all(self, rejection: Callable[[Newcomer], Rejection]) -> None:
        """Refuse all connections whose Commit cannot leave now. Called at shutdown."""
        for link in self._links.values():
            self._flush_commits(link)
            self._parked.extend(self._take_back(link))
            self._flush(link)
        while self._parked:
            self._turn_away(newcomer := self._parked.popleft(), rejection(newcomer))

    def close(self) -> None:
        """Close all channels; call `refuse_all` first."""
        if self._timer is not None:
            self._timer.cancel()
        for link in self._links.values():
            link.channel.close()

    # What shards say.

    def on_message(self, shard: int, message: Message) -> None:
        """Handle a shard's answer."""
        link = self._links.get(shard)
        if link is None:
            return
        if link.silent:
            link.silent = False
            self._refresh()
        if not isinstance(message, Prepared | Declined):
            return
        # An unknown batch was revoked. The revocation is on its way to the shard.
        batch = link.offered.pop(message.batch, None)
        if batch is None:
            return
        was_full = link.pending >= self._window
        link.pending -= len(batch.newcomers)
        if isinstance(message, Prepared):
            link.committing += batch.newcomers
            self.handoff_seconds.observe_many(self._clock.time() - batch.sent_at, len(batch.newcomers))
            self._flush(link)
        else:
            self._declined(link, batch.newcomers, message.reason)
        if was_full:
            self._refresh()

    def _declined(self, link: ShardLink, newcomers: list[Newcomer], reason: str) -> None:
        self._log.warning("shard declined connections", shard=link.shard, reason=reason, n=len(newcomers))
        link.paused_until = self._clock.time() + DECLINED_PAUSE
        self._refresh()
        self._start_timer()
        for newcomer in newcomers:
            newcomer.declined_by = newcomer.declined_by or set()
            newcomer.declined_by.add(link.shard)
            if newcomer.declined_by >= self._links.keys():
                self._turn_away(
                    newcomer, _overloaded(newcomer, "every shard is out of descriptors; raise the open files limit")
                )
            else:
                self.offer(newcomer)

    def _turn_away(self, newcomer: Newcomer, rejection: Rejection) -> None:
        assert newcomer.offer is not None
        if isinstance(newcomer, Mover):
            newcomer.close()
            self._moved(newcomer, None)
            return
        self._ledger.release(newcomer.offer.agent_id, newcomer.number)
        self._reject(newcomer, rejection)

    def _moved(self, mover: Mover, shard: int | None) -> None:
        if self.on_moved is not None:
            self.on_moved(mover, shard)

    def _take_back(self, link: ShardLink) -> list[Newcomer]:
        taken = link.take_back()
        self._touch(link)
        return taken

    # Sending, gathered per turn of the loop.

    def _touch(self, link: ShardLink) -> None:
        if not link.dirty:
            link.dirty = True
            if not self._dirty and not self._gathering:
                self._loop.call_soon(self.flush)
            self._dirty.append(link)

    def gather(self) -> None:
        """Gather offers until `flush`. The caller must call that before its turn of the loop is over."""
        self._gathering = True

    def flush(self) -> None:
        """Send the messages that have gathered in this turn of the loop."""
        self._gathering = False
        links, self._dirty = self._dirty, []
        for link in links:
            link.dirty = False
            self._flush(link)

    def _flush(self, link: ShardLink) -> None:
        """Send the gathered messages of *link* as far as its channel takes them. Continue when it is writable again."""
        if link.channel.closed:
            return
        if not (self._flush_commits(link) and link.send_orders() and link.send_offers(self._clock.time())):
            link.channel.when_writable(lambda: self._flush(link))
        if link.offered:
            self._start_timer()

    def _flush_commits(self, link: ShardLink) -> bool:
        done = link.committing
        if not done and not link.found:
            return True
        if not link.channel.try_send(Commit([*link.found, *(newcomer.number for newcomer in done)])):
            return False
        link.committing, link.found = [], []
        if done and self.on_accepted is not None:
            self.on_accepted(link.shard, done)
        now = monotonic()
        for newcomer in done:
            assert newcomer.offer is not None
            self._ledger.commit(newcomer.offer.agent_id, newcomer.number)
            newcomer.close()
            if isinstance(newcomer, Mover):
                self._moved(newcomer, link.shard)
            else:
                self.accepted_total += 1
                self.registration_seconds.observe(now - newcomer.accepted_at)
        return True

    # Time.

    def _start_timer(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(TICK, self._tick)

    def _tick(self) -> None:
        self._timer = None
        now = self._clock.time()
        try:
            self._look(now)
        finally:
            if self._parked or any(link.newcomers or link.paused_until > now for link in self._links.values()):
                self._start_timer()

    def _look(self, now: float) -> None:
        for link in list(self._links.values()):
            if link.is_late(now):
                # The answer may have arrived and not been read yet.
                link.channel.take_the_rest()
            if link.is_late(now) and not link.channel.closed:
                self._log.warning(
                    "shard does not answer, its offers go elsewhere", shard=link.shard, n=len(link.newcomers)
                )
                self.set_silent(link.shard)
        self._refresh()
        for _ in range(len(self._parked)):
            newcomer = self._parked.popleft()
            if newcomer.deadline <= now:
                self._turn_away(newcomer, _overloaded(newcomer, "no shard could take the connection in time"))
            else:
                self._parked.append(newcomer)

    def _refresh(self) -> None:
        """Find the shards that can take a connection now, and offer the parked connections to them."""
        now = self._clock.time()
        self._usable = [
            link.shard
            for link in self._links.values()
            if not link.silent
            and link.paused_until <= now
            and link.pending < self._window
            and link.shard not in self._draining
        ]
        for _ in range(len(self._parked)):
            # An offer that fills a window calls this method again. That call may offer all the others.
            if not self._usable or not self._parked:
                return
            self.offer(self._parked.popleft())


def _overloaded(newcomer: Newcomer, message: str) -> Rejection:
    return Rejection(ErrorCode.OVERLOADED, message, newcomer.answer_type, retry_after_ms=1000)
