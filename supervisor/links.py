"""The supervisor's end of one shard's handoff channel: the connections on their way, and the messages to send.

Nothing is decided here: `supervisor.handoffs` chooses the shard of each connection, and updates the ledger.
"""

from collections import deque
from typing import NamedTuple

from ipc.handoff import HandoffChannel
from ipc.messages import BATCH_BYTES, MAX_BATCH, Entrust, Offer, Prepare, Refuse, Revoke
from supervisor.newcomer import Newcomer

ANSWER_TIMEOUT = 0.5
"""Seconds that a shard has to answer a Prepare. A running shard answers in well under 1 ms."""


class Batch(NamedTuple):
    """The connections of one Prepare that was sent and is not answered."""

    sent_at: float
    newcomers: list[Newcomer]


class ShardLink:
    """The connections on their way to one shard, and the orders for it.

    *pending* counts offers that the shard has not answered, sent or not. *found* are the numbers of connections to
    commit that the shard already holds and that this link did not offer. *revoked* are the numbers of copies that the
    shard must close. *refused* are the numbers of connections that it must reject. *custody* are the unsent orders to
    keep listening sockets.
    """

    __slots__ = (
        "channel",
        "committing",
        "custody",
        "dirty",
        "found",
        "next_batch",
        "offered",
        "paused_until",
        "pending",
        "refused",
        "revoked",
        "shard",
        "silent",
        "unsent",
    )

    def __init__(self, shard: int, channel: HandoffChannel) -> None:
        self.shard = shard
        self.channel = channel
        self.unsent: deque[Newcomer] = deque()
        self.offered: dict[int, Batch] = {}
        self.next_batch = 1
        self.pending = 0
        self.committing: list[Newcomer] = []
        self.found: list[int] = []
        self.revoked: list[int] = []
        self.refused: list[int] = []
        self.custody: list[tuple[Entrust, list[int]]] = []
        self.paused_until = 0.0
        self.silent = False
        self.dirty = False

    @property
    def newcomers(self) -> list[Newcomer]:
        """All connections on their way, in the order in which they were offered."""
        return [*self.committing, *(n for batch in self.offered.values() for n in batch.newcomers), *self.unsent]

    def is_late(self, now: float) -> bool:
        """Whether a Prepare has been unanswered for longer than `ANSWER_TIMEOUT`."""
        oldest = next(iter(self.offered.values()), None)
        return oldest is not None and now - oldest.sent_at > ANSWER_TIMEOUT

    def take_back(self) -> list[Newcomer]:
        """Return all connections on their way, and remove them from this link. The shard is told to forget them."""
        taken = self.newcomers
        self.revoked += [n.number for n in self.committing]
        self.revoked += [n.number for batch in self.offered.values() for n in batch.newcomers]
        self.committing = []
        self.offered.clear()
        self.unsent.clear()
        self.pending = 0
        return taken

    def send_orders(self) -> bool:
        """Send the orders to revoke, refuse and keep. False when the channel takes no more now."""
        if self.revoked:
            if not self.channel.try_send(Revoke(self.revoked)):
                return False
            self.revoked = []
        if self.refused:
            if not self.channel.try_send(Refuse(self.refused)):
                return False
            self.refused = []
        while self.custody:
            if not self.channel.try_send(*self.custody[0]):
                return False
            del self.custody[0]
        return True

    def send_offers(self, now: float) -> bool:
        """Send the gathered offers. False when the channel takes no more now."""
        while self.unsent:
            newcomers, offers = next_batch(self.unsent)
            if not self.channel.try_send(Prepare(self.next_batch, offers), [n.fd for n in newcomers]):
                return False
            for _ in newcomers:
                self.unsent.popleft()
            self.offered[self.next_batch] = Batch(now, newcomers)
            self.next_batch += 1
        return True


def next_batch(unsent: deque[Newcomer]) -> tuple[list[Newcomer], list[Offer]]:
    """The first connections of *unsent* that fit into one message, with their offers."""
    batch: list[Newcomer] = []
    offers: list[Offer] = []
    size = 0
    for newcomer in unsent:
        offer = newcomer.offer
        assert offer is not None
        size += offer.weight
        if batch and (size > BATCH_BYTES or len(batch) == MAX_BATCH):
            break
        batch.append(newcomer)
        offers.append(offer)
    return batch, offers
