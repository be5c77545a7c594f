"""The ledger: every interleaving against a list of slots."""

# ruff: noqa: D101, D102  (the rules of a state machine are named for what they do)
import copy
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

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
        assert {number for number, _ in self.ledger.drop_shard(shard)} == set(gone)
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
    assert ledger.drop_shard(0) == set()
    assert ledger.load(0) == 1  # What is only reserved is offered to another shard, not lost.


def test_ledger_does_not_believe_a_shard_that_a_slot_is_gone_before_it_is_live() -> None:
    ledger = Ledger(4)
    number = ledger.reserve("waf")
    ledger.place("waf", number, 0)

    assert not ledger.release_live("waf", number, 0)
    ledger.commit("waf", number)
    assert not ledger.release_live("waf", number, 1)
    assert ledger.release_live("waf", number, 0)


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
        ("the load of a shard is wrong", lambda ledger: ledger.loads.update({0: 3})),
        ("the load of a shard is wrong", lambda ledger: ledger.loads.pop(1)),
        ("the load of a shard is wrong", lambda ledger: ledger.loads.update({7: -1})),
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
