"""Calls: their time, their numbers, and their counts."""

import asyncio
import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.engine import Asked, PairedAgent, all_done, assert_nothing_left, headers, on_loop, pool_of_this_loop, turns

from dialout import Block, CancelReason, Decision
from dialout.proxy.errors import RequestTimeout
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
    with pool_of_this_loop() as pool:
        agent = PairedAgent(pool)
        timed_out, cancelled = Asked(pool, "waf", headers(), 0.01), Asked(pool, "waf", headers())
        pool.requests.cancel(cancelled.call, CancelReason.CLIENT_DISCONNECT)
        assert agent.connection.errors == 0
        await all_done(timed_out)
        assert agent.connection.errors == 1
        answered = Asked(pool, "waf", headers("ok"))
        await turns()
        agent.answer(agent.read()[-1], Decision(Block(403)))
        await all_done(answered)
        assert agent.connection.errors == 0, "it answers again; what it decides is its own affair"
        assert dict(pool.requests.failed) == {"request_timeout": 1, "cancelled": 1}
        assert_nothing_left(pool)


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
