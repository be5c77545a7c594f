"""Exchanges: the events of one request, in order, on one connection, and with one end."""

import sys
from collections.abc import Callable

import pytest
from support.engine import (
    Asked,
    PairedAgent,
    all_done,
    answered_tag,
    assert_nothing_left,
    cancels,
    chunk,
    headers,
    on_loop,
    pool_of_this_loop,
    tag_of,
    turns,
)
from support.serving import EVERYTHING

from dialout import AgentEvent, CancelReason, Capabilities, Dialect, Event, RequestBodyChunk
from dialout.proxy.errors import RequestTimeout
from shards.calls import Exchange
from shards.pool import AgentPool


@pytest.mark.parametrize("dialect", Dialect)
@on_loop
async def test_events_of_an_exchange_go_out_one_at_a_time_in_order_to_one_connection(dialect: Dialect) -> None:
    with pool_of_this_loop() as pool:
        agents = [PairedAgent(pool, dialect=dialect) for _ in range(3)]
        exchange = Exchange("waf")
        events = (headers("h", has_body=True), chunk("c0", 0, last=False), chunk("c1", 1))
        asked = [Asked(pool, exchange, event) for event in events]
        for number, one in enumerate(asked):
            await turns()
            seen = [(agent, found) for agent in agents for found in agent.read()]
            assert [tag_of(found.event) for _, found in seen] == [tag_of(events[number])]
            assert [len(later.outcomes) for later in asked[number:]] == [0] * (3 - number)
            seen[0][0].answer(seen[0][1])
            await all_done(one)
            assert answered_tag(one.outcome) == tag_of(events[number])
        assert_nothing_left(pool)


FAILURES: dict[str, Callable[[AgentPool, PairedAgent, Asked], None]] = {
    "bad answer": lambda _pool, agent, _asked: agent.frame(0x20, b'{"request_id":0,"decision":"allow"}'),
    "cancel": lambda pool, _agent, asked: pool.requests.cancel(asked.call, CancelReason.MANUAL),
    "close": lambda _pool, agent, _asked: agent.close(),
    "timeout": lambda _pool, _agent, _asked: None,
}


@pytest.mark.parametrize("failure", FAILURES)
@on_loop
async def test_later_events_fail_after_a_failure_for_the_same_reason_in_order(failure: str) -> None:
    with pool_of_this_loop() as pool:
        agent = PairedAgent(pool)
        exchange = Exchange("waf")
        order: list[int] = []
        events: tuple[AgentEvent, ...] = (headers(has_body=True), chunk("a", last=False), chunk("b", 1))
        asked = [
            Asked(
                pool,
                exchange,
                event,
                0.05 if failure == "timeout" and number == 0 else 10.0,
                on_done=lambda n=number: order.append(n),  # type: ignore[misc]  # a default argument is no Callable[[], None] to mypy
            )
            for number, event in enumerate(events)
        ]
        await turns()
        (seen,) = agent.read()
        FAILURES[failure](pool, agent, asked[0])
        await all_done(*asked)
        assert order == [0, 1, 2]
        assert {one.error.code for one in asked} == {asked[0].error.code}
        later = Asked(pool, exchange, chunk("c", 2))
        assert later.error.code == asked[0].error.code
        # The answer comes all the same, and must not be taken for that of a chunk.
        agent.answer(seen)
        await turns()
        assert [found for found in agent.read() if isinstance(found.event, RequestBodyChunk)] == []
        assert pool.requests.answered == 0
        assert_nothing_left(pool)


@pytest.mark.parametrize("capabilities", [EVERYTHING, Capabilities(events=int(Event.REQUEST_HEADERS))])
@on_loop
async def test_thousands_of_waiting_events_end_one_after_the_other_not_one_inside_the_other(
    capabilities: Capabilities,
) -> None:
    many = 3 * sys.getrecursionlimit()

    with pool_of_this_loop() as pool:
        agent = PairedAgent(pool, capabilities=capabilities)
        exchange = Exchange("waf")
        first = Asked(pool, exchange, headers(has_body=True))
        later = [Asked(pool, exchange, chunk(str(n), n, last=False)) for n in range(many)]
        await turns()
        (seen,) = agent.read()
        if capabilities is EVERYTHING:
            agent.frame(0x20, b"{}")
        else:
            agent.answer(seen)
        await all_done(first, *later)
        assert len({one.error.code for one in later}) == 1
        assert_nothing_left(pool)


@on_loop
async def test_event_that_is_submitted_from_a_callback_does_not_overtake_those_that_wait() -> None:
    with pool_of_this_loop() as pool:
        agent = PairedAgent(pool)
        exchange = Exchange("waf")
        added: list[Asked] = []
        Asked(
            pool,
            exchange,
            headers("h", has_body=True),
            on_done=lambda: added.append(Asked(pool, exchange, chunk("third", 2))),
        )
        Asked(pool, exchange, chunk("second", 1, last=False))
        order: list[str] = []
        while len(order) < 3:
            await turns()
            for seen in agent.read():
                order.append(tag_of(seen.event))
                agent.answer(seen)
        assert order == ["h", "second", "third"]
        await all_done(*added)


@on_loop
async def test_waiting_event_that_times_out_leaves_the_one_in_flight_alone_and_ends_the_exchange() -> None:
    with pool_of_this_loop() as pool:
        agent = PairedAgent(pool)
        exchange = Exchange("waf")
        first = Asked(pool, exchange, headers("h", has_body=True))
        hasty = Asked(pool, exchange, chunk("a", last=False), 0.01)
        patient = Asked(pool, exchange, chunk("b", 1), final=True)
        await all_done(hasty)
        assert isinstance(hasty.outcome, RequestTimeout)
        assert (first.outcome, patient.outcome) == (None, None)
        (seen,) = agent.read()
        agent.answer(seen)
        await all_done(first, patient)
        assert answered_tag(first.outcome) == "h"
        assert isinstance(patient.outcome, RequestTimeout)
        await turns()
        assert len(cancels(agent)) == 1, "the agent is told to forget it, once"
        assert_nothing_left(pool)
