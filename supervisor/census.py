"""Reconcile the ledger with the shards' snapshots of their connections.

The supervisor asks a shard for a snapshot whenever the ledger may be wrong about it. The shard was adopted, some of its
events were lost, its channel is a new one, or its count and the ledger's differ by as much for two heartbeats.

An earlier supervisor may have left connections without a decision. They are decided about when *all* shards have sent
their snapshots. That supervisor may have passed over a stuck shard, so that another one serves the same connection.
"""

import asyncio
from collections.abc import Callable

from dialout import awake
from ipc import events
from ipc.events import CloseCode
from ipc.logs import get_logger
from ipc.peers import NOBODY, Owner
from supervisor.care import Care
from supervisor.handoffs import Handoffs
from supervisor.journal import Journal
from supervisor.ledger import Ledger
from supervisor.moves import Moves
from supervisor.snapshots import Found, Inquiry, Verdict, undecided, verdict

ASK_PAUSE = 0.01
"""Seconds between attempts to ask a shard that is not on the bus yet. An adopted shard usually is after 50 ms. New
connections wait until it has answered."""

ASK_AGAIN = 1.0
"""Seconds without a snapshot after which the shard is asked again."""


class Census:
    """The outstanding snapshots, and the undecided connections that were found. *send* sends a command to a shard."""

    def __init__(
        self,
        ledger: Ledger,
        handoffs: Handoffs,
        moves: Moves,
        journal: Journal,
        send: Callable[[int, events.Command], bool],
    ) -> None:
        self._ledger, self._handoffs, self._moves, self._journal = ledger, handoffs, moves, journal
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._clock = awake.clock()
        self._log = get_logger()
        # An earlier supervisor drew the numbers below this one.
        self._first_number = ledger.next_number
        self._next_request = 1
        self._inquiries: dict[int, Inquiry] = {}
        self._found: set[Found] = set()
        self._owners: dict[int, Owner] = {}
        self._timer: asyncio.TimerHandle | None = None
        moves.on_recalled = self._recalled

    @property
    def is_complete(self) -> bool:
        """Whether no snapshot is outstanding: the ledger knows the connections of all shards."""
        return not self._inquiries

    def wants(self, shard: int) -> bool:
        """Whether a snapshot of *shard* is outstanding."""
        return shard in self._inquiries

    def ask(self, shard: int) -> None:
        """Ask a shard for its connections, as soon as it is on the bus.

        A shard without a channel is not asked now. Call this again when it has one.
        """
        inquiry = self._inquiries.setdefault(shard, Inquiry())
        if not self._handoffs.has_link(shard):
            # A shard without a channel decides by itself about connections that are on their way.
            inquiry.request = 0
        elif self._send(shard, events.SnapshotRequest(self._next_request)):
            inquiry.ask(self._next_request, self._ledger.live_numbers(shard), self._clock.time())
            self._next_request += 1
        elif not inquiry.request and self._timer is None:
            self._timer = self._loop.call_later(ASK_PAUSE, self._ask_the_rest)

    def compare(self, care: Care, held: int) -> None:
        """Compare the ledger's count with the count that a shard reports. A lasting difference leads to a snapshot."""
        shard = care.shard
        inquiry = self._inquiries.get(shard)
        if inquiry is not None:
            # The counts may differ until the snapshot comes. Later heartbeats compare them again.
            if inquiry.request and self._clock.time() - inquiry.asked_at > ASK_AGAIN:
                self.ask(shard)
            return
        load = self._ledger.load(shard)
        if care.is_doubtful(load - held):
            self._log.warning("counts differ", shard=shard, shard_says=held, ledger=load)
            self.ask(shard)

    def take(self, shard: int, snapshot: events.Snapshot) -> None:
        """Replace the ledger's belief about a shard by its snapshot, unless a newer one was asked for."""
        inquiry = self._inquiries.get(shard)
        if inquiry is None or inquiry.request != snapshot.request:
            return
        del self._inquiries[shard]
        before = self._ledger.live_numbers(shard)
        owners = snapshot.owners()
        changed = self._ledger.reconcile(shard, *inquiry.compare(snapshot), owners)
        after = self._ledger.live_numbers(shard) if changed else before
        self._journal.lost(shard, before - after, CloseCode.LOST_SIGHT)
        self._journal.adopted(shard, after - before)
        self._log.info("ledger reconciled", shard=shard, connections=len(snapshot.live), changed=changed)
        self._forget_found(shard)
        self._found |= undecided(
            shard,
            snapshot,
            first_number=self._first_number,
            live={number for number, _ in after},
            moving=self._moves.under_way,
        )
        self._owners |= {one.number: owners[one.number] for one in self._found if one.number in owners}

    def forget(self, shard: int) -> None:
        """Drop the inquiry and the found connections of a shard that has ended or is foreign."""
        self._inquiries.pop(shard, None)
        self._forget_found(shard)

    def decide(self) -> None:
        """Decide about the found connections. Every shard must have sent its snapshot before."""
        for found in sorted(self._found):
            if self._handoffs.has_link(found.shard):
                self._found.remove(found)
                self._decide(found)

    def close(self) -> None:
        """Send no more requests."""
        if self._timer is not None:
            self._timer.cancel()

    def _ask_the_rest(self) -> None:
        self._timer = None
        for shard, inquiry in list(self._inquiries.items()):
            if not inquiry.request:
                self.ask(shard)

    def _decide(self, found: Found) -> None:
        shard, number, agent_id, _ = found
        owner = self._owners.pop(number, NOBODY)
        what = verdict(
            found,
            served_by=self._ledger.shard_of(agent_id, number),
            is_moving=number in self._moves.under_way,
            has_room=self._ledger.has_room(agent_id, owner),
        )
        if what is Verdict.ADOPT:
            self._ledger.adopt(agent_id, number, shard, owner)
            self._journal.adopted(shard, [(number, agent_id)])
        if what in (Verdict.COMMIT, Verdict.ADOPT):
            self._handoffs.commit_found(shard, number)
        elif what is Verdict.REVOKE:
            self._handoffs.revoke_found(shard, number)
        elif what is Verdict.REFUSE:
            self._handoffs.refuse_found(shard, number)

    def _forget_found(self, shard: int) -> None:
        self._found = {found for found in self._found if found.shard != shard}
        if not self._found:
            self._owners.clear()

    def _recalled(self, shard: int, number: int) -> None:
        inquiry = self._inquiries.get(shard)
        if inquiry is not None:
            inquiry.recall(number)
