"""The supervisor's end of one shard's handoff channel, and the newcomers on their way through it. Decides nothing."""

from collections import deque
from typing import NamedTuple

from ipc.handoff import HandoffChannel
from ipc.messages import BATCH_BYTES, MAX_BATCH, Offer
from supervisor.newcomer import Newcomer

ANSWER_TIMEOUT = 0.5
"""Seconds a shard has to answer a Prepare. A running shard answers in well under 1 ms."""


class Batch(NamedTuple):
    """The newcomers of one Prepare that has left and is not answered."""

    sent_at: float
    newcomers: list[Newcomer]


class ShardLink:
    """The supervisor's end of one shard's handoff channel, with the newcomers on their way through it.

    *pending* counts offers that the shard has not answered, sent or not.
    """

    __slots__ = (
        "channel",
        "committing",
        "dirty",
        "entrusted",
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
        # Connections that the shard holds for a supervisor before this one, to be committed.
        self.found: list[int] = []
        self.revoked: list[int] = []
        self.refused: list[int] = []
        # Whether the shard has copies of the listening sockets.
        self.entrusted = False
        self.paused_until = 0.0
        self.silent = False
        self.dirty = False

    @property
    def newcomers(self) -> list[Newcomer]:
        """Everybody on the way, in the order of offering."""
        return [*self.committing, *(n for batch in self.offered.values() for n in batch.newcomers), *self.unsent]

    def is_late(self, now: float) -> bool:
        """Whether a Prepare has been out for too long."""
        oldest = next(iter(self.offered.values()), None)
        return oldest is not None and now - oldest.sent_at > ANSWER_TIMEOUT


def next_batch(unsent: deque[Newcomer]) -> tuple[list[Newcomer], list[Offer]]:
    """The first newcomers of *unsent* that go into one message, with their offers."""
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
