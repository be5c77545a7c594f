"""Calls: their time, their numbers, and their counts."""

import asyncio
import itertools
import math
from time import monotonic

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.engine import (
    Asked,
    PairedAgent,
    all_done,
    assert_nothing_left,
    chunk,
    headers,
    next_event,
    on_loop,
    pool_of_this_loop,
    turns,
)
from support.pools import until

from dialout import Block, CancelReason, Decision, Dialect
from dialout.proxy.errors import BadAnswer, RequestTimeout
from ipc.options import PoolOptions
from shards.calls import Exchange
from shards.requests import first_request_id


@pytest.mark.parametrize("seconds", [math.inf, 1e12])
@on_loop
async def test_endless_timeout_is_a_long_one(seconds: float) -> None:
    with pool_of_this_loop() as pool:
        agent = PairedAgent(pool)
        asked = Asked(pool, "waf", headers("x"), seconds)
        await turns()
        agent.answer(agent.read()[0])
        await all_done(asked)
        assert_nothing_left(pool)


@on_loop
async def test_clock_goes_on_after_a_callback_that_raised() -> None:
    class Mistake(Exception):
        pass

    def raises() -> None:
        raise Mistake

    found: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: found.append(context.get("exception")))
    with pool_of_this_loop() as pool:
        PairedAgent(pool)
        Asked(pool, "waf", headers(), 0.01, on_done=raises)
        other = Asked(pool, "waf", headers(), 0.05)
        await all_done(other)
        assert isinstance(other.outcome, RequestTimeout)
        assert [type(error) for error in found] == [Mistake]


@on_loop
async def test_timeout_is_the_agents_fault_and_a_cancel_is_not() -> None:
    with pool_of_this_loop(PoolOptions(request_timeout=0.01)) as pool:
        agent = PairedAgent(pool)
        timed_out, cancelled = Asked(pool, "waf", headers()), Asked(pool, "waf", headers(), 10)
        pool.requests.cancel(cancelled.call, CancelReason.CLIENT_DISCONNECT)
        assert agent.connection.errors == 0
        await all_done(timed_out)
        assert agent.connection.errors == 1
        answered = Asked(pool, "waf", headers("ok"), 10)
        await turns()
        agent.answer(agent.read()[-1], Decision(Block(403)))
        await all_done(answered)
        assert agent.connection.errors == 0, "it answers again; what it decides is its own affair"
        assert dict(pool.requests.failed) == {"request_timeout": 1, "cancelled": 1}
        assert_nothing_left(pool)


@pytest.mark.parametrize("dialect", Dialect)
@on_loop
async def test_time_outs_that_are_shorter_than_the_pools_own_take_the_agent_from_nobody(dialect: Dialect) -> None:
    with pool_of_this_loop() as pool:
        agent = PairedAgent(pool, dialect=dialect)
        hasty = [Asked(pool, "waf", headers(str(n)), 0.01) for n in range(2 * pool.options.breaker_threshold)]
        await all_done(*hasty)
        assert {type(one.outcome) for one in hasty} == {RequestTimeout}
        assert agent.connection.errors == 0
        assert agent.connection.agent.breaker is None
        patient = Asked(pool, "waf", headers("patient"))
        await turns()
        agent.answer([seen for seen in agent.read() if seen.is_event][-1])
        await all_done(patient)
        assert isinstance(patient.outcome, Decision)


@on_loop
async def test_event_that_waited_behind_another_one_times_out_without_a_word_against_the_agent() -> None:
    with pool_of_this_loop(PoolOptions(request_timeout=0.2)) as pool:
        agent = PairedAgent(pool)
        exchange = Exchange("waf")
        first = Asked(pool, exchange, headers(has_body=True), 10)
        waiting = Asked(pool, exchange, chunk())
        seen = await next_event(agent)
        await until(lambda: monotonic() - waiting.call.began > 0.15)
        agent.answer(seen)
        await all_done(first, waiting)
        assert isinstance(waiting.outcome, RequestTimeout)
        assert agent.connection.errors == 0, "it had the event for a part of the time"


@on_loop
async def test_late_answers_close_the_circuit_that_time_outs_have_opened() -> None:
    options = PoolOptions(request_timeout=0.01, breaker_threshold=2, unhealthy_after=2)
    with pool_of_this_loop(options) as pool:
        agent = PairedAgent(pool)
        slow = [Asked(pool, "waf", headers(str(n))) for n in range(2)]
        await all_done(*slow)
        assert agent.connection.agent.breaker is not None
        assert not agent.connection.is_healthy
        agent.answer(next(seen for seen in agent.read() if seen.is_event))
        await until(lambda: pool.requests.late == 1)
        assert agent.connection.agent.breaker is None
        assert agent.connection.is_healthy


@on_loop
async def test_needs_more_where_nothing_comes_is_no_answer_and_nothing_against_the_agent() -> None:
    """Whether there is a body the proxy says, and core agents are not told."""
    with pool_of_this_loop() as pool:
        agent = PairedAgent(pool, dialect=Dialect.CORE)
        for _ in range(2 * pool.options.breaker_threshold):
            asked = Asked(pool, "waf", headers())
            agent.answer(await next_event(agent), Decision(None, needs_more=True))
            await all_done(asked)
            assert isinstance(asked.outcome, BadAnswer)
        assert agent.connection.errors == 0
        assert agent.connection.agent.breaker is None


MS = st.integers(1_760_000_000_000, 2_280_000_000_000)  # Until 2042.


@given(st.integers(0, 63), st.integers(0, 63), MS, st.integers(1, 10**9))
def test_request_ids_are_exact_in_a_double_never_0_and_unique_over_shards_and_lives(
    shard: int, other: int, now_ms: int, later_ms: int
) -> None:
    first = first_request_id(shard, now_ms)
    assert 0 < first < 2**53
    assert first % 64 == shard
    # As many as a life can use: 256 in a millisecond, and the next one begins above them.
    last = first + 64 * (256 * later_ms - 1)
    assert first_request_id(shard, now_ms + later_ms) > last
    if other != shard:
        mine = {first + 64 * n for n in range(100)}
        assert not mine & set(itertools.islice(itertools.count(first_request_id(other, now_ms), 64), 100))
