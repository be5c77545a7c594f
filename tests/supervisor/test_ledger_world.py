"""The ledger against shards that really hold connections, while messages are lost, processes die, connections move."""

# ruff: noqa: D101, D102  (the rules of a state machine are named for what they do)
import copy
import itertools
from collections import Counter, deque
from collections.abc import Collection, Sequence
from typing import NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ipc.events import Snapshot
from ipc.peers import Owner
from supervisor.care import Care
from supervisor.ledger import Ledger
from supervisor.quotas import Holdings
from supervisor.snapshots import Found, Inquiry, Verdict, undecided, verdict

AGENTS = ("waf", "auth", "geo")
SHARDS = (0, 1, 2)

MOST_ROUNDS = 200
"""In which everything under way has arrived; it takes a handful."""
agents = st.sampled_from(AGENTS)
shards = st.sampled_from(SHARDS)
limits = st.integers(1, 4)

FIRST_NUMBER = 100
"""Numbers below it were drawn by an earlier supervisor."""


def whose(agent_id: str, number: int) -> Owner:
    """Whose a connection is: agents come in by two rules, from two peers each."""
    return Owner("geo" if agent_id == "geo" else "*", f"peer {number % 2}")


# Shards that hold connections, and a supervisor that hears of them late or not at all.


class Closed(NamedTuple):
    number: int
    agent_id: str


class Beat(NamedTuple):
    held: int


class Moving(NamedTuple):
    """A member between two shards, as either of them holds it; *departs* in the one that it comes from."""

    agent_id: str
    ticket: int
    departs: bool


class Mover(NamedTuple):
    """A member between two shards, as the supervisor holds it; *source* is None once that shard has died."""

    agent_id: str
    ticket: int
    source: int | None
    on: int


class Kernel:
    """What belongs to the connections themselves, whoever holds copies of them."""

    def __init__(self) -> None:
        self.tickets: dict[int, int] = {}
        self.last_ticket = 0
        self.hung_up: set[int] = set()

    def leave_ticket(self, number: int) -> int:
        self.last_ticket += 1
        self.tickets[number] = self.last_ticket
        return self.last_ticket

    def take_ticket(self, number: int, ticket: int) -> bool:
        if self.tickets.get(number) != ticket:
            return False
        del self.tickets[number]
        return True


class Shard:
    """What one shard holds, and the pipes to and from it: the handoff channel and the bus, each in both directions.

    Each pipe keeps its order; between the pipes there is none.
    """

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.prepared: dict[int, str] = {}
        self.moving: dict[int, Moving] = {}
        self.live: dict[int, str] = {}
        self.sequence = 0
        self.handoff: deque[tuple[str, int, str, int]] = deque()
        self.upward: deque[tuple[int, Moving]] = deque()
        self.commands: deque[int] = deque()
        self.events: deque[tuple[int, Closed | Beat | Snapshot]] = deque()

    def tell(self, event: Closed | Beat | Snapshot) -> None:
        self.sequence += 1
        self.events.append((self.sequence, event))

    def take_handoff(self) -> None:
        what, number, agent_id, ticket = self.handoff.popleft()
        if what == "prepare":
            self.prepared[number] = agent_id
        elif what == "prepare a member":
            self.moving[number] = Moving(agent_id, ticket, False)
        elif what == "move out":
            if number in self.live:
                moving = self.moving[number] = Moving(self.live.pop(number), self.kernel.leave_ticket(number), True)
                self.upward.append((number, moving))
        elif number in self.moving:
            moving = self.moving.pop(number)
            if what == "commit" and not self.go_on_with(number, moving):
                self.tell(Closed(number, agent_id))
        elif self.prepared.pop(number, None) is not None and what == "commit":
            self.serve(number, agent_id)

    def go_on_with(self, number: int, moving: Moving) -> bool:
        """Serve a member that has moved here, or one that was to move; False when another shard does."""
        if not self.kernel.take_ticket(number, moving.ticket):
            return False
        self.serve(number, moving.agent_id)
        return True

    def serve(self, number: int, agent_id: str) -> None:
        """Serve a connection, whose end is seen at once if its agent has closed it meanwhile."""
        self.live[number] = agent_id
        if number in self.kernel.hung_up:
            self.end(number)

    def lose_supervisor(self) -> None:
        """Read what it has sent, and go on with what was to move."""
        while self.handoff:
            self.take_handoff()
        self.upward.clear()
        for number, moving in list(self.moving.items()):
            if moving.departs:
                del self.moving[number]
                self.go_on_with(number, moving)
        self.commands.clear()

    def take_command(self) -> None:
        moving = [(number, moving.agent_id) for number, moving in self.moving.items()]
        let_go = [number for number, moving in self.moving.items() if moving.departs]
        request = self.commands.popleft()
        live, prepared = list(self.live.items()), list(self.prepared.items())
        owned = [(*whose(agent_id, number), [number]) for number, agent_id in (*live, *prepared, *moving)]
        self.tell(Snapshot(0, request, live, prepared, moving, let_go, owned))

    def end(self, number: int) -> None:
        self.tell(Closed(number, self.live.pop(number)))

    def beat(self) -> None:
        self.tell(Beat(len(self.live) + len(self.prepared) + len(self.moving)))


class World:
    """A supervisor that feeds a ledger by the rules of the fleet and the handoffs, and its shards."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.kernel = Kernel()
        self.shards = {shard: Shard(self.kernel) for shard in SHARDS}
        self.members: dict[int, str] = {}
        """All that were accepted, and neither hung up nor died with their shard: nobody else may be lost."""
        self.next_request = 1
        self.a_command_was_lost = False
        self.take_over(Ledger(limit))

    def take_over(self, ledger: Ledger) -> None:
        """Begin as a new supervisor that knows nothing but the numbers used so far."""
        self.ledger = ledger
        self.first_number = ledger.next_number
        self.care = {shard: Care(shard) for shard in SHARDS}
        self.offered: dict[int, tuple[str, int]] = {}
        self.movers: dict[int, Mover] = {}
        self.inquiries: dict[int, Inquiry] = {}
        self.found: set[Found] = set()
        self.owners: dict[int, Owner] = {}
        self.unknown = set(SHARDS)

    @property
    def holds(self) -> bool:
        """Whether registrations wait because some shard's connections are not known yet."""
        return bool(self.unknown)

    def admit(self, agent_id: str, shard: int) -> None:
        number = self.ledger.reserve(agent_id, whose(agent_id, self.ledger.next_number))
        self.offer(number, agent_id, shard)

    def offer(self, number: int, agent_id: str, shard: int) -> None:
        self.ledger.place(agent_id, number, shard)
        self.offered[number] = (agent_id, shard)
        self.send(shard, "prepare", number, agent_id)

    def send(self, shard: int, what: str, number: int, agent_id: str, ticket: int = 0) -> None:
        self.shards[shard].handoff.append((what, number, agent_id, ticket))

    def commit(self, number: int) -> None:
        agent_id, shard = self.offered.pop(number)
        self.ledger.commit(agent_id, number)
        self.send(shard, "commit", number, agent_id)
        self.members[number] = agent_id

    def revoke(self, number: int) -> str:
        agent_id, shard = self.offered.pop(number)
        self.send(shard, "revoke", number, agent_id)
        return agent_id

    def prepared(self) -> list[int]:
        return sorted(number for number, (_, shard) in self.offered.items() if number in self.shards[shard].prepared)

    # Moves.

    def take_upward(self, shard: int, target: int) -> None:
        """Take a connection that *shard* has let go of, and offer it to *target*."""
        number, moving = self.shards[shard].upward.popleft()
        if not self.ledger.recall(moving.agent_id, number, shard):
            self.send(shard, "commit", number, moving.agent_id)
            return
        if shard in self.inquiries:
            self.inquiries[shard].recall(number)
        self.offer_member(number, Mover(moving.agent_id, moving.ticket, shard, target))

    def offer_member(self, number: int, mover: Mover) -> None:
        self.movers[number] = mover
        self.ledger.place(mover.agent_id, number, mover.on)
        self.send(mover.on, "prepare a member", number, mover.agent_id, mover.ticket)

    def arrived(self) -> list[int]:
        """Movers whom the shard holds that they were offered to."""
        return sorted(n for n, m in self.movers.items() if n in self.shards[m.on].moving)

    def commit_member(self, number: int) -> None:
        mover = self.movers.pop(number)
        self.ledger.commit(mover.agent_id, number)
        self.send(mover.on, "commit", number, mover.agent_id)
        if mover.source is not None:
            self.send(mover.source, "revoke", number, mover.agent_id)

    def offer_member_to_another(self, number: int) -> None:
        mover = self.movers[number]
        self.send(mover.on, "revoke", number, mover.agent_id)
        target = next(shard for shard in SHARDS if shard not in (mover.on, mover.source))
        self.offer_member(number, mover._replace(on=target))

    def send_back(self, number: int) -> None:
        """Nobody has taken it: its own shard goes on, or it is lost."""
        mover = self.movers.pop(number)
        self.send(mover.on, "revoke", number, mover.agent_id)
        if mover.source is None:
            self.ledger.release(mover.agent_id, number)
            self.members.pop(number, None)
            return
        self.ledger.place(mover.agent_id, number, mover.source)
        self.ledger.commit(mover.agent_id, number)
        self.send(mover.source, "commit", number, mover.agent_id)

    def hang_up(self, shard: int, number: int) -> None:
        """The agent closes a connection that *shard* serves, or holds while it moves: who serves it sees that."""
        self.kernel.hung_up.add(number)
        self.members.pop(number, None)
        for ours in self.shards.values():
            if number in ours.live:
                ours.end(number)

    def holds_a_copy(self, shard: int, number: int) -> bool:
        """Whether *shard* serves a member, or could: it has a copy, or will have, and nobody has told it to close that.

        A copy without the ticket is worth nothing: somebody else has served the connection since it was made.
        """
        ours = self.shards[shard]
        if number in ours.live:
            return True
        messages = [(what, ticket) for what, n, _, ticket in ours.handoff if n == number]
        words = [what for what, _ in messages]
        if "revoke" in words and words[-1] != "prepare a member":
            return False
        copies = [ticket for what, ticket in messages if what == "prepare a member"]
        if number in ours.moving:
            copies.append(ours.moving[number].ticket)
        return self.kernel.tickets.get(number) in copies

    # Deaths.

    def kill(self, shard: int) -> None:
        while self.shards[shard].upward:
            self.take_upward(shard, (shard + 1) % len(SHARDS))
        had = {n for n in self.members if self.holds_a_copy(shard, n)}
        had |= {n for n, _ in self.ledger.live_numbers(shard)}
        self.shards[shard], self.care[shard] = Shard(self.kernel), Care(shard)
        self.inquiries.pop(shard, None)
        self.unknown.discard(shard)
        self.forget_found(shard)
        self.ledger.drop_shard(shard)
        for number, mover in list(self.movers.items()):
            source = None if mover.source == shard else mover.source
            if mover.on == shard:
                target = next(other for other in SHARDS if other not in (shard, source))
                self.offer_member(number, mover._replace(source=source, on=target))
            else:
                self.movers[number] = mover._replace(source=source)
        for number in had:
            if number not in self.movers and not any(self.holds_a_copy(other, number) for other in SHARDS):
                self.members.pop(number, None)
        for number, (agent_id, on) in list(self.offered.items()):
            if on == shard:
                self.offer(number, agent_id, (shard + 1) % len(SHARDS))
        # A shard is offered nothing before its first event was heard.
        self.shards[shard].beat()
        self.take_event(shard)

    def replace_supervisor(
        self, order: Sequence[int], unsent: Collection[int] = (), alone: Collection[int] = ()
    ) -> None:
        """The next one begins; shards notice that in this *order*, and to those *unsent* a last word did not leave.

        It comes late for those *alone*, which have gone on with whatever was to move there.
        """
        lost = set(self.movers)
        for shard in unsent:
            if self.shards[shard].handoff and self.shards[shard].handoff[-1][0] == "revoke":
                self.shards[shard].handoff.pop()
        for shard in order:
            self.shards[shard].lose_supervisor()
            self.shards[shard].events.clear()
        for shard in alone:
            for number, moving in list(self.shards[shard].moving.items()):
                del self.shards[shard].moving[number]
                self.shards[shard].go_on_with(number, moving)
            self.shards[shard].events.clear()
        for number in lost:
            # The supervisor had the only copy: its shard had died, and no other one had it.
            if not any(self.holds_a_copy(shard, number) for shard in SHARDS):
                self.members.pop(number, None)
        self.take_over(Ledger(self.limit, self.ledger.next_number))

    def ask(self, shard: int) -> None:
        inquiry = self.inquiries.setdefault(shard, Inquiry())
        inquiry.ask(self.next_request, self.ledger.live_numbers(shard), 0.0)
        self.shards[shard].commands.append(self.next_request)
        self.next_request += 1

    def take_event(self, shard: int) -> None:
        sequence, event = self.shards[shard].events.popleft()
        if self.care[shard].hear(sequence, 0.0):
            self.ask(shard)
        elif shard in self.unknown and shard not in self.inquiries:
            self.unknown.discard(shard)  # Its first event ever: it has held nothing before.
        if isinstance(event, Closed):
            self.ledger.release_live(event.agent_id, event.number, shard)
        elif isinstance(event, Beat):
            # Without the latter, a lost request would leave an empty shard unknown.
            if self.care[shard].is_doubtful(self.ledger.load(shard) - event.held) or shard in self.unknown:
                self.ask(shard)
        else:
            inquiry = self.inquiries.get(shard)
            if inquiry is not None and event.request == inquiry.request:
                del self.inquiries[shard]
                self.ledger.reconcile(shard, *inquiry.compare(event), event.owners())
                self.owners |= event.owners()
                self.unknown.discard(shard)
                self.forget_found(shard)
                live = {number for number, _ in self.ledger.live_numbers(shard)}
                self.found |= undecided(
                    shard, event, first_number=self.first_number, live=live, moving=self.movers.keys()
                )
        if not self.unknown:
            self.decide_found()

    def forget_found(self, shard: int) -> None:
        self.found = {found for found in self.found if found.shard != shard}

    def decide_found(self) -> None:
        for found in sorted(self.found):
            shard, number, agent_id, _ = found
            what = verdict(
                found,
                served_by=self.ledger.shard_of(agent_id, number),
                is_moving=number in self.movers,
                has_room=self.ledger.count(agent_id) < self.limit,
            )
            if what is Verdict.ADOPT:
                self.ledger.adopt(agent_id, number, shard, self.owners[number])
                if number not in self.kernel.hung_up:
                    self.members[number] = agent_id
            if what is not Verdict.WAIT:
                self.send(shard, "commit" if what in (Verdict.COMMIT, Verdict.ADOPT) else "revoke", number, agent_id)
        self.found.clear()

    def lose_events(self) -> None:
        for shard in self.shards.values():
            shard.events.clear()

    def lose_commands(self, shard: int) -> None:
        self.a_command_was_lost |= bool(self.shards[shard].commands)
        self.shards[shard].commands.clear()

    def settle(self) -> None:
        """Let everything under way arrive, and every shard beat as often as it may take to notice what was lost.

        A lost event leaves a hole that the next heartbeat shows. A lost command leaves only a difference of the counts,
        which is believed when two heartbeats after the last change agree.
        """
        for _ in range(3 if self.a_command_was_lost else 1):
            for shard in self.shards.values():
                shard.beat()
            rounds = 0
            while (
                self.prepared()
                or self.movers
                or any(s.handoff or s.upward or s.commands or s.events for s in self.shards.values())
            ):
                rounds += 1
                assert rounds < MOST_ROUNDS, "it never comes to rest"
                for number in self.shards:
                    self.let_arrive(number)

    def let_arrive(self, number: int) -> None:
        shard = self.shards[number]
        while shard.handoff:
            shard.take_handoff()
        for prepared in self.prepared():
            self.commit(prepared)
        while shard.upward:
            self.take_upward(number, (number + 1) % len(SHARDS))
        for arrived in self.arrived():
            self.commit_member(arrived)
        while shard.commands:
            shard.take_command()
        while shard.events:
            self.take_event(number)
            self.check_safe()

    def check_safe(self) -> None:
        """What holds at each instant: the ledger may believe too much of a shard, never too little."""
        self.ledger.check_invariants()
        there = {n: agent_id for shard in self.shards.values() for n, agent_id in shard.live.items()}
        assert len(there) == sum(len(shard.live) for shard in self.shards.values()), "two shards serve one connection"
        live = Counter(({n: mover.agent_id for n, mover in self.movers.items()} | there).values())
        assert all(n <= self.limit for n in live.values()), "an agent has more connections than it may"
        for number, shard in self.shards.items():
            if number not in self.unknown:
                assert shard.live.items() <= {(n, a) for n, a in self.ledger.live_numbers(number)}

    def check_exact(self) -> None:
        """What holds once everything has arrived: the ledger is what the shards hold."""
        self.ledger.check_invariants()
        assert not self.holds
        for number, shard in self.shards.items():
            assert not shard.prepared
            assert not shard.moving
            assert self.ledger.live_numbers(number) == set(shard.live.items())
            assert self.ledger.load(number) == len(shard.live)
        live = {n: agent_id for shard in self.shards.values() for n, agent_id in shard.live.items()}
        assert self.ledger.owned == Holdings(whose(a, n) for n, a in live.items()), "another owner is counted"
        assert live == self.members, "somebody was lost, or is served who should not be"


class WorldMachine(RuleBasedStateMachine):
    """Anything is late or lost, shards and supervisor die; after each step, the ledger could be mended from here."""

    @initialize(limit=st.integers(1, 3))
    def begin(self, limit: int) -> None:
        self.world = World(limit)
        self.world.settle()

    @precondition(lambda self: not self.world.holds)
    @rule(agent_id=agents, shard=shards)
    def admit(self, agent_id: str, shard: int) -> None:
        if self.world.ledger.count(agent_id) < self.world.limit:
            self.world.admit(agent_id, shard)

    @precondition(lambda self: not self.world.holds)
    @rule(agent_id=agents, shard=shards)
    def admit_without_delay(self, agent_id: str, shard: int) -> None:
        self.admit(agent_id, shard)
        self.take_handoff(shard, all_of_it=True)
        for number in self.world.prepared():
            self.world.commit(number)
        self.take_handoff(shard, all_of_it=True)

    @precondition(lambda self: self.world.prepared())
    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        self.world.commit(data.draw(st.sampled_from(self.world.prepared())))

    @precondition(lambda self: self.world.offered)
    @rule(data=st.data(), shard=shards)
    def offer_to_another(self, data: st.DataObject, shard: int) -> None:
        number = data.draw(st.sampled_from(sorted(self.world.offered)))
        self.world.offer(number, self.world.revoke(number), shard)

    @precondition(lambda self: self.world.offered)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.world.offered)))
        self.world.ledger.release(self.world.revoke(number), number)

    @precondition(lambda self: any(shard.live or shard.moving for shard in self.world.shards.values()))
    @rule(data=st.data())
    def agent_closes(self, data: st.DataObject) -> None:
        held = [(n, number) for n, shard in self.world.shards.items() for number in (*shard.live, *shard.moving)]
        self.world.hang_up(*data.draw(st.sampled_from(sorted(held))))

    @precondition(lambda self: any(shard.live for shard in self.world.shards.values()))
    @rule(data=st.data())
    def move_out(self, data: st.DataObject) -> None:
        on = [(n, number) for n, shard in self.world.shards.items() for number in shard.live]
        shard, number = data.draw(st.sampled_from(sorted(on)))
        self.world.send(shard, "move out", number, self.world.shards[shard].live[number])

    @precondition(lambda self: any(shard.upward for shard in self.world.shards.values()))
    @rule(data=st.data())
    def take_let_go(self, data: st.DataObject) -> None:
        shard = data.draw(st.sampled_from([n for n, shard in self.world.shards.items() if shard.upward]))
        self.world.take_upward(shard, data.draw(st.sampled_from([other for other in SHARDS if other != shard])))

    @precondition(lambda self: self.world.arrived())
    @rule(data=st.data())
    def commit_member(self, data: st.DataObject) -> None:
        self.world.commit_member(data.draw(st.sampled_from(self.world.arrived())))

    @precondition(lambda self: self.world.movers)
    @rule(data=st.data(), back=st.booleans())
    def offer_member_to_another_or_send_it_back(self, data: st.DataObject, back: bool) -> None:
        number = data.draw(st.sampled_from(sorted(self.world.movers)))
        if back:
            self.world.send_back(number)
        else:
            self.world.offer_member_to_another(number)

    @precondition(lambda self: not self.world.holds)
    @rule(source=shards, to=shards)
    def drain(self, source: int, to: int) -> None:
        """An operation, without delay: whatever the shard serves moves, with what is on the way to it behind."""
        world = self.world
        if source == to:
            return
        self.take_handoff(source, all_of_it=True)
        for number, agent_id in list(world.shards[source].live.items()):
            world.send(source, "move out", number, agent_id)
        self.take_handoff(source, all_of_it=True)
        while world.shards[source].upward:
            world.take_upward(source, to)
        self.take_handoff(to, all_of_it=True)
        for number in world.arrived():
            world.commit_member(number)
        self.take_handoff(to, all_of_it=True)
        self.take_handoff(source, all_of_it=True)

    @rule(shard=shards)
    def beat(self, shard: int) -> None:
        self.world.shards[shard].beat()

    @rule(shard=shards)
    def doubt(self, shard: int) -> None:
        self.world.ask(shard)

    @rule(shard=shards, all_of_it=st.booleans())
    def take_handoff(self, shard: int, all_of_it: bool) -> None:
        handoff = self.world.shards[shard].handoff
        for _ in range(len(handoff) if all_of_it else min(1, len(handoff))):
            self.world.shards[shard].take_handoff()

    @precondition(lambda self: any(shard.commands for shard in self.world.shards.values()))
    @rule(data=st.data())
    def take_command(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from([shard for shard in self.world.shards.values() if shard.commands])).take_command()

    @precondition(lambda self: any(shard.events for shard in self.world.shards.values()))
    @rule(data=st.data())
    def take_event(self, data: st.DataObject) -> None:
        self.world.take_event(data.draw(st.sampled_from([n for n, shard in self.world.shards.items() if shard.events])))

    @precondition(lambda self: any(shard.events for shard in self.world.shards.values()))
    @rule(data=st.data())
    def lose_an_event(self, data: st.DataObject) -> None:
        events = data.draw(st.sampled_from([shard.events for shard in self.world.shards.values() if shard.events]))
        del events[data.draw(st.integers(0, len(events) - 1))]

    @rule(shard=shards)
    def lose_commands(self, shard: int) -> None:
        self.world.lose_commands(shard)

    @rule(shard=shards)
    def kill_shard(self, shard: int) -> None:
        self.world.kill(shard)

    @rule(order=st.permutations(SHARDS), unsent=st.sets(shards), alone=st.sets(shards))
    def replace_supervisor(self, order: list[int], unsent: set[int], alone: set[int]) -> None:
        self.world.replace_supervisor(order, unsent, sorted(alone))

    @invariant()
    def believes_too_much_at_most(self) -> None:
        self.world.check_safe()

    @invariant()
    def could_be_mended_from_here(self) -> None:
        for loses_events in (False, True):
            interrupted = copy.deepcopy(self.world)
            if loses_events:
                interrupted.lose_events()
            interrupted.settle()
            interrupted.check_exact()


@pytest.mark.parametrize("order", list(itertools.permutations(SHARDS)))
@pytest.mark.parametrize("has_heard", [False, True], ids=["shard has not read its commit", "shard has read it"])
def test_connection_is_served_by_one_shard_when_the_supervisor_dies_after_the_commit(
    order: tuple[int, ...], has_heard: bool
) -> None:
    world = World(1)
    world.settle()
    world.admit("waf", 0)
    world.settle()
    (number,) = world.shards[0].live
    world.send(0, "move out", number, "waf")
    world.shards[0].take_handoff()
    world.take_upward(0, 1)
    world.shards[1].take_handoff()
    world.commit_member(number)
    if has_heard:
        world.shards[1].take_handoff()

    world.replace_supervisor(order, unsent=[0])

    world.check_safe()
    world.settle()
    world.check_exact()


def test_snapshot_from_before_a_connection_went_and_came_back_does_not_free_its_slot() -> None:
    world = World(1)
    world.settle()
    world.admit("waf", 0)
    world.settle()
    (number,) = world.shards[0].live
    world.ask(0)
    world.send(0, "move out", number, "waf")
    world.shards[0].take_handoff()
    world.take_upward(0, 1)
    world.shards[1].take_handoff()
    world.commit_member(number)
    world.shards[1].take_handoff()
    world.shards[0].take_handoff()
    # It is elsewhere when the shard says what it holds, and back before that is heard.
    world.shards[0].take_command()
    world.send(1, "move out", number, "waf")
    world.shards[1].take_handoff()
    world.take_upward(1, 0)
    world.shards[0].take_handoff()
    world.commit_member(number)
    world.shards[0].take_handoff()
    while world.shards[0].events:
        world.take_event(0)
        world.check_safe()

    assert world.ledger.live_numbers(0) == {(number, "waf")}


def test_snapshot_that_overtakes_a_connection_which_is_let_go_does_not_decide_about_it() -> None:
    world = World(1)
    world.settle()
    world.admit("waf", 0)
    world.settle()
    (number,) = world.shards[0].live
    world.ask(0)
    world.send(0, "move out", number, "waf")
    world.shards[0].take_handoff()
    # The bus is quicker than the handoff channel.
    world.shards[0].take_command()
    world.take_event(0)

    world.settle()

    world.check_exact()


WorldMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=40)
TestWorldMachine = WorldMachine.TestCase


def test_ledger_is_mended_by_a_doubt_when_the_request_for_a_snapshot_is_lost() -> None:
    world = World(4)
    world.settle()
    world.admit("waf", 0)
    world.settle()
    world.hang_up(0, 1)
    world.lose_events()
    world.shards[0].beat()
    world.take_event(0)
    world.lose_commands(0)
    assert world.ledger.live_numbers(0) == {(1, "waf")}

    world.settle()

    world.check_exact()
