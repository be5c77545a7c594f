"""The ledger against shards that really hold connections, while messages are lost and processes die."""

# ruff: noqa: D101, D102  (the rules of a state machine are named for what they do)
import copy
from collections import Counter, deque
from typing import NamedTuple

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from supervisor.care import Care
from supervisor.ledger import Ledger

AGENTS = ("waf", "auth", "geo")
SHARDS = (0, 1, 2)
agents = st.sampled_from(AGENTS)
shards = st.sampled_from(SHARDS)
limits = st.integers(1, 4)

FIRST_NUMBER = 100
"""Numbers below it were drawn by an earlier supervisor."""


# Shards that hold connections, and a supervisor that hears of them late or not at all.


class Closed(NamedTuple):
    number: int
    agent_id: str


class Beat(NamedTuple):
    held: int


class Snapshot(NamedTuple):
    request: int
    live: set[tuple[int, str]]
    prepared: set[tuple[int, str]]


class Shard:
    """What one shard holds, and the pipes to and from it: the handoff channel, and the bus in both directions.

    Each pipe keeps its order; between the pipes there is none.
    """

    def __init__(self) -> None:
        self.prepared: dict[int, str] = {}
        self.live: dict[int, str] = {}
        self.sequence = 0
        self.handoff: deque[tuple[str, int, str]] = deque()
        self.commands: deque[int] = deque()
        self.events: deque[tuple[int, Closed | Beat | Snapshot]] = deque()

    def tell(self, event: Closed | Beat | Snapshot) -> None:
        self.sequence += 1
        self.events.append((self.sequence, event))

    def take_handoff(self) -> None:
        what, number, agent_id = self.handoff.popleft()
        if what == "prepare":
            self.prepared[number] = agent_id
        elif self.prepared.pop(number, None) is not None and what == "commit":
            self.live[number] = agent_id

    def take_command(self) -> None:
        self.tell(Snapshot(self.commands.popleft(), set(self.live.items()), set(self.prepared.items())))

    def end(self, number: int) -> None:
        self.tell(Closed(number, self.live.pop(number)))

    def beat(self) -> None:
        self.tell(Beat(len(self.live) + len(self.prepared)))


class World:
    """A supervisor that feeds a ledger by the rules of the fleet and the handoffs, and its shards."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.shards = {shard: Shard() for shard in SHARDS}
        self.next_request = 1
        self.a_command_was_lost = False
        self.take_over(Ledger(limit))

    def take_over(self, ledger: Ledger) -> None:
        """Begin as a new supervisor that knows nothing but the numbers used so far."""
        self.ledger = ledger
        self.first_number = ledger.next_number
        self.care = {shard: Care(shard) for shard in SHARDS}
        self.offered: dict[int, tuple[str, int]] = {}
        self.requests: dict[int, tuple[int, set[tuple[int, str]]]] = {}
        self.found: set[tuple[int, int, str]] = set()
        self.unknown = set(SHARDS)

    @property
    def holds(self) -> bool:
        """Whether registrations wait because some shard's connections are not known yet."""
        return bool(self.unknown)

    def admit(self, agent_id: str, shard: int) -> None:
        number = self.ledger.reserve(agent_id)
        self.offer(number, agent_id, shard)

    def offer(self, number: int, agent_id: str, shard: int) -> None:
        self.ledger.place(agent_id, number, shard)
        self.offered[number] = (agent_id, shard)
        self.shards[shard].handoff.append(("prepare", number, agent_id))

    def commit(self, number: int) -> None:
        agent_id, shard = self.offered.pop(number)
        self.ledger.commit(agent_id, number)
        self.shards[shard].handoff.append(("commit", number, agent_id))

    def revoke(self, number: int) -> str:
        agent_id, shard = self.offered.pop(number)
        self.shards[shard].handoff.append(("revoke", number, agent_id))
        return agent_id

    def prepared(self) -> list[int]:
        return sorted(number for number, (_, shard) in self.offered.items() if number in self.shards[shard].prepared)

    def kill(self, shard: int) -> None:
        self.shards[shard], self.care[shard] = Shard(), Care(shard)
        self.requests.pop(shard, None)
        self.unknown.discard(shard)
        self.found = {found for found in self.found if found[0] != shard}
        self.ledger.drop_shard(shard)
        for number, (agent_id, on) in list(self.offered.items()):
            if on == shard:
                self.offer(number, agent_id, (shard + 1) % len(SHARDS))
        # A shard is offered nothing before its first event was heard.
        self.shards[shard].beat()
        self.take_event(shard)

    def ask(self, shard: int) -> None:
        self.requests[shard] = (self.next_request, self.ledger.live_numbers(shard))
        self.shards[shard].commands.append(self.next_request)
        self.next_request += 1

    def take_event(self, shard: int) -> None:
        sequence, event = self.shards[shard].events.popleft()
        if self.care[shard].hear(sequence, 0.0):
            self.ask(shard)
        elif shard in self.unknown and shard not in self.requests:
            self.unknown.discard(shard)  # Its first event ever: it has held nothing before.
        if isinstance(event, Closed):
            self.ledger.release_live(event.agent_id, event.number, shard)
        elif isinstance(event, Beat):
            # Without the latter, a lost request would leave an empty shard unknown.
            if self.care[shard].is_doubtful(self.ledger.load(shard) - event.held) or shard in self.unknown:
                self.ask(shard)
        else:
            asked, believed = self.requests.get(shard, (0, set()))
            if event.request == asked:
                del self.requests[shard]
                self.ledger.reconcile(shard, believed - event.prepared, event.live)
                self.unknown.discard(shard)
                self.found |= {(shard, n, agent_id) for n, agent_id in event.prepared if n < self.first_number}
        if not self.unknown:
            self.decide_found()

    def decide_found(self) -> None:
        for shard, number, agent_id in sorted(self.found):
            is_live = any((number, agent_id) in self.ledger.live_numbers(on) for on in SHARDS)
            if is_live or self.ledger.count(agent_id) >= self.limit:
                self.shards[shard].handoff.append(("revoke", number, agent_id))
            else:
                self.ledger.adopt(agent_id, number, shard)
                self.shards[shard].handoff.append(("commit", number, agent_id))
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
            while self.prepared() or any(s.handoff or s.commands or s.events for s in self.shards.values()):
                for number in self.shards:
                    self.let_arrive(number)

    def let_arrive(self, number: int) -> None:
        shard = self.shards[number]
        while shard.handoff:
            shard.take_handoff()
        for prepared in self.prepared():
            self.commit(prepared)
        while shard.commands:
            shard.take_command()
        while shard.events:
            self.take_event(number)
            self.check_safe()

    def check_safe(self) -> None:
        """What holds at each instant: the ledger may believe too much of a shard, never too little."""
        self.ledger.check_invariants()
        live = Counter(agent_id for shard in self.shards.values() for agent_id in shard.live.values())
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
            assert self.ledger.live_numbers(number) == set(shard.live.items())
            assert self.ledger.load(number) == len(shard.live)


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

    @precondition(lambda self: any(shard.live for shard in self.world.shards.values()))
    @rule(data=st.data())
    def agent_closes(self, data: st.DataObject) -> None:
        shard = data.draw(st.sampled_from([shard for shard in self.world.shards.values() if shard.live]))
        shard.end(data.draw(st.sampled_from(sorted(shard.live))))

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

    @rule()
    def replace_supervisor(self) -> None:
        world = self.world
        for shard in world.shards.values():
            while shard.handoff:  # What was sent before the end is read before the new channel.
                shard.take_handoff()
            shard.commands.clear()
            shard.events.clear()
        world.take_over(Ledger(world.limit, world.ledger.next_number))

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


WorldMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=40)
TestWorldMachine = WorldMachine.TestCase


def test_ledger_is_mended_by_a_doubt_when_the_request_for_a_snapshot_is_lost() -> None:
    world = World(4)
    world.settle()
    world.admit("waf", 0)
    world.settle()
    world.shards[0].end(1)
    world.lose_events()
    world.shards[0].beat()
    world.take_event(0)
    world.lose_commands(0)
    assert world.ledger.live_numbers(0) == {(1, "waf")}

    world.settle()

    world.check_exact()
