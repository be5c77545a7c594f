"""Agents that ask for a pause: new requests fail with the configured policy, or wait."""

import pytest
from support.engine import (
    PAUSE,
    RESUME,
    Asked,
    PairedAgent,
    Seen,
    all_done,
    answered_tag,
    chunk,
    headers,
    on_loop,
    pool_of_this_loop,
    tag_of,
    turns,
)
from support.pools import until

from dialout import CancelReason, Dialect
from dialout.proxy.errors import FlowControlPaused, RequestTimeout
from ipc.options import FlowControlMode, PoolOptions
from shards.calls import Exchange


@pytest.mark.parametrize(("mode", "policy"), [("fail-closed", "closed"), ("fail-open", "open")])
@on_loop
async def test_paused_agent_fails_new_requests_at_once_with_the_policy_that_is_configured(
    mode: str, policy: str
) -> None:
    with pool_of_this_loop(PoolOptions(flow_control=FlowControlMode(mode))) as pool:
        agent = PairedAgent(pool, dialect=Dialect.CORE)
        exchange = Exchange("waf")
        begun = Asked(pool, exchange, headers("begun", has_body=True))
        await turns()
        agent.answer(agent.read()[0])
        await all_done(begun)
        agent.send(PAUSE)
        await until(lambda: agent.connection.paused)
        refused = Asked(pool, "waf", headers())
        assert isinstance(refused.outcome, FlowControlPaused)
        assert (refused.error.policy, refused.error.retry_safe) == (policy, True)
        follows = Asked(pool, exchange, chunk("follows"))
        await turns()
        agent.answer(agent.read()[0])
        await all_done(follows)
        assert answered_tag(follows.outcome) == "follows", "a pause is for new requests only"
        PairedAgent(pool, dialect=Dialect.CORE)
        assert Asked(pool, "waf", headers()).outcome is None, "not while another connection goes on"
        agent.send(RESUME)
        await until(lambda: agent.connection.open)


@on_loop
async def test_request_waits_for_a_paused_agent_where_that_is_configured() -> None:
    options = PoolOptions(flow_control=FlowControlMode.WAIT, flow_control_wait=5.0)
    with pool_of_this_loop(options) as pool:
        agent = PairedAgent(pool, dialect=Dialect.CORE)
        agent.send(PAUSE)
        await until(lambda: agent.connection.paused)
        waits, cancelled = Asked(pool, "waf", headers("waits")), Asked(pool, "waf", headers("cancelled"))
        hasty = Asked(pool, "waf", headers("hasty"), 0.03)
        await all_done(hasty)
        assert isinstance(hasty.outcome, RequestTimeout)
        pool.requests.cancel(cancelled.call, CancelReason.MANUAL)
        assert waits.outcome is None
        agent.send(RESUME)
        seen: list[Seen] = []
        while not seen:
            await until(lambda: agent.connection.in_flight)
            await turns()
            seen = agent.read()
        assert [tag_of(one.event) for one in seen] == ["waits"]
        agent.answer(seen[0])
        await all_done(waits)


# 15.5 s are kept as 16, and the half second is not time that has been waited.
@pytest.mark.parametrize("seconds", [None, 15.5, 0.5])
@on_loop
async def test_wait_for_a_paused_agent_is_as_long_as_configured_whatever_the_timeout(seconds: float | None) -> None:
    options = PoolOptions(flow_control=FlowControlMode.WAIT, flow_control_wait=0.06)
    with pool_of_this_loop(options) as pool:
        agent = PairedAgent(pool, dialect=Dialect.CORE)
        agent.send(PAUSE)
        await until(lambda: agent.connection.paused)
        asked = Asked(pool, "waf", headers(), seconds)
        assert asked.outcome is None
        began = pool._loop.time()
        await all_done(asked)
        assert isinstance(asked.outcome, FlowControlPaused)
        assert asked.error.policy == "closed"
        assert pool._loop.time() - began >= 0.05, "it gave up before its time"
