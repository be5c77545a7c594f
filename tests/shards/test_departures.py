"""Connections that leave, for another shard or for good: when they are idle, or when their time is up."""

import asyncio
import os

import pytest
from support.engine import Asked, PairedAgent, all_done, chunk, headers, on_loop, pool_of_this_loop, turns
from support.pools import until

from dialout.proxy.errors import ConnectionLost
from ipc.messages import MoveOut, Moving, Offer
from shards import departures, drain
from shards.calls import Exchange
from shards.connection import MOST_CARRIED
from shards.departures import Departures
from shards.drain import Drain
from shards.pool import AgentPool


class Supervisor:
    """The other end of a shard's departures: takes what it is sent, as long as *takes* says so."""

    def __init__(self, pool: AgentPool) -> None:
        self.takes = True
        self.held: list[Offer] = []
        self.stayed: list[int] = []
        self.departures = Departures(pool, self._send, self._hold, self.stayed.extend)

    def _send(self, message: Moving, descriptors: list[int]) -> bool:
        assert len(message.offers) == len(descriptors)
        return self.takes

    def _hold(self, offer: Offer, fd: int) -> None:
        self.held.append(offer)
        os.close(fd)


@on_loop
async def test_connection_moves_as_soon_as_nothing_is_in_flight_and_the_supervisor_takes_it() -> None:
    with pool_of_this_loop() as pool:
        supervisor = Supervisor(pool)
        agent = PairedAgent(pool)
        number = agent.connection.number
        exchange = Exchange("waf")
        asked = Asked(pool, exchange, headers(has_body=True))
        await turns()
        supervisor.takes = False
        supervisor.departures.begin(MoveOut([number, 999_999], 30.0, False))
        assert supervisor.stayed == [999_999], "nobody knows it"
        (seen,) = agent.read()
        agent.answer(seen)
        await all_done(asked)
        last = Asked(pool, exchange, chunk(), final=True)
        await turns()
        agent.answer(agent.read()[0])
        await all_done(last)
        await until(lambda: agent.connection.is_idle)
        assert number in pool.connections, "it serves on until it is taken"
        supervisor.takes = True
        await until(lambda: supervisor.held)
        assert [offer.number for offer in supervisor.held] == [number]
        assert (number in pool.connections, pool.moved_total) == (False, 1)


@pytest.mark.parametrize("force", [False, True])
@on_loop
async def test_busy_connection_whose_time_is_up_stays_or_is_forced_to_go(force: bool) -> None:
    with pool_of_this_loop() as pool:
        supervisor = Supervisor(pool)
        agent = PairedAgent(pool)
        asked = Asked(pool, "waf", headers())
        await turns()
        supervisor.departures.begin(MoveOut([agent.connection.number], 0.01, force))
        await until(lambda: supervisor.held or supervisor.stayed)
        if force:
            assert isinstance(asked.outcome, ConnectionLost)
            assert not asked.error.retry_safe
        else:
            assert supervisor.stayed == [agent.connection.number]
            agent.answer(agent.read()[0])
            await all_done(asked)
            assert agent.connection.open


@on_loop
async def test_forced_connection_with_a_large_frame_on_its_way_stays_and_still_counts_its_exchanges() -> None:
    with pool_of_this_loop() as pool:
        supervisor = Supervisor(pool)
        agent = PairedAgent(pool, send_buffer=4096)
        exchange = Exchange("waf")
        first = Asked(pool, exchange, headers("/between two events", has_body=True))
        await turns()
        agent.answer(agent.read()[0])
        await all_done(first)
        large = Asked(pool, "waf", headers("/" + "x" * 10 * MOST_CARRIED))
        await turns()
        supervisor.departures.begin(MoveOut([agent.connection.number], 0.0, True))
        assert supervisor.stayed == [agent.connection.number]
        assert isinstance(large.outcome, ConnectionLost)
        while agent.connection.has_large_frame:
            agent.read()
            await turns()
        assert (agent.connection.exchanges, agent.connection.is_idle) == (1, False)
        pool.requests.finish(exchange)
        assert (agent.connection.exchanges, agent.connection.is_idle) == (0, True)


@on_loop
async def test_after_any_number_of_orders_one_timer_looks_and_none_when_they_are_abandoned() -> None:
    class Counting(Departures):
        looks = 0

        def _look(self) -> None:
            self.looks += 1
            super()._look()

    with pool_of_this_loop() as pool:
        agent = PairedAgent(pool)
        Asked(pool, "waf", headers())
        leaving = Counting(pool, lambda *_: True, lambda *_: None, lambda _: None)
        for _ in range(20):
            leaving.begin(MoveOut([agent.connection.number], 30.0, False))
        await until(lambda: leaving.looks > 25)
        leaving.abandon()
        looks = leaving.looks
        await asyncio.sleep(5 * departures.LOOK_AGAIN)
        assert leaving.looks == looks
        assert agent.connection.open


@on_loop
async def test_shard_that_drains_lets_requests_of_several_events_come_to_their_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pool_of_this_loop() as pool:
        busy, idle = PairedAgent(pool, "busy"), PairedAgent(pool, "idle")
        exchange = Exchange("busy")
        first = Asked(pool, exchange, headers(has_body=True))
        await turns()
        busy.answer(busy.read()[0])
        await all_done(first)
        ended: list[float] = []
        draining = Drain(pool, ended.append)
        draining.begin()
        await until(lambda: idle.connection.fd < 0)
        await asyncio.sleep(3 * drain.TICK)
        assert busy.connection.fd >= 0, "it is between two events of a request"
        last = Asked(pool, exchange, chunk(), final=True)
        await turns()
        busy.answer(busy.read()[0])
        await all_done(last)
        await until(lambda: ended)
        assert busy.connection.fd < 0
        draining.close()
        # What does not come to its end is given up.
        monkeypatch.setattr(drain, "DRAIN_LIMIT", 0.05)
        stuck = PairedAgent(pool, "stuck")
        pool.draining = False
        Asked(pool, "stuck", headers())
        again = Drain(pool, ended.append)
        again.begin()
        await until(lambda: len(ended) == 2)
        assert stuck.connection.fd >= 0, "whoever closes the pool closes it"
        again.close()
