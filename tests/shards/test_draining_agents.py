"""Agents that say, in a ping, that they drain: they get nothing new, and what they have in hand is answered."""

import pytest
from support.engine import (
    Asked,
    PairedAgent,
    all_done,
    answered_tag,
    chunk,
    headers,
    next_event,
    on_loop,
    pool_of_this_loop,
    turns,
)
from support.pools import until

from dialout import Decision, Dialect, Health, HealthState, Pong, codec_for
from dialout.proxy.errors import AgentUnavailable
from shards.calls import Exchange


def draining_ping(dialect: Dialect) -> bytes:
    return codec_for(dialect).encode_ping(sequence=7, timestamp_ms=7, draining=True)


@pytest.mark.parametrize("dialect", list(Dialect))
@on_loop
async def test_agent_that_drains_gets_nothing_new_and_ends_what_has_begun(dialect: Dialect) -> None:
    with pool_of_this_loop() as pool:
        goes = PairedAgent(pool, dialect=dialect)
        exchange = Exchange("waf")
        first = Asked(pool, exchange, headers("first", has_body=True))
        seen = await next_event(goes)
        stays = PairedAgent(pool, dialect=dialect)
        goes.send(draining_ping(dialect))
        await until(lambda: goes.connection.health is HealthState.DRAINING)
        for _ in range(3):
            new = Asked(pool, "waf", headers("new"))
            stays.answer(await next_event(stays))
            await all_done(new)
        # The rest of a request that it has seen is for it alone.
        goes.answer(seen, Decision.more())
        await all_done(first)
        last = Asked(pool, exchange, chunk("last"))
        goes.answer(await next_event(goes))
        await all_done(last)
        assert answered_tag(last.outcome) == "last"
        stays.close()
        await until(lambda: len(pool.connections) == 1)
        alone = Asked(pool, "waf", headers("alone"))
        assert isinstance(alone.error, AgentUnavailable)


@pytest.mark.parametrize("moves", [False, True], ids=["stays", "moves"])
@pytest.mark.parametrize("dialect", [Dialect.SDK, Dialect.CORE])
@on_loop
async def test_report_of_good_health_brings_no_requests_back_to_an_agent_that_drains(
    dialect: Dialect, moves: bool
) -> None:
    """Its health may be reported from time to time, by another part of it, until it ends."""
    with pool_of_this_loop() as pool, pool_of_this_loop(shard=1) as other:
        agent = PairedAgent(pool, dialect=dialect)
        agent.send(draining_ping(dialect))
        await until(lambda: agent.connection.health is HealthState.DRAINING)
        if moves:
            offer = agent.connection.as_offer(0.0, 0)
            agent.connection = other.adopt(offer, pool.let_go(agent.connection))
        before = agent.connection.frames
        agent.send(agent.codec.encode_health(Health(HealthState.HEALTHY), agent_id="waf", timestamp_ms=1))
        await until(lambda: agent.connection.frames > before)
        asked = Asked(other if moves else pool, "waf", headers("new"))
        assert isinstance(asked.error, AgentUnavailable)


@pytest.mark.parametrize("dialect", list(Dialect))
@on_loop
async def test_pong_stands_behind_all_that_the_agent_was_sent(dialect: Dialect) -> None:
    codec = codec_for(dialect)
    with pool_of_this_loop() as pool:
        agent = PairedAgent(pool, dialect=dialect)
        asked = Asked(pool, "waf", headers("before"))
        agent.send(draining_ping(dialect))
        await until(lambda: agent.connection.health is HealthState.DRAINING)
        late = Asked(pool, "waf", headers("behind"))
        frames = agent.frames()
        while len(frames) < 2:
            await turns()
            frames += agent.frames()
        kinds = [frame_type for frame_type, _ in frames]
        assert kinds == [0x10, dialect.pong_type]
        _, _, pong = codec.decode_event(*frames[1])
        assert isinstance(pong, Pong)
        assert pong.mark == 7
        assert isinstance(late.error, AgentUnavailable)
        assert asked.outcome is None
