"""The ledger: every interleaving against a list of slots, and against shards that really hold connections."""

# ruff: noqa: D101, D102  (the rules of a state machine are named for what they do)
import copy
from collections import Counter, deque
from collections.abc import Callable
from typing import NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from supervisor.care import Care
from supervisor.ledger import Ledger, LimitReached, Slot

AGENTS = ("waf", "auth", "geo")
SHARDS = (0, 1, 2)
agents = st.sampled_from(AGENTS)
shards = st.sampled_from(SHARDS)
limits = st.integers(1, 4)

FIRST_NUMBER = 100
"""Numbers below it were drawn by an earlier supervisor."""


class ModelSlot(NamedTuple):
    agent_id: str
    shard: int | None
    live: bool


class LedgerMachine(RuleBasedStateMachine):
    """Every call in every order, beside a model that is one dictionary of slots and counts nothing in advance."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger(3, FIRST_NUMBER)
        self.limit = 3
        self.slots: dict[int, ModelSlot] = {}
        self.seen: dict[int, str] = {}
        self.asked: dict[int, set[tuple[int, str]]] = {}
        self.published: dict[str, dict[int, int]] = {}

    def count(self, agent_id: str) -> int:
        return sum(slot.agent_id == agent_id for slot in self.slots.values())

    def live_on(self, shard: int) -> dict[int, str]:
        return {n: slot.agent_id for n, slot in self.slots.items() if slot.live and slot.shard == shard}

    def pick(self, data: st.DataObject, numbers: list[int]) -> tuple[int, str]:
        number = data.draw(st.sampled_from(sorted(numbers)))
        return number, self.seen[number]

    def stranger(self, data: st.DataObject) -> int:
        """A number that this ledger has never seen, from before its time or ahead of it."""
        numbers = st.integers(1, FIRST_NUMBER - 1) | st.integers(0, 5).map(lambda n: self.ledger.next_number + n)
        return data.draw(numbers.filter(lambda number: number not in self.seen))

    @rule(limit=limits)
    def change_limit(self, limit: int) -> None:
        self.ledger.limit = self.limit = limit

    @rule(agent_id=agents)
    def reserve(self, agent_id: str) -> None:
        if self.count(agent_id) >= self.limit:
            with pytest.raises(LimitReached):
                self.ledger.reserve(agent_id)
            return
        number = self.ledger.reserve(agent_id)
        assert number >= FIRST_NUMBER
        assert number > max((n for n in self.seen if n >= FIRST_NUMBER), default=0), "drawn twice, or downwards"
        self.seen[number] = agent_id
        self.slots[number] = ModelSlot(agent_id, None, False)
        assert self.ledger.count(agent_id) <= self.limit

    @precondition(lambda self: self.slots)
    @rule(data=st.data(), shard=shards)
    def place(self, data: st.DataObject, shard: int) -> None:
        number, agent_id = self.pick(data, list(self.slots))
        if self.slots[number].live:
            with pytest.raises(ValueError, match="cannot be placed"):
                self.ledger.place(agent_id, number, shard)
            return
        self.ledger.place(agent_id, number, shard)
        self.slots[number] = ModelSlot(agent_id, shard, False)

    @precondition(lambda self: self.slots)
    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        number, agent_id = self.pick(data, list(self.slots))
        slot = self.slots[number]
        if slot.live or slot.shard is None:
            with pytest.raises(ValueError, match="cannot be committed"):
                self.ledger.commit(agent_id, number)
            return
        self.ledger.commit(agent_id, number)
        self.slots[number] = slot._replace(live=True)

    @precondition(lambda self: self.seen)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        number, agent_id = self.pick(data, list(self.seen))
        assert self.ledger.release(agent_id, number) == (number in self.slots)
        assert not self.ledger.release(agent_id, number)
        self.slots.pop(number, None)

    @precondition(lambda self: self.seen)
    @rule(data=st.data(), shard=shards)
    def hear_of_a_close(self, data: st.DataObject, shard: int) -> None:
        number, agent_id = self.pick(data, list(self.seen))
        is_there = number in self.live_on(shard)
        assert self.ledger.release_live(agent_id, number, shard) == is_there
        assert not self.ledger.release_live(agent_id, number, shard)
        if is_there:
            del self.slots[number]

    @rule(shard=shards)
    def drop_shard(self, shard: int) -> None:
        gone = self.live_on(shard)
        assert self.ledger.drop_shard(shard) == len(gone)
        for number in gone:
            del self.slots[number]

    @rule(data=st.data(), agent_id=agents, shard=shards)
    def adopt_a_stranger(self, data: st.DataObject, agent_id: str, shard: int) -> None:
        number = self.stranger(data)
        self.ledger.adopt(agent_id, number, shard)
        self.seen[number] = agent_id
        self.slots[number] = ModelSlot(agent_id, shard, True)

    @precondition(lambda self: self.slots)
    @rule(data=st.data(), shard=shards)
    def adopt_one_that_is_known(self, data: st.DataObject, shard: int) -> None:
        number, agent_id = self.pick(data, list(self.slots))
        with pytest.raises(ValueError, match="known already"):
            self.ledger.adopt(agent_id, number, shard)

    @rule()
    def publish_what_has_changed(self) -> None:
        for agent_id in self.ledger.changed:
            self.published[agent_id] = self.ledger.live_counts(agent_id)
        self.ledger.changed.clear()

    @rule(shard=shards)
    def ask(self, shard: int) -> None:
        self.asked[shard] = self.ledger.live_numbers(shard)

    @precondition(lambda self: self.asked)
    @rule(data=st.data(), agent_id=agents)
    def reconcile(self, data: st.DataObject, agent_id: str) -> None:
        shard = data.draw(st.sampled_from(sorted(self.asked)))
        believed = self.asked.pop(shard)
        live = {(number, name) for number, name in self.live_on(shard).items()}
        held = data.draw(st.sets(st.sampled_from(sorted(live)))) if live else set()
        if data.draw(st.booleans()):
            number = self.stranger(data)
            self.seen[number] = agent_id
            held.add((number, agent_id))
        gone = {number for number, _ in (believed & live) - held}
        new = held - live
        assert self.ledger.reconcile(shard, believed, held) == len(gone) + len(new)
        for number in gone:
            del self.slots[number]
        for number, name in new:
            self.slots[number] = ModelSlot(name, shard, True)

    @invariant()
    def agrees_with_the_model(self) -> None:
        self.ledger.check_invariants()
        slots = self.slots.values()
        assert self.ledger.live_total == sum(slot.live for slot in slots)
        for shard in SHARDS:
            assert self.ledger.load(shard) == sum(slot.shard == shard for slot in slots)
            assert self.ledger.live_numbers(shard) == set(self.live_on(shard).items())
        assert sorted(self.ledger.agent_ids()) == sorted({slot.agent_id for slot in slots})
        for agent_id in (*AGENTS, "nobody"):
            own = [slot for slot in slots if slot.agent_id == agent_id]
            assert self.ledger.count(agent_id) == len(own)
            assert self.ledger.reserved(agent_id) == any(not slot.live for slot in own)
            assert self.ledger.live_shards(agent_id) == {slot.shard for slot in own if slot.live}
            live_counts = Counter(slot.shard for slot in own if slot.live)
            assert self.ledger.live_counts(agent_id) == live_counts
            assert agent_id in self.ledger.changed or self.published.get(agent_id, {}) == live_counts
            for shard in SHARDS:
                assert self.ledger.count_on(agent_id, shard) == sum(slot.shard == shard for slot in own)


LedgerMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=50)
TestLedgerMachine = LedgerMachine.TestCase


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


# One thing at a time, in words.


def live(ledger: Ledger, agent_id: str, shard: int) -> int:
    number = ledger.reserve(agent_id)
    ledger.place(agent_id, number, shard)
    ledger.commit(agent_id, number)
    return number


def test_ledger_keeps_a_commit_that_happened_after_the_snapshot_was_asked_for() -> None:
    ledger = Ledger(4)
    gone, stays = live(ledger, "waf", 0), live(ledger, "waf", 0)
    believed = ledger.live_numbers(0)
    late = live(ledger, "waf", 0)

    assert ledger.reconcile(0, believed, [(stays, "waf")]) == 1
    assert ledger.live_numbers(0) == {(stays, "waf"), (late, "waf")}
    assert not ledger.release("waf", gone)


def test_ledger_leaves_other_shards_alone_when_one_is_reconciled_or_dropped() -> None:
    ledger = Ledger(4)
    live(ledger, "waf", 0)
    elsewhere = live(ledger, "waf", 1)
    ledger.place("waf", ledger.reserve("waf"), 0)

    assert ledger.reconcile(0, ledger.live_numbers(0) | ledger.live_numbers(1), []) == 1
    assert ledger.live_numbers(1) == {(elsewhere, "waf")}
    assert ledger.drop_shard(0) == 0
    assert ledger.load(0) == 1  # What is only reserved is offered to another shard, not lost.


def test_ledger_does_not_believe_a_shard_that_a_slot_is_gone_before_it_is_live() -> None:
    ledger = Ledger(4)
    number = ledger.reserve("waf")
    ledger.place("waf", number, 0)

    assert not ledger.release_live("waf", number, 0)
    ledger.commit("waf", number)
    assert not ledger.release_live("waf", number, 1)
    assert ledger.release_live("waf", number, 0)


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


def test_ledger_counts_an_adopted_connection_above_the_limit_and_refuses_the_next() -> None:
    ledger = Ledger(1, first_number=10)
    live(ledger, "waf", 0)
    ledger.adopt("waf", 20, 1)

    assert ledger.count("waf") == 2
    with pytest.raises(LimitReached):
        ledger.reserve("waf")
    assert ledger.reserve("auth") == 21


def test_ledger_refuses_the_first_connection_when_none_is_allowed() -> None:
    with pytest.raises(LimitReached):
        Ledger(0).reserve("waf")


@pytest.mark.parametrize("act", [Ledger.commit, lambda ledger, *slot: ledger.place(*slot, 0)])
@pytest.mark.parametrize("slot", [("waf", 99), ("nobody", 1)])
def test_ledger_raises_for_a_slot_that_is_not_there(act: Callable[..., None], slot: tuple[str, int]) -> None:
    ledger = Ledger(4)
    ledger.reserve("waf")
    with pytest.raises(KeyError):
        act(ledger, *slot)
    ledger.check_invariants()


def _count_on(ledger: Ledger, shard: int, count: int) -> None:
    by_shard = ledger._agents["waf"].by_shard
    assert by_shard is not None
    by_shard[shard] = count


def _live_nowhere(ledger: Ledger) -> None:
    ledger._agents["geo"].slots[3] = Slot(None, True)
    ledger.live_total += 1


def _drawn_twice(ledger: Ledger) -> None:
    slots = ledger._agents["geo"].slots
    slots[1] = slots.pop(3)


@pytest.mark.parametrize(
    ("message", "corrupt"),
    [
        ("live_total is wrong", lambda ledger: setattr(ledger, "live_total", 3)),
        ("live_total is wrong", lambda ledger: ledger._agents["waf"].slots.popitem()),
        ("a number in use would be drawn again", lambda ledger: setattr(ledger, "next_number", 3)),
        ("the load of a shard is wrong", lambda ledger: ledger._load.update({0: 3})),
        ("the load of a shard is wrong", lambda ledger: ledger._load.pop(1)),
        ("the load of a shard is wrong", lambda ledger: ledger._load.update({7: -1})),
        ("an agent's count on a shard is wrong", lambda ledger: _count_on(ledger, 0, 2)),
        ("an agent's count on a shard is wrong", lambda ledger: _count_on(ledger, 7, 1)),
        ("a second slot is not counted by shard", lambda ledger: setattr(ledger._agents["waf"], "by_shard", None)),
        ("a number was drawn twice", _drawn_twice),
        ("a live slot is on no shard", _live_nowhere),
        ("an agent without slots was kept", lambda ledger: ledger._agents["geo"].slots.clear()),
    ],
)
def test_ledger_check_raises_when_a_count_is_wrong(message: str, corrupt: Callable[[Ledger], object]) -> None:
    ledger = Ledger(4)
    live(ledger, "waf", 0)
    live(ledger, "waf", 1)
    ledger.reserve("geo")
    sound = copy.deepcopy(ledger)

    corrupt(ledger)

    with pytest.raises(AssertionError, match=f"^{message}"):
        ledger.check_invariants()
    sound.check_invariants()
