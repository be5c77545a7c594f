"""Calls and exchanges: one outcome each, in order, and never an allow that no agent gave."""

import asyncio
import itertools
import math
import sys
from collections.abc import Callable, Iterator

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.engine import (
    Asked,
    PairedAgent,
    Seen,
    answered_tag,
    assert_nothing_left,
    chunk,
    headers,
    pool_of_this_loop,
    run,
    tag_of,
    turns,
)
from support.fences import descriptors, new_descriptors
from support.pools import until
from support.serving import EVERYTHING

from dialout import (
    ALLOW,
    AgentEvent,
    Block,
    BodyMutation,
    Cancel,
    CancelReason,
    Capabilities,
    Decision,
    Dialect,
    Event,
    GuardrailInspect,
    RequestBodyChunk,
    RequestComplete,
    RequestHeaders,
    ResponseBodyChunk,
    ResponseHeaders,
    WebSocketFrame,
)
from dialout.proxy.errors import (
    AgentUnavailable,
    BadAnswer,
    BadRequest,
    CannotReceive,
    CircuitOpen,
    ConnectionLost,
    FlowControlPaused,
    Overloaded,
    RequestCancelled,
    RequestTimeout,
)
from ipc.events import CloseCode
from ipc.options import FlowControlMode, PoolOptions
from shards.calls import Exchange
from shards.pool import AgentPool
from shards.requests import first_request_id

PAUSE = b'{"correlation_id":null,"action":"pause","timestamp_ms":1}'
RESUME = b'{"correlation_id":null,"action":"resume","timestamp_ms":1}'


@pytest.fixture(autouse=True)
def no_descriptor_is_left() -> Iterator[None]:
    """Every test of this file leaves none."""
    before = descriptors()
    yield
    assert new_descriptors(before) == []


def cancels(agent: PairedAgent) -> list[Cancel]:
    """The cancels among what has come; everything else is thrown away."""
    return [seen.event for seen in agent.read() if isinstance(seen.event, Cancel)]


async def all_done(*asked: Asked) -> None:
    await until(lambda: all(one.outcome is not None for one in asked))


# --- exchanges: order ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", Dialect)
def test_events_of_an_exchange_go_out_one_at_a_time_in_order_to_one_connection(dialect: Dialect) -> None:
    async def test() -> None:
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

    run(test)


FAILURES: dict[str, Callable[[AgentPool, PairedAgent, Asked], None]] = {
    "bad answer": lambda _pool, agent, _asked: agent.frame(0x20, b'{"request_id":0,"decision":"allow"}'),
    "cancel": lambda pool, _agent, asked: pool.requests.cancel(asked.call, CancelReason.MANUAL),
    "close": lambda _pool, agent, _asked: agent.close(),
    "timeout": lambda _pool, _agent, _asked: None,
}


@pytest.mark.parametrize("failure", FAILURES)
def test_later_events_fail_after_a_failure_for_the_same_reason_in_order(failure: str) -> None:
    async def test() -> None:
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

    run(test)


@pytest.mark.parametrize("capabilities", [EVERYTHING, Capabilities(events=int(Event.REQUEST_HEADERS))])
def test_thousands_of_waiting_events_end_one_after_the_other_not_one_inside_the_other(
    capabilities: Capabilities,
) -> None:
    many = 3 * sys.getrecursionlimit()

    async def test() -> None:
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

    run(test)


def test_event_that_is_submitted_from_a_callback_does_not_overtake_those_that_wait() -> None:
    async def test() -> None:
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

    run(test)


def test_waiting_event_that_times_out_leaves_the_one_in_flight_alone_and_ends_the_exchange() -> None:
    async def test() -> None:
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

    run(test)


# --- answers ------------------------------------------------------------------------------------------


MORE = Decision(None, needs_more=True)
LAST, NOT_LAST = RequestBodyChunk(0, b"c", True), RequestBodyChunk(0, b"c", False)


@pytest.mark.parametrize(
    ("event", "useful"),
    [
        (RequestHeaders("POST", "/", {}, True), True),
        (RequestHeaders("GET", "/", {}, False), False),
        (ResponseHeaders(200, {}, True), True),
        (ResponseHeaders(200, {}, False), False),
        (NOT_LAST, True),
        (LAST, False),
        (ResponseBodyChunk(0, b"c", False), True),
        (ResponseBodyChunk(0, b"c", True), False),
        (RequestComplete(200, 1), False),
        (WebSocketFrame("text", b"", True, 0), False),
        (GuardrailInspect("pii_detection", "x"), False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, msgspec.Struct) else str(value),
)
def test_needs_more_is_an_answer_only_where_more_will_come(event: AgentEvent, useful: bool) -> None:
    async def test() -> None:
        with pool_of_this_loop() as pool:
            agent = PairedAgent(pool, dialect=Dialect.CORE)
            asked = Asked(pool, "waf", event)
            await turns()
            (seen,) = agent.read()
            agent.answer(seen, MORE)
            await all_done(asked)
            assert isinstance(asked.outcome, Decision if useful else BadAnswer)
            if useful:
                assert asked.outcome == MORE

    run(test)


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (LAST, Decision(ALLOW, request_body_mutation=BodyMutation(b"new", 3))),
        (ResponseBodyChunk(0, b"c", True), Decision(ALLOW, response_body_mutation=BodyMutation(b"new", 3))),
        (headers(), None),
        (ResponseHeaders(200, {}), None),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("dialect", [Dialect.SDK, Dialect.DOCS])
def test_mutation_in_a_frame_of_its_own_answers_chunks_only(
    dialect: Dialect, event: AgentEvent, expected: Decision | None
) -> None:
    async def test() -> None:
        with pool_of_this_loop() as pool:
            agent = PairedAgent(pool, dialect=dialect)
            asked = Asked(pool, "waf", event)
            await turns()
            (seen,) = agent.read()
            assert seen.request_id is not None
            agent.frame(0x21, b'{"request_id":%d,"chunk_index":0,"data":"bmV3"}' % (seen.request_id + 64))
            await turns()
            assert (asked.outcome, pool.requests.late) == (None, 1), "it names another request"
            agent.frame(0x21, b'{"request_id":%d,"chunk_index":3,"data":"bmV3"}' % seen.request_id)
            await all_done(asked)
            if expected is None:
                assert isinstance(asked.outcome, BadAnswer)
            else:
                assert asked.outcome == expected

    run(test)


def test_answer_for_request_0_fails_the_oldest_of_its_connection() -> None:
    async def test() -> None:
        with pool_of_this_loop() as pool:
            agent = PairedAgent(pool)
            PairedAgent(pool, "other")
            foreign = Asked(pool, "other", headers())
            asked = [Asked(pool, "waf", headers(str(n))) for n in range(3)]
            for number, one in enumerate(asked):
                agent.frame(0x20, b'{"request_id":0,"decision":"allow"}')
                await all_done(one)
                assert isinstance(one.outcome, BadAnswer)
                assert [len(later.outcomes) for later in asked[number + 1 :]] == [0] * (2 - number)
            agent.frame(0x20, b'{"request_id":0,"decision":"allow"}')
            await until(lambda: pool.requests.late == 1)
            assert foreign.outcome is None

    run(test)


def test_answer_without_a_name_fails_a_core_request_only_when_there_is_no_doubt_which() -> None:
    async def test() -> None:
        with pool_of_this_loop() as pool:
            agent = PairedAgent(pool, dialect=Dialect.CORE)
            two = [Asked(pool, "waf", headers(str(n))) for n in range(2)]
            await turns()
            first, second = agent.read()
            agent.frame(0x20, b'{"decision":"allow"}')
            await until(lambda: pool.requests.late == 1)
            assert [one.outcome for one in two] == [None, None]
            agent.answer(second)
            await all_done(two[1])
            agent.frame(0x20, b'{"decision":"allow"}')
            await all_done(two[0])
            assert isinstance(two[0].outcome, BadAnswer)
            agent.answer(first)
            await until(lambda: pool.requests.late == 2)

    run(test)


def test_answer_that_names_a_given_up_request_is_late_and_the_next_for_request_0_is_about_the_next() -> None:
    async def test() -> None:
        with pool_of_this_loop() as pool:
            agent = PairedAgent(pool)
            gone, kept = Asked(pool, "waf", headers("gone")), Asked(pool, "waf", headers("kept"))
            pool.requests.cancel(gone.call, CancelReason.MANUAL)
            agent.frame(0x20, b'{"request_id":0,"decision":"allow"}')
            await until(lambda: pool.requests.late == 1)
            assert kept.outcome is None, "it was about the cancelled one, which came first"
            agent.frame(0x20, b'{"request_id":0,"decision":"allow"}')
            await all_done(kept)

    run(test)


def test_requests_by_one_correlation_id_never_get_each_others_answers() -> None:
    """Clients may choose it, so that two requests may bear the same."""

    async def test() -> None:
        with pool_of_this_loop() as pool:
            agent = PairedAgent(pool, dialect=Dialect.CORE)
            exchange = Exchange("waf")
            first = Asked(pool, exchange, headers("post", has_body=True, correlation_id="x-1"))
            await turns()
            (post,) = agent.read()
            agent.answer(post)
            await all_done(first)
            # Between its events nothing of the first is in flight. Made-up ids are no secret.
            names = ["x-1", "x-1", post.correlation_id, exchange.correlation_id, f"{exchange.request_id:x}"]
            others = [
                Asked(pool, "waf", headers(f"get {n}", correlation_id=name or "")) for n, name in enumerate(names)
            ]
            body = Asked(pool, exchange, chunk("body"))
            await turns()
            seen = agent.read()
            assert len({found.correlation_id for found in seen}) == len(names) + 1
            assert seen[0].correlation_id == "x-1", "as it is, where that is certain"
            for found in seen:
                agent.answer(found)
            await all_done(body, *others)
            assert answered_tag(body.outcome) == "body"
            assert [answered_tag(other.outcome) for other in others] == [f"get {n}" for n in range(len(names))]
            assert_nothing_left(pool)

    run(test)


# --- cancels ------------------------------------------------------------------------------------------


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
def test_sdk_agent_is_told_once_that_a_request_is_over(
    end: Callable[[AgentPool, PairedAgent, Asked], None], final: bool, free: bool
) -> None:
    async def test() -> None:
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

    run(test)


def test_sdk_agent_is_told_that_a_request_is_over_whose_last_event_never_went_out() -> None:
    async def test() -> None:
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

    run(test)


@pytest.mark.parametrize(
    ("dialect", "cancellation", "expected"),
    [(Dialect.CORE, True, [CancelReason.MANUAL]), (Dialect.CORE, False, []), (Dialect.SDK, False, [])],
)
def test_agent_is_told_of_a_cancel_if_it_wants_to_know_and_core_agents_of_nothing_else(
    dialect: Dialect, cancellation: bool, expected: list[CancelReason]
) -> None:
    async def test() -> None:
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

    run(test)


# --- lost connections ---------------------------------------------------------------------------------


def test_only_what_the_agent_has_certainly_not_seen_goes_to_a_sibling_and_only_once() -> None:
    async def test() -> None:
        with pool_of_this_loop(PoolOptions(full_at=10_000_000)) as pool:
            deaf = PairedAgent(pool, send_buffer=4096)
            exchange = Exchange("waf")
            first = Asked(pool, exchange, headers("first", has_body=True))
            await turns()
            deaf.answer(deaf.read()[0])
            await all_done(first)
            seen = Asked(pool, "waf", headers("seen"))
            await turns()
            # A large one fills the socket; what is behind it waits here.
            partly = Asked(pool, "waf", headers("/" + "x" * 1_000_000))
            await turns()
            waiting = [Asked(pool, "waf", headers(f"waiting {n}")) for n in range(3)]
            later = Asked(pool, exchange, chunk("later"))
            await turns()
            sibling = PairedAgent(pool, send_buffer=4096)
            deaf.close()
            await all_done(seen, later)
            assert isinstance(seen.outcome, ConnectionLost)
            assert not seen.error.retry_safe, "it was written: a rate limiter may have counted it"
            assert isinstance(later.outcome, ConnectionLost)
            assert later.error.retry_safe, "the agent has not seen it, but it belongs to what was said before"
            assert [len(one.outcomes) for one in (partly, *waiting)] == [0] * 4
            assert sibling.connection.in_flight == 4
            third = PairedAgent(pool)
            sibling.close()
            await all_done(partly, *waiting)
            assert {(type(one.outcome), one.error.retry_safe) for one in (partly, *waiting)} == {(ConnectionLost, True)}
            await turns()
            assert third.read() == [], "once, and not from one to the next"
            assert_nothing_left(pool)

    run(test)


def test_what_goes_to_a_sibling_is_answered_there() -> None:
    async def test() -> None:
        with pool_of_this_loop() as pool:
            first = PairedAgent(pool)
            asked = [Asked(pool, "waf", headers(str(n))) for n in range(3)]
            sibling = PairedAgent(pool)
            first.connection.close(CloseCode.KICKED, "before anything was written")
            await turns()
            assert (first.read(), first.at_end) == ([], True)
            for seen in sibling.read():
                sibling.answer(seen)
            await all_done(*asked)
            assert [answered_tag(one.outcome) for one in asked] == ["0", "1", "2"]
            assert_nothing_left(pool)

    run(test)


def test_agent_that_does_not_read_is_full_and_in_the_end_closed_and_others_are_served() -> None:
    async def test() -> None:
        options = PoolOptions(full_at=50_000, close_at=2_000_000)
        with pool_of_this_loop(options) as pool:
            deaf, quick = PairedAgent(pool, "deaf", send_buffer=4096), PairedAgent(pool, "quick")
            exchange = Exchange("deaf")
            Asked(pool, exchange, headers("/" + "x" * 100_000, has_body=True))
            await turns()
            refused = Asked(pool, "deaf", headers())
            assert isinstance(refused.outcome, Overloaded)
            assert refused.error.retry_safe
            served = Asked(pool, "quick", headers("quick"))
            await turns()
            quick.answer(quick.read()[0])
            await all_done(served)
            # What belongs to a request that has begun is still taken, up to the hard limit.
            huge = [Asked(pool, "deaf", headers("/" + "x" * 1_000_000)) for _ in range(3)]
            assert {type(one.outcome) for one in huge} == {Overloaded}
            deaf.connection.send(b"\x00" * 2_000_000)
            await until(lambda: deaf.connection.fd < 0)
            assert quick.connection.fd >= 0
            assert_nothing_left(pool)

    run(test)


# --- the choice of a connection ------------------------------------------------------------------------


@pytest.mark.parametrize("declared", [1, 3, None])
def test_concurrency_is_never_above_what_the_agent_declared(declared: int | None) -> None:
    async def test() -> None:
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

    run(test)


def test_first_event_that_the_agent_does_not_take_leaves_the_exchange_usable() -> None:
    only = Capabilities(events=int(Event.RESPONSE_HEADERS))

    async def test() -> None:
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

    run(test)


def test_why_none_is_said_of_the_connections_that_take_the_event() -> None:
    async def test() -> None:
        with pool_of_this_loop(PoolOptions(unhealthy_after=1)) as pool:
            able = PairedAgent(pool)
            PairedAgent(pool, capabilities=Capabilities(events=int(Event.RESPONSE_HEADERS)))
            Asked(pool, "waf", headers())
            able.frame(0x20, b"{}")
            await until(lambda: not able.connection.open)
            assert isinstance(Asked(pool, "waf", headers()).outcome, AgentUnavailable)
            able.frame(0xF1, b"{}")

    run(test)


def test_event_that_cannot_be_written_is_a_bad_request_and_costs_the_agent_nothing() -> None:
    async def test() -> None:
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

    run(test)


def test_session_sticks_until_its_connection_cannot_take_it_or_its_time_is_up() -> None:
    async def test() -> None:
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

    run(test)


def test_session_does_not_get_past_an_open_circuit() -> None:
    async def test() -> None:
        with pool_of_this_loop(PoolOptions(breaker_threshold=1, unhealthy_after=100)) as pool:
            agent = PairedAgent(pool)
            asked = Asked(pool, Exchange("waf", "s"), headers(), final=True)
            agent.frame(0x20, b"{}")
            await all_done(asked)
            for session in ("s", None):
                assert isinstance(Asked(pool, Exchange("waf", session), headers()).outcome, CircuitOpen)

    run(test)


def test_circuit_opens_for_an_agent_that_crashes_at_every_request() -> None:
    async def test() -> None:
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

    run(test)


def test_connection_that_fails_is_passed_over_until_it_answers_a_ping_or_says_that_it_is_well() -> None:
    async def test() -> None:
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

    run(test)


# --- flow control --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "policy"), [("fail-closed", "closed"), ("fail-open", "open")])
def test_paused_agent_fails_new_requests_at_once_with_the_policy_that_is_configured(mode: str, policy: str) -> None:
    async def test() -> None:
        with pool_of_this_loop(PoolOptions(flow_control=FlowControlMode(mode))) as pool:
            agent = PairedAgent(pool, dialect=Dialect.CORE)
            exchange = Exchange("waf")
            begun = Asked(pool, exchange, headers("begun", has_body=True))
            await turns()
            agent.answer(agent.read()[0])
            await all_done(begun)
            agent.frame(0x33, PAUSE)
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
            agent.frame(0x33, RESUME)
            await until(lambda: agent.connection.open)

    run(test)


def test_request_waits_for_a_paused_agent_where_that_is_configured() -> None:
    async def test() -> None:
        options = PoolOptions(flow_control=FlowControlMode.WAIT, flow_control_wait=5.0)
        with pool_of_this_loop(options) as pool:
            agent = PairedAgent(pool, dialect=Dialect.CORE)
            agent.frame(0x33, PAUSE)
            await until(lambda: agent.connection.paused)
            waits, cancelled = Asked(pool, "waf", headers("waits")), Asked(pool, "waf", headers("cancelled"))
            hasty = Asked(pool, "waf", headers("hasty"), 0.03)
            await all_done(hasty)
            assert isinstance(hasty.outcome, RequestTimeout)
            pool.requests.cancel(cancelled.call, CancelReason.MANUAL)
            assert waits.outcome is None
            agent.frame(0x33, RESUME)
            seen: list[Seen] = []
            while not seen:
                await until(lambda: agent.connection.in_flight)
                await turns()
                seen = agent.read()
            assert [tag_of(one.event) for one in seen] == ["waits"]
            agent.answer(seen[0])
            await all_done(waits)

    run(test)


# 15.5 s are kept as 16, and the half second is not time that has been waited.
@pytest.mark.parametrize("timeout", [None, 15.5, 0.5])
def test_wait_for_a_paused_agent_is_as_long_as_configured_whatever_the_timeout(timeout: float | None) -> None:
    async def test() -> None:
        options = PoolOptions(flow_control=FlowControlMode.WAIT, flow_control_wait=0.06)
        with pool_of_this_loop(options) as pool:
            agent = PairedAgent(pool, dialect=Dialect.CORE)
            agent.frame(0x33, PAUSE)
            await until(lambda: agent.connection.paused)
            asked = Asked(pool, "waf", headers(), timeout)
            assert asked.outcome is None
            began = pool._loop.time()
            await all_done(asked)
            assert isinstance(asked.outcome, FlowControlPaused)
            assert asked.error.policy == "closed"
            assert pool._loop.time() - began >= 0.05, "it gave up before its time"

    run(test)


# --- time and numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [math.inf, 1e12])
def test_endless_timeout_is_a_long_one(timeout: float) -> None:
    async def test() -> None:
        with pool_of_this_loop() as pool:
            agent = PairedAgent(pool)
            asked = Asked(pool, "waf", headers("x"), timeout)
            await turns()
            agent.answer(agent.read()[0])
            await all_done(asked)
            assert_nothing_left(pool)

    run(test)


def test_clock_goes_on_after_a_callback_that_raised() -> None:
    class Mistake(Exception):
        pass

    def raises() -> None:
        raise Mistake

    async def test() -> None:
        found: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: found.append(context.get("exception")))
        with pool_of_this_loop() as pool:
            PairedAgent(pool)
            Asked(pool, "waf", headers(), 0.01, on_done=raises)
            other = Asked(pool, "waf", headers(), 0.05)
            await all_done(other)
            assert isinstance(other.outcome, RequestTimeout)
            assert [type(error) for error in found] == [Mistake]

    run(test)


def test_timeout_is_the_agents_fault_and_a_cancel_is_not() -> None:
    async def test() -> None:
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

    run(test)


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
