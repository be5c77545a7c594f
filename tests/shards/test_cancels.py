"""Cancels: an agent is told once that a request is over, if it wants to know."""

from collections.abc import Callable

import msgspec
import pytest
from support.engine import (
    Asked,
    PairedAgent,
    all_done,
    cancels,
    chunk,
    headers,
    on_loop,
    pool_of_this_loop,
    tag_of,
    turns,
)
from support.serving import EVERYTHING

from dialout import Cancel, CancelReason, Dialect
from dialout.proxy.errors import BadAnswer, RequestCancelled
from ipc.options import PoolOptions
from shards.calls import Exchange
from shards.pool import AgentPool


def ends_by_cancel(pool: AgentPool, _agent: PairedAgent, asked: Asked) -> None:
    pool.requests.cancel(asked.call, CancelReason.CLIENT_DISCONNECT)
    pool.requests.finish(asked.exchange)


def ends_by_answer(pool: AgentPool, agent: PairedAgent, asked: Asked) -> None:
    pool.requests.finish(asked.exchange)
    agent.frame(0x20, b'{"request_id":%d,"decision":"allow"}' % asked.call.request_id)


def ends_by_bad_answer(pool: AgentPool, agent: PairedAgent, asked: Asked) -> None:
    agent.frame(0x20, b'{"request_id":%d,"decision":"perhaps"}' % asked.call.request_id)
    pool.requests.finish(asked.exchange)


def ends_by_timeout(pool: AgentPool, _agent: PairedAgent, asked: Asked) -> None:
    pool.requests.finish(asked.exchange)


@pytest.mark.parametrize("end", [ends_by_cancel, ends_by_answer, ends_by_bad_answer, ends_by_timeout])
@pytest.mark.parametrize("final", [True, False])
@pytest.mark.parametrize("free", [True, False])
@on_loop
async def test_sdk_agent_is_told_once_that_a_request_is_over(
    end: Callable[[AgentPool, PairedAgent, Asked], None], final: bool, free: bool
) -> None:
    with pool_of_this_loop(PoolOptions(free_agent_memory=free)) as pool:
        agent = PairedAgent(pool)
        asked = Asked(pool, Exchange("waf"), headers(), 0.05, final=final)
        await turns()
        agent.read()
        end(pool, agent, asked)
        await all_done(asked)
        pool.requests.finish(asked.exchange)
        pool.requests.finish(asked.exchange)
        late = Asked(pool, asked.exchange, headers("late"), final=True) if asked.exchange.over else None
        assert late is None or late.outcome is not None
        await turns()
        reasons = [cancel.reason for cancel in cancels(agent)]
        expected = {ends_by_cancel: CancelReason.CLIENT_DISCONNECT, ends_by_timeout: CancelReason.TIMEOUT}
        if end in expected:
            assert reasons == [expected[end]]
        else:
            assert reasons == ([CancelReason.MANUAL] if free else [])


@on_loop
async def test_sdk_agent_is_told_that_a_request_is_over_whose_last_event_never_went_out() -> None:
    with pool_of_this_loop() as pool:
        agent = PairedAgent(pool)
        # The last event comes after the failure, or gives up while it waits.
        failed, waiting = Exchange("waf"), Exchange("waf")
        first = Asked(pool, failed, headers("first", has_body=True))
        agent.frame(0x20, b"{}")
        await all_done(first)
        assert isinstance(Asked(pool, failed, chunk(), final=True).outcome, BadAnswer)
        second = Asked(pool, waiting, headers("second", has_body=True))
        last = Asked(pool, waiting, chunk(), 0.01, final=True)
        await all_done(last)
        await turns()
        *_, seen = agent.read()
        agent.answer(seen)
        await all_done(second)
        await turns()
        assert len(cancels(agent)) == 1
        assert (failed.forgotten, waiting.forgotten) == (True, True)


@pytest.mark.parametrize(
    ("dialect", "cancellation", "expected"),
    [(Dialect.CORE, True, [CancelReason.MANUAL]), (Dialect.CORE, False, []), (Dialect.SDK, False, [])],
)
@on_loop
async def test_agent_is_told_of_a_cancel_if_it_wants_to_know_and_core_agents_of_nothing_else(
    dialect: Dialect, cancellation: bool, expected: list[CancelReason]
) -> None:
    with pool_of_this_loop() as pool:
        capabilities = msgspec.structs.replace(EVERYTHING, cancellation=cancellation)
        agent = PairedAgent(pool, dialect=dialect, capabilities=capabilities)
        asked = Asked(pool, "waf", headers())
        await turns()
        (seen,) = agent.read()
        pool.requests.cancel(asked.call, CancelReason.MANUAL)
        pool.requests.cancel(asked.call, CancelReason.TIMEOUT)
        assert isinstance(asked.outcome, RequestCancelled)
        answered = Asked(pool, "waf", headers("answered"))
        await turns()
        found = agent.read()
        assert [one.event for one in found[:-1]] == [Cancel(reason) for reason in expected]
        assert tag_of(found[-1].event) == "answered"
        assert all(one.correlation_id == seen.correlation_id for one in found[:-1])
        agent.answer(found[-1])
        await all_done(answered)
        await turns()
        assert agent.read() == []
