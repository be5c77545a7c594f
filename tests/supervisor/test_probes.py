"""Probe rounds: whoever waits is decided once, and by a look that came after."""

# ruff: noqa: D102  (the rules of a state machine are named for what they do)
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from supervisor.probes import ProbeBook, Round

TIMEOUT = 10.0
AGENTS = ("waf", "auth", "geo")
SHARDS = (0, 1, 2)
agents = st.sampled_from(AGENTS)
shards = st.sampled_from(SHARDS)


class ModelRound:
    """What the model knows of a round that is not over."""

    def __init__(self, current: Round[int], opened_at: float) -> None:
        self.round = current
        self.deadline = opened_at + TIMEOUT
        self.asked_at: int | None = None
        self.outstanding: set[int] = set()


class ProbeMachine(RuleBasedStateMachine):
    """Newcomers, answers, deaths of shards and time in every order.

    A waiter is the number of the step in which it came, so that "before" can be told.
    """

    def __init__(self) -> None:
        super().__init__()
        self.book: ProbeBook[int] = ProbeBook(TIMEOUT)
        self.now = 0.0
        self.step = 0
        self.waiting: dict[int, str] = {}
        self.decided: set[int] = set()
        self.open: dict[int, ModelRound] = {}
        self.probes: set[int] = set()
        self.ended: set[str] = set()  # Agents whose round is over, and `next_round` has not been called yet.

    def next_step(self) -> int:
        self.step += 1
        return self.step

    def opened(self, current: Round[int] | None) -> None:
        if current is None:
            return
        assert current.probe not in self.probes, "a probe's number was used twice"
        assert not current.asked
        self.probes.add(current.probe)
        self.open[current.probe] = ModelRound(current, self.now)

    def over(self, current: Round[int]) -> None:
        """Take leave of a round, and decide whoever waits in it."""
        model = self.open.pop(current.probe)
        for waiter in current.waiters:
            assert self.waiting.pop(waiter) == current.agent_id
            assert waiter not in self.decided
            self.decided.add(waiter)
            if model.asked_at is not None:
                assert waiter < model.asked_at, "decided by a look from before it came"
        self.ended.add(current.agent_id)

    def over_by_that(self, rounds: list[Round[int]], expected: set[int]) -> None:
        assert sorted(r.probe for r in rounds) == sorted(expected)
        for current in rounds:
            self.over(current)

    @rule(agent_id=agents)
    def come(self, agent_id: str) -> None:
        waiter = self.next_step()
        is_open = any(model.round.agent_id == agent_id for model in self.open.values())
        opened = self.book.wait(agent_id, waiter, self.now)
        self.waiting[waiter] = agent_id
        assert (opened is None) == is_open
        self.opened(opened)

    @rule(agent_id=agents)
    def free_a_slot(self, agent_id: str) -> None:
        waiting = [waiter for waiter, name in self.waiting.items() if name == agent_id]
        waiter = self.book.first(agent_id)
        assert waiter == (min(waiting) if waiting else None)
        if waiter is not None:
            del self.waiting[waiter]
            self.decided.add(waiter)

    @precondition(lambda self: any(model.asked_at is None for model in self.open.values()))
    @rule(data=st.data(), asked=st.sets(shards))
    def ask(self, data: st.DataObject, asked: set[int]) -> None:
        unasked = sorted(probe for probe, model in self.open.items() if model.asked_at is None)
        model = self.open[data.draw(st.sampled_from(unasked))]
        model.asked_at = self.next_step()
        model.outstanding = set(asked)
        is_over = self.book.ask(model.round, asked)
        assert is_over == (not asked)
        if is_over:
            self.over(model.round)

    @precondition(lambda self: self.probes)
    @rule(data=st.data(), shard=shards)
    def answer(self, data: st.DataObject, shard: int) -> None:
        """Any shard answers any probe: one that was not asked, one that is late, twice, before it is asked."""
        probe = data.draw(st.sampled_from(sorted(self.probes)))
        model = self.open.get(probe)
        is_over = model is not None and model.outstanding == {shard}
        if model is not None:
            model.outstanding.discard(shard)
        answered = self.book.answered(probe, shard)
        self.over_by_that([] if answered is None else [answered], {probe} if is_over else set())

    @rule(shard=shards)
    def shard_goes(self, shard: int) -> None:
        expected = {probe for probe, model in self.open.items() if model.outstanding == {shard}}
        for model in self.open.values():
            model.outstanding.discard(shard)
        self.over_by_that(self.book.shard_gone(shard), expected)

    @rule(seconds=st.sampled_from([0.0, 1.0, TIMEOUT / 2, TIMEOUT]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        expected = {probe for probe, model in self.open.items() if model.deadline <= self.now}
        self.over_by_that(self.book.expired(self.now), expected)

    @precondition(lambda self: self.ended)
    @rule(data=st.data())
    def go_on(self, data: st.DataObject) -> None:
        agent_id = data.draw(st.sampled_from(sorted(self.ended)))
        self.ended.remove(agent_id)
        following = self.book.next_round(agent_id, self.now)
        self.opened(following)
        # Nobody is left out: whoever waits is in a round that can still be asked, or in one that is. A round whose
        # waiters all got a slot that became free may be open without any.
        if agent_id in self.waiting.values():
            assert any(m.round.agent_id == agent_id for m in self.open.values())

    @rule()
    def take_all(self) -> None:
        everybody = self.book.take_all()
        assert sorted(everybody) == sorted(self.waiting)
        self.decided.update(everybody)
        self.waiting.clear()
        self.open.clear()
        self.ended.clear()

    @invariant()
    def agrees_with_the_model(self) -> None:
        assert len(self.book) == len(self.waiting)
        assert not self.decided & self.waiting.keys()
        for model in self.open.values():
            assert self.book.is_open(model.round)
            assert model.round.asked == (model.asked_at is not None)
            assert model.round.shards == model.outstanding
        in_rounds = [model.round.agent_id for model in self.open.values()]
        assert len(in_rounds) == len(set(in_rounds)), "an agent has two rounds"
        # Whoever came before its agent's round was asked is in that round.
        for waiter, agent_id in self.waiting.items():
            for model in self.open.values():
                if model.round.agent_id == agent_id and (model.asked_at is None or waiter < model.asked_at):
                    assert agent_id in self.ended or waiter in model.round.waiters

    def teardown(self) -> None:
        """Everybody is decided in the end, by time alone."""
        while self.waiting:
            before = len(self.decided)
            for agent_id in list(self.ended):
                self.opened(self.book.next_round(agent_id, self.now))
            self.ended.clear()
            self.pass_time(TIMEOUT)
            # A round without waiters may have to end first.
            assert len(self.decided) > before or self.ended, "somebody waits for ever"
        assert self.decided <= set(range(1, self.step + 1))
        assert len(self.book) == 0


ProbeMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=50)
TestProbeMachine = ProbeMachine.TestCase


def test_probe_does_not_decide_a_registration_that_came_after_it_was_sent() -> None:
    book: ProbeBook[str] = ProbeBook(TIMEOUT)
    first = book.wait("waf", "early", 0.0)
    assert first is not None
    assert book.wait("waf", "in time", 0.0) is None
    assert not book.ask(first, {0, 1})
    assert book.wait("waf", "late", 0.0) is None

    assert book.answered(first.probe, 0) is None
    assert book.answered(first.probe, 1) is first
    assert first.waiters == ["early", "in time"]
    following = book.next_round("waf", 1.0)
    assert following is not None
    assert following.waiters == ["late"]
    assert following.deadline == 1.0 + TIMEOUT


def test_probe_of_one_agent_says_nothing_about_another() -> None:
    book: ProbeBook[str] = ProbeBook(TIMEOUT)
    waf, auth = book.wait("waf", "w", 0.0), book.wait("auth", "a", 0.0)
    assert waf is not None
    assert auth is not None
    book.ask(waf, {0})
    book.ask(auth, {0})

    assert book.answered(waf.probe, 0) is waf
    assert book.is_open(auth)
    assert book.shard_gone(0) == [auth]


def test_newcomer_between_two_rounds_waits_with_those_who_came_earlier() -> None:
    book: ProbeBook[str] = ProbeBook(TIMEOUT)
    first = book.wait("waf", "early", 0.0)
    assert first is not None
    book.ask(first, {0})
    book.wait("waf", "late", 0.0)
    book.answered(first.probe, 0)

    following = book.wait("waf", "later", 1.0)
    assert following is not None
    assert following.waiters == ["late", "later"]
    assert book.next_round("waf", 1.0) is None
    book.ask(following, {0})
    book.wait("waf", "latest", 1.0)
    assert book.next_round("waf", 1.0) is None
    assert book.expired(1.0 + TIMEOUT) == [following]
    last = book.next_round("waf", 2.0)
    assert last is not None
    assert last.waiters == ["latest"]
