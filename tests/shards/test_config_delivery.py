"""Configurations on their way to the connections of a pool."""

import asyncio

import msgspec
import pytest
from support.engine import PAUSE, RESUME, PairedAgent, next_event, on_loop, pool_of_this_loop, turns
from support.pools import pool_with, run, until
from support.serving import EVERYTHING, ServingAgent, allow

from dialout import ALLOWED, Configure, Decision, Dialect, RequestHeaders
from ipc.options import PoolOptions
from shards import config_delivery
from shards.config_delivery import ConfigDelivery

GET = RequestHeaders("GET", "/", {})


def configures(agent: ServingAgent) -> list[object]:
    """The configurations that an agent was brought."""
    return [event.config for _, _, event in agent.seen if isinstance(event, Configure)]


def silent_on_configuration(event: object) -> Decision | None:
    """Answer everything else."""
    return None if isinstance(event, Configure) else ALLOWED


def test_agent_that_never_answers_a_configuration_is_used_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config_delivery, "ANSWER_TIMEOUT", 0.05)

    async def test() -> None:
        options = PoolOptions(breaker_threshold=1, unhealthy_after=1)
        mute = ("waf", Dialect.CORE, silent_on_configuration, EVERYTHING)
        async with pool_with(mute, mute, options=options) as (pool, agents):
            delivery = ConfigDelivery(pool)
            delivery.push(b'{"v":1}', ["waf", "nobody"])
            await until(lambda: pool.requests.failed["request_timeout"] == 2)
            assert [configures(agent) for agent in agents] == [[{"v": 1}], [{"v": 1}]]
            answers = [await pool.send_request_headers("waf", GET) for _ in range(4)]
            assert {answer.connection_id for answer in answers} == {agent.connection_id for agent in agents}
            delivery.close()

    run(test)


def test_many_connections_are_told_over_several_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config_delivery, "AT_ONCE", 1)

    async def test() -> None:
        crowd = [(f"waf-{n}", Dialect.CORE, allow, EVERYTHING) for n in range(5)]
        async with pool_with(*crowd) as (pool, agents):
            delivery = ConfigDelivery(pool)
            delivery.push(b'{"v":1}', [agent_id for agent_id, *_ in crowd])
            await until(lambda: pool.requests.answered == 5)
            assert [configures(agent) for agent in agents] == [[{"v": 1}]] * 5
            delivery.close()

    run(test)


def test_connection_without_room_does_not_hold_up_others_and_gets_the_newest_later() -> None:
    async def test() -> None:
        one = msgspec.structs.replace(EVERYTHING, max_concurrent=1)
        async with pool_with(
            ("busy", Dialect.CORE, lambda event: None if isinstance(event, RequestHeaders) else ALLOWED, one),
            ("gone", Dialect.CORE, lambda _: None, one),
            ("free", Dialect.CORE, allow, EVERYTHING),
        ) as (pool, (busy, gone, free)):
            delivery = ConfigDelivery(pool)
            asking = [asyncio.create_task(pool.send_request_headers(name, GET)) for name in ("busy", "gone")]
            await until(lambda: busy.seen and gone.seen)
            delivery.push(b'{"v":1}', ["busy", "gone", "free"])
            await until(lambda: configures(free))
            delivery.push(b'{"v":2}', ["busy"])
            gone.sock.shutdown(2)
            asking[0].cancel()
            await until(lambda: configures(busy))
            assert configures(busy) == [{"v": 2}]
            assert configures(free) == [{"v": 1}]
            assert configures(gone) == []
            await until(lambda: not delivery._waiting)
            delivery.push(b'{"v":3}', ["free"])
            await until(lambda: configures(free) == [{"v": 1}, {"v": 3}])
            await asyncio.gather(*asking, return_exceptions=True)
            delivery.close()

    run(test)


@on_loop
async def test_connection_moves_behind_the_configuration_that_it_waits_for() -> None:
    with pool_of_this_loop() as pool:
        agent = PairedAgent(pool, dialect=Dialect.CORE)
        delivery = ConfigDelivery(pool)
        agent.send(PAUSE)
        await until(lambda: agent.connection.paused)
        for version in (1, 2):
            delivery.push(b'{"v":%d}' % version, ["waf"])
        await turns()
        assert not agent.connection.is_idle, "in the next shard nobody would bring it"
        agent.send(RESUME)
        seen = await next_event(agent)
        assert isinstance(seen.event, Configure)
        assert seen.event.config == {"v": 2}
        assert not agent.connection.is_idle
        agent.answer(seen)
        await until(lambda: agent.connection.is_idle)
        assert agent.connection.exchanges == 0
        delivery.close()
