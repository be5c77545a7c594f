"""The choice of a connection: limits, sessions, circuits and health."""

import msgspec
import pytest
from support.engine import (
    Asked,
    PairedAgent,
    Seen,
    all_done,
    answered_tag,
    assert_nothing_left,
    chunk,
    headers,
    on_loop,
    pool_of_this_loop,
    turns,
)
from support.pools import until
from support.serving import EVERYTHING

from dialout import Capabilities, Dialect, Event, ResponseHeaders
from dialout.proxy.errors import AgentUnavailable, BadRequest, CannotReceive, CircuitOpen, ConnectionLost, Overloaded
from ipc.options import PoolOptions
from shards.calls import Exchange


@pytest.mark.parametrize("declared", [1, 3, None])
@on_loop
async def test_concurrency_is_never_above_what_the_agent_declared(declared: int | None) -> None:
    with pool_of_this_loop(PoolOptions(max_concurrent_per_connection=5)) as pool:
        capabilities = msgspec.structs.replace(EVERYTHING, max_concurrent=declared)
        agent = PairedAgent(pool, capabilities=capabilities)
        limit = declared or 5
        asked = [Asked(pool, "waf", headers(str(n))) for n in range(limit)]
        assert isinstance(Asked(pool, "waf", headers("above")).outcome, Overloaded)
        await turns()
        got = agent.read()
        assert len(got) == limit
        agent.answer(got[0])
        await all_done(asked[0])
        assert Asked(pool, "waf", headers("again")).outcome is None


@on_loop
async def test_first_event_that_the_agent_does_not_take_leaves_the_exchange_usable() -> None:
    only = Capabilities(events=int(Event.RESPONSE_HEADERS))

    with pool_of_this_loop() as pool:
        agent = PairedAgent(pool, capabilities=only)
        exchange = Exchange("waf")
        refused = Asked(pool, exchange, headers())
        assert isinstance(refused.outcome, CannotReceive)
        taken = Asked(pool, exchange, ResponseHeaders(200, {}))
        assert isinstance(Asked(pool, exchange, chunk()).outcome, CannotReceive | None)
        await turns()
        agent.answer(agent.read()[0])
        await all_done(taken)
        assert answered_tag(taken.outcome) == "ResponseHeaders"


@on_loop
async def test_why_none_is_said_of_the_connections_that_take_the_event() -> None:
    with pool_of_this_loop(PoolOptions(unhealthy_after=1)) as pool:
        able = PairedAgent(pool)
        PairedAgent(pool, capabilities=Capabilities(events=int(Event.RESPONSE_HEADERS)))
        Asked(pool, "waf", headers())
        able.frame(0x20, b"{}")
        await until(lambda: not able.connection.open)
        assert isinstance(Asked(pool, "waf", headers()).outcome, AgentUnavailable)
        able.frame(0xF1, b"{}")


@on_loop
async def test_event_that_cannot_be_written_is_a_bad_request_and_costs_the_agent_nothing() -> None:
    with pool_of_this_loop(PoolOptions(breaker_threshold=1, unhealthy_after=1)) as pool:
        agent = PairedAgent(pool)
        for event in (headers("/\ud800"), headers("/" + "x" * 17_000_000)):
            assert isinstance(Asked(pool, "waf", event).outcome, BadRequest)
        asked = Asked(pool, "waf", headers("good"))
        await turns()
        agent.answer(agent.read()[0])
        await all_done(asked)
        assert answered_tag(asked.outcome) == "good"
        assert_nothing_left(pool)


@on_loop
async def test_session_sticks_until_its_connection_cannot_take_it_or_its_time_is_up() -> None:
    with pool_of_this_loop(PoolOptions(sticky_idle=0.1, max_concurrent_per_connection=1)) as pool:
        agents = [PairedAgent(pool) for _ in range(3)]

        async def reader(session: str | None) -> tuple[PairedAgent, Seen, Asked]:
            asked = Asked(pool, Exchange("waf", session), headers(), final=True)
            await turns()
            ((agent, seen),) = [(agent, seen) for agent in agents for seen in agent.read() if seen.is_event]
            return agent, seen, asked

        async def ask(session: str | None) -> PairedAgent:
            agent, seen, asked = await reader(session)
            agent.answer(seen)
            await all_done(asked)
            return agent

        first = await ask("s")
        for _ in range(3):
            assert await ask(None) is not first, "it was used longer ago"
            assert await ask("s") is first
        busy, _, _ = await reader("s")
        assert busy is first
        elsewhere = await ask("s")
        assert elsewhere is not first
        assert await ask("s") is elsewhere, "it sticks to the new one"
        key = ("waf", "s")
        await until(lambda: pool._sessions.sweep(pool._loop.time()) or len(pool._sessions) == 0)
        assert pool._sessions.get(key, pool._loop.time()) is None


@on_loop
async def test_session_does_not_get_past_an_open_circuit() -> None:
    with pool_of_this_loop(PoolOptions(breaker_threshold=1, unhealthy_after=100)) as pool:
        agent = PairedAgent(pool)
        asked = Asked(pool, Exchange("waf", "s"), headers(), final=True)
        agent.frame(0x20, b"{}")
        await all_done(asked)
        for session in ("s", None):
            assert isinstance(Asked(pool, Exchange("waf", session), headers()).outcome, CircuitOpen)


@on_loop
async def test_circuit_opens_for_an_agent_that_crashes_at_every_request() -> None:
    with pool_of_this_loop(PoolOptions(breaker_threshold=3, breaker_open_for=0.05)) as pool:
        for _ in range(3):
            agent = PairedAgent(pool)
            asked = Asked(pool, "waf", headers())
            await turns()
            agent.close()
            await all_done(asked)
            assert isinstance(asked.outcome, ConnectionLost)
        agent = PairedAgent(pool)
        refused = Asked(pool, "waf", headers())
        assert isinstance(refused.outcome, CircuitOpen)
        assert refused.error.retry_safe
        # After its time one trial, and when that works everything.
        trials: list[Asked] = []

        def trial() -> bool:
            trials.append(Asked(pool, "waf", headers("trial")))
            return trials[-1].outcome is None

        await until(trial)
        assert isinstance(Asked(pool, "waf", headers()).outcome, CircuitOpen)
        await turns()
        agent.answer(agent.read()[0])
        await all_done(trials[-1])
        assert Asked(pool, "waf", headers()).outcome is None


@on_loop
async def test_connection_that_fails_is_passed_over_until_it_answers_a_ping_or_says_that_it_is_well() -> None:
    options = PoolOptions(unhealthy_after=2, breaker_threshold=100)
    with pool_of_this_loop(options) as pool:
        agent = PairedAgent(pool, dialect=Dialect.CORE)
        for _ in range(2):
            asked = Asked(pool, "waf", headers())
            agent.frame(0x20, b"{}")
            await all_done(asked)
        assert isinstance(Asked(pool, "waf", headers()).outcome, AgentUnavailable)
        agent.connection.ping(7, pool._loop.time())
        agent.frame(0x42, b'{"sequence":6,"timestamp_ms":0}')
        await turns()
        assert not agent.connection.open, "that was the answer to another ping"
        agent.frame(0x42, b'{"sequence":7,"timestamp_ms":0}')
        await until(lambda: agent.connection.open)
        for state, is_open in (("draining", False), ("healthy", True), ("unhealthy", False), ("degraded", True)):
            agent.frame(0x30, b'{"agent_id":"waf","state":"%b","timestamp_ms":1}' % state.encode())
            await until(lambda: agent.connection.open is is_open)  # noqa: B023  (awaited at once)
