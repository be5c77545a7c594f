"""What the shards say that they hold, and what becomes of the ledger by that.

Belief is replaced by a shard's snapshot whenever there is a doubt: the shard was found running, its events have a hole,
its channel is another one, or its count and the ledger's have been apart for two heartbeats.

Connections that a supervisor before this one left without a decision are decided about when *all* shards have told what
they hold: a stuck shard may have been passed over, and the same connection be served by another one.
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
"""Seconds between attempts to ask a shard that is not on the bus yet. An adopted one is after 50 ms as a rule, and
until it has answered newcomers wait."""

ASK_AGAIN = 1.0
"""Seconds after which a snapshot that has not come is asked for again."""


class Census:
    """The snapshots that are wanted, and the connections that were found. *send* tells a shard something."""

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
        # Numbers below it were drawn by an earlier supervisor.
        self._first_number = ledger.next_number
        self._next_request = 1
        self._inquiries: dict[int, Inquiry] = {}
        self._found: set[Found] = set()
        self._owners: dict[int, Owner] = {}
        self._timer: asyncio.TimerHandle | None = None
        moves.on_recalled = self._recalled

    @property
    def is_complete(self) -> bool:
        """Whether the ledger knows what all shards hold."""
        return not self._inquiries

    def wants(self, shard: int) -> bool:
        """Whether a snapshot of *shard* is wanted that has not come."""
        return shard in self._inquiries

    def ask(self, shard: int) -> None:
        """Ask a shard what it holds, as soon as it is on the bus; one without a channel, again when it has one."""
        inquiry = self._inquiries.setdefault(shard, Inquiry())
        if not self._handoffs.has_link(shard):
            # Without a channel it decides by itself about connections that are on their way.
            inquiry.request = 0
        elif self._send(shard, events.SnapshotRequest(self._next_request)):
            inquiry.ask(self._next_request, self._ledger.live_numbers(shard), self._clock.time())
            self._next_request += 1
        elif not inquiry.request and self._timer is None:
            self._timer = self._loop.call_later(ASK_PAUSE, self._ask_the_rest)

    def compare(self, care: Care, held: int) -> None:
        """Hold the ledger's count against what a shard says that it has; ask it for a snapshot when they differ."""
        shard = care.shard
        inquiry = self._inquiries.get(shard)
        if inquiry is not None:
            # Meanwhile the counts may differ; the heartbeats after the snapshot compare them again.
            if inquiry.request and self._clock.time() - inquiry.asked_at > ASK_AGAIN:
                self.ask(shard)
            return
        load = self._ledger.load(shard)
        if care.is_doubtful(load - held):
            self._log.warning("counts differ", shard=shard, shard_says=held, ledger=load)
            self.ask(shard)

    def take(self, shard: int, snapshot: events.Snapshot) -> None:
        """Replace what was believed of a shard by what it says, unless a newer snapshot was asked for."""
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
        """Want nothing of a shard any more, nor decide about what it holds: it has ended, or nobody can talk to it."""
        self._inquiries.pop(shard, None)
        self._forget_found(shard)

    def decide(self) -> None:
        """Decide about those who were found; call it when every shard has told what it holds."""
        for found in sorted(self._found):
            if self._handoffs.has_link(found.shard):
                self._found.remove(found)
                self._decide(found)

    def close(self) -> None:
        """Ask nobody any more."""
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
