"""A correlation id is written once in the life of an agent's TCP connection, through every move and every cancel.

Clients choose what proxies pass on as correlation id. The agents here answer late, twice, and by either id; each answer
tells which event it is about, so that one which reaches another request shows.
"""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.engine import (
    Asked,
    PairedAgent,
    Seen,
    all_done,
    answered_tag,
    chunk,
    headers,
    on_loop,
    pool_of_this_loop,
    run,
    tag_of,
    turns,
)

from dialout import CancelReason, Decision, Dialect
from ipc.options import PoolOptions
from shards.calls import MAX_WANTED, Exchange, correlation_id
from shards.pending import MOST_ABANDONED
from shards.pool import AgentPool


def move(agent: PairedAgent, target: AgentPool) -> None:
    """Have *target* go on with the agent's connection."""
    old = agent.connection
    offer = old.as_offer(0.0, 0)
    agent.connection = target.adopt(offer, old.pool.let_go(old))  # type: ignore[attr-defined]


@pytest.mark.parametrize("dialect", Dialect)
@on_loop
async def test_late_allow_answers_no_later_request_by_that_name_after_many_cancels(dialect: Dialect) -> None:
    with pool_of_this_loop() as pool:
        agent = PairedAgent(pool, dialect=dialect)
        benign = Asked(pool, "waf", headers("/benign", correlation_id="X"))
        await turns()
        (late,) = agent.read()
        pool.requests.cancel(benign.call, CancelReason.TIMEOUT)
        for number in range(MOST_ABANDONED + 1):
            gone = Asked(pool, "waf", headers(f"/{number}"))
            pool.requests.cancel(gone.call, CancelReason.CLIENT_DISCONNECT)
        evil = Asked(pool, "waf", headers("/evil", correlation_id="X"))
        await turns()
        agent.answer(late)
        agent.answer(Seen(late.request_id, "X", late.event))
        await turns()
        assert evil.outcome is None, "nothing has answered it"
        agent.answer([seen for seen in agent.read() if seen.is_event][-1])
        await all_done(evil)
        assert answered_tag(evil.outcome) == "/evil"


@pytest.mark.parametrize("dialect", Dialect)
@on_loop
async def test_late_allow_answers_no_later_request_by_that_name_after_a_move(dialect: Dialect) -> None:
    with pool_of_this_loop() as first, pool_of_this_loop(shard=1) as second:
        agent = PairedAgent(first, dialect=dialect)
        benign = Asked(first, "waf", headers("/benign", correlation_id="X"), final=True)
        await turns()
        (late,) = agent.read()
        first.requests.cancel(benign.call, CancelReason.TIMEOUT)
        await turns()
        move(agent, second)
        evil = Asked(second, "waf", headers("/evil", correlation_id="X"))
        await turns()
        agent.answer(late)
        await turns()
        assert evil.outcome is None


@on_loop
async def test_clock_that_was_set_back_repeats_no_id_on_a_connection_that_moves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pool_of_this_loop() as first:
        agent = PairedAgent(first)
        one = Asked(first, "waf", headers("/1"))
        await turns()
        agent.answer(agent.read()[0])
        await all_done(one)
        monkeypatch.setattr("shards.requests.time.time_ns", lambda: 1_735_689_700_000 * 1_000_000)
        with pool_of_this_loop(shard=1) as second:
            assert second.requests.reserve_id() < one.call.request_id, "the clock was set back"
            move(agent, second)
            two = Asked(second, "waf", headers("/2"))
            await turns()
            assert two.call.request_id > one.call.request_id
            assert two.call.request_id % 64 == 1, "it is still one of this shard's"
            agent.answer([seen for seen in agent.read() if seen.is_event][-1])
            await all_done(two)


@given(st.text(max_size=3 * MAX_WANTED), st.text(max_size=3 * MAX_WANTED), st.integers(1, 2**53), st.integers(1, 2**53))
def test_ids_of_two_requests_differ_and_none_is_what_a_client_chose(
    one: str, two: str, first: int, second: int
) -> None:
    made = correlation_id(headers(correlation_id=one), first)
    assert made.startswith(one[:MAX_WANTED] + "#")
    assert len(made) <= MAX_WANTED + 15
    assert made != one
    assert (made == correlation_id(headers(correlation_id=two), second)) == (
        first == second and one[:MAX_WANTED] == two[:MAX_WANTED]
    )
    assert correlation_id(chunk(), first) == f"#{first:x}"


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["ask", "ask", "ask", "body", "cancel", "answer", "answer", "late", "move", "restart", "many"]),
        st.integers(0, 7),
    ),
    min_size=5,
    max_size=40,
)


class History:
    """One connection that moves between two pools, and all that was written on it."""

    def __init__(self, pools: list[AgentPool], dialect: Dialect) -> None:
        self.pools = pools
        self.agent = PairedAgent(pools[0], dialect=dialect)
        self.here = 0
        self.asked: list[Asked] = []
        self.seen: list[Seen] = []
        self.exchanges: list[Exchange] = []
        self.tags = (f"/{number}" for number in itertools.count())

    def wanted(self, which: int) -> str:
        """What a client chooses: the same again, or what it has seen of another request, also in part."""
        known = ["", "same", "same#1", *(seen.correlation_id or "" for seen in self.seen[-3:])]
        return known[which % len(known)]

    async def step(self, deed: str, which: int) -> None:
        """Do one thing."""
        pool = self.pools[self.here]
        waiting = [asked for asked in self.asked if asked.outcome is None]
        if deed == "ask":
            self.asked.append(Asked(pool, "waf", headers(next(self.tags), correlation_id=self.wanted(which))))
        elif deed == "body":
            exchange = Exchange("waf")
            event = headers(next(self.tags), has_body=True, correlation_id=self.wanted(which))
            self.asked.append(Asked(pool, exchange, event))
            self.asked.append(Asked(pool, exchange, chunk(next(self.tags)), final=True))
        elif deed == "many":
            for _ in range(MOST_ABANDONED + 1):
                gone = Asked(pool, "waf", headers(next(self.tags), correlation_id=self.wanted(which)))
                pool.requests.cancel(gone.call, CancelReason.MANUAL)
        elif deed == "cancel" and waiting:
            pool.requests.cancel(waiting[which % len(waiting)].call, CancelReason.MANUAL)
        elif deed in ("answer", "late") and self.seen:
            # Any event that it ever got, in any order and more than once.
            self.agent.answer(self.seen[which % len(self.seen)] if deed == "late" else self.seen[-1])
        elif deed in ("move", "restart"):
            for asked in waiting:
                pool.requests.give_up(asked.exchange, CancelReason.MANUAL)
            await turns()
            self.here = 1 - self.here
            move(self.agent, self.pools[self.here])
        await turns()
        self.seen += [seen for seen in self.agent.read() if seen.is_event]


@pytest.mark.parametrize("dialect", Dialect)
@settings(max_examples=30)
@given(steps=STEPS)
def test_any_history_with_moves_writes_no_id_twice_and_gives_no_answer_to_another_request(
    dialect: Dialect, steps: list[tuple[str, int]]
) -> None:
    async def history() -> None:
        options = PoolOptions(max_concurrent_per_connection=100_000, breaker_threshold=10_000, unhealthy_after=10_000)
        with pool_of_this_loop(options) as first, pool_of_this_loop(options, shard=1) as second:
            told = History([first, second], dialect)
            for deed, which in steps:
                await told.step(deed, which)
            by_request: dict[str, set[str]] = {}
            for seen in told.seen:
                begins = hasattr(seen.event, "uri")
                for written in {str(seen.request_id), seen.correlation_id or ""} - {"", "None"}:
                    if begins:
                        assert written not in by_request, "an id is written again"
                    by_request.setdefault(written, set()).add(tag_of(seen.event))
            chosen = {"same", "same#1"}
            assert not chosen & by_request.keys(), "a client's own id is on the wire"
            for asked in told.asked:
                if isinstance(asked.outcome, Decision):
                    mine = {tag_of(one.event) for one in told.asked if one.exchange is asked.exchange}
                    assert answered_tag(asked.outcome) in mine, "the answer to another request"

    run(history)
