"""A shard that was stopped for a while: what came meanwhile counts, before anything is given up."""

import asyncio
import time

from support.engine import Asked, PairedAgent, all_done, headers, on_loop, pool_of_this_loop
from support.pools import until

from dialout import Dialect
from dialout.awake import MOST_SECONDS, AwakeClock
from ipc.messages import Established
from ipc.options import PoolOptions

STOP = MOST_SECONDS + 0.3


def stop() -> None:
    """Stand still, as a process does that is stopped."""
    time.sleep(STOP)


@on_loop
async def test_an_agent_whose_pong_waits_to_be_read_is_not_dead() -> None:
    with pool_of_this_loop(PoolOptions(ping_interval=30.0, ping_timeout=0.5)) as pool:
        agent = PairedAgent(pool, dialect=Dialect.CORE)
        agent.connection.answers_pings = True
        agent.connection.ping(7, pool.clock.time())
        agent.frame(0x42, b'{"sequence":7,"timestamp_ms":0}')
        stop()
        pool._upkeep_round = agent.connection.number % 30 - 1  # The next round is its turn.
        pool._upkeep()
        assert agent.connection.fd >= 0
        await until(lambda: agent.connection.pinged_at == 0)


@on_loop
async def test_an_agent_that_only_seems_dead_is_read_before_it_is_closed() -> None:
    with pool_of_this_loop(PoolOptions(ping_interval=1.0, ping_timeout=0.5)) as pool:
        agents = [PairedAgent(pool, dialect=Dialect.CORE) for _ in range(3)]
        for agent in agents:
            agent.connection.answers_pings = True
            agent.connection.ping(7, pool.clock.time() - 1)
        agents[0].frame(0x42, b'{"sequence":7,"timestamp_ms":0}')
        agents[1].frame(0x42, b'{"sequence":6,"timestamp_ms":0}')
        pool.probe("waf")
        assert [agent.connection.fd >= 0 for agent in agents] == [True, False, False]


@on_loop
async def test_an_answer_that_waits_to_be_read_is_in_time_and_speaks_for_its_agent() -> None:
    with pool_of_this_loop() as pool:
        agent = PairedAgent(pool)
        asked = Asked(pool, "waf", headers("/a"), timeout=STOP / 2)
        while not (seen := agent.read()):
            await until(lambda: True)
            pool._write_all()
        agent.answer(seen[0])
        stop()
        await all_done(asked)
        assert not isinstance(asked.outcome, Exception), asked.outcome
        assert pool.requests.failed.total() == 0


@on_loop
async def test_a_request_without_an_answer_times_out_all_the_same() -> None:
    with pool_of_this_loop() as pool:
        PairedAgent(pool)
        asked = Asked(pool, "waf", headers("/a"), timeout=0.2)
        stop()
        await all_done(asked)
        assert "no answer within" in str(asked.error)


@on_loop
async def test_a_ping_that_is_out_keeps_its_age_when_its_connection_moves() -> None:
    with pool_of_this_loop() as here, pool_of_this_loop(shard=1) as there:
        agent = PairedAgent(here, dialect=Dialect.CORE)
        agent.connection.ping(7, here.clock.time() - 5)
        # As in two processes, each of which has slept through other times.
        there.clock = AwakeClock(asyncio.get_running_loop())
        here.clock.slept += 100.0
        agent.connection.pinged_at -= 100.0
        offer = agent.connection.as_offer(0.0, 0)
        assert isinstance(offer.state, Established)
        moved = there.adopt(offer, here.let_go(agent.connection))
        assert 4.9 < time.monotonic() - moved.pinged_at < 15
