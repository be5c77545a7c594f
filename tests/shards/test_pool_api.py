"""The awaitable half of the pool: outcomes, cancellation, and the events of one request."""

import asyncio

import pytest
from support.pools import pool_with, run, until
from support.serving import EVERYTHING, allow

from dialout import (
    ALLOWED,
    Block,
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
from dialout.proxy.errors import BadRequest, CannotReceive, ConnectionLost, RequestCancelled, RequestTimeout
from ipc.options import PoolOptions

HEADERS = RequestHeaders("POST", "/", {"host": ["example.com"]}, has_body=True)
GET = RequestHeaders("GET", "/", {})


def test_every_kind_of_event_gets_the_agents_answer() -> None:
    async def test() -> None:
        async with pool_with(("waf", Dialect.CORE, allow, EVERYTHING)) as (pool, (agent,)):
            answers = [
                await pool.send_request_headers("waf", GET),
                await pool.send_response_headers("waf", ResponseHeaders(200, {})),
                await pool.send_request_complete("waf", RequestComplete(200, 5)),
                await pool.send_websocket_frame("waf", WebSocketFrame("text", b"a", True, 0)),
                await pool.send_guardrail_inspect("waf", GuardrailInspect("pii_detection", "text")),
            ]
            assert [answer.verdict for answer in answers] == [ALLOWED.verdict] * 5
            assert {answer.connection_id for answer in answers} == {agent.connection_id}
            assert {(answer.agent_id, answer.shard, answer.relayed) for answer in answers} == {("waf", 0, False)}
            assert all(0 < answer.duration < 30 for answer in answers)
            assert (pool.requests.answered, pool.requests.failed, pool.requests.in_flight) == (5, {}, 0)

    run(test)


def test_events_of_an_exchange_go_to_one_connection_in_order_until_it_is_complete() -> None:
    def decide(event: object) -> Decision:
        if isinstance(event, RequestBodyChunk) and event.data == b"bad":
            return Decision(Block(403))
        return ALLOWED

    async def test() -> None:
        everywhere = [("waf", Dialect.CORE, decide, EVERYTHING)] * 3
        async with pool_with(*everywhere) as (pool, agents):
            async with pool.exchange("waf") as exchange:
                assert exchange.agent_id == "waf"
                first = await exchange.request_headers(HEADERS)
                chunks = [RequestBodyChunk(n, data, n == 2) for n, data in enumerate([b"a", b"bad", b"c"])]
                answers = await asyncio.gather(*map(exchange.request_body_chunk, chunks))
                assert [answer.is_final for answer in answers] == [False, True, False]
                await exchange.response_headers(ResponseHeaders(200, {}))
                await exchange.response_body_chunk(ResponseBodyChunk(0, b"", True))
                assert await exchange.complete(RequestComplete(200, 5)) is not None
                with pytest.raises(BadRequest, match="over"):
                    await exchange.websocket_frame(WebSocketFrame("text", b"a", True, 0))
            (agent,) = [agent for agent in agents if agent.connection_id == first.connection_id]
            assert [type(event).__name__ for _, _, event in agent.seen] == [
                "RequestHeaders",
                *["RequestBodyChunk"] * 3,
                "ResponseHeaders",
                "ResponseBodyChunk",
                "RequestComplete",
            ]
            assert [other.seen for other in agents if other is not agent] == [[], []]

    run(test)


def test_end_of_an_exchange_frees_the_memory_of_an_sdk_agent_once() -> None:
    async def test() -> None:
        async with pool_with(("waf", Dialect.SDK, allow, EVERYTHING)) as (pool, (agent,)):
            async with pool.exchange("waf") as exchange:
                await exchange.request_headers(GET)
                assert await exchange.complete(RequestComplete(200, 5)) is None  # Its dialect has no such event.
            async with pool.exchange("waf") as exchange:
                await exchange.request_headers(GET)
            await pool.send_request_headers("waf", GET)
            await until(lambda: len(agent.seen) >= 6)
            kinds = [type(event) for _, _, event in agent.seen]
            assert kinds == [RequestHeaders, Cancel] * 3

    run(test)


def test_session_sticks_to_its_connection() -> None:
    async def test() -> None:
        async with pool_with(*[("waf", Dialect.SDK, allow, EVERYTHING)] * 3) as (pool, _):
            for session in ("a", "b"):
                answers = [await pool.send_request_headers("waf", GET, session=session) for _ in range(5)]
                async with pool.exchange("waf", session=session) as exchange:
                    answers.append(await exchange.request_headers(GET))
                assert len({answer.connection_id for answer in answers}) == 1

    run(test)


def test_cancelled_task_cancels_its_request() -> None:
    async def test() -> None:
        async with pool_with(("waf", Dialect.CORE, lambda _: None, EVERYTHING)) as (pool, (agent,)):
            asking = asyncio.create_task(pool.send_request_headers("waf", GET))
            await until(lambda: agent.seen)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            await until(lambda: len(agent.seen) == 2)
            assert agent.seen[1][1:] == (agent.seen[0][1], Cancel(CancelReason.CLIENT_DISCONNECT))
            assert (pool.requests.in_flight, dict(pool.requests.failed)) == (0, {"cancelled": 1})

    run(test)


def test_cancelled_event_takes_those_behind_it_along() -> None:
    async def test() -> None:
        async with pool_with(("waf", Dialect.CORE, lambda _: None, EVERYTHING)) as (pool, (agent,)):
            exchange = pool.exchange("waf")
            tasks = [
                asyncio.create_task(exchange.request_headers(HEADERS)),
                asyncio.create_task(exchange.request_body_chunk(RequestBodyChunk(0, b"", True))),
            ]
            await until(lambda: agent.seen)
            exchange.cancel()
            exchange.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert [type(result) for result in results] == [RequestCancelled] * 2
            assert pool.requests.in_flight == 0

    run(test)


def test_silent_agent_is_a_timeout_and_the_exchange_is_over_by_that() -> None:
    async def test() -> None:
        options = PoolOptions(request_timeout=0.1)
        async with pool_with(("waf", Dialect.CORE, lambda _: None, EVERYTHING), options=options) as (pool, _):
            async with pool.exchange("waf") as exchange:
                with pytest.raises(RequestTimeout):
                    await exchange.request_headers(HEADERS)
                with pytest.raises(RequestTimeout):
                    await exchange.request_body_chunk(RequestBodyChunk(0, b"", True), timeout=5.0)
            with pytest.raises(RequestTimeout):
                await pool.send_request_headers("waf", GET, timeout=0.05)

    run(test)


def test_event_that_the_agent_does_not_take_leaves_the_exchange_open() -> None:
    only_headers = Capabilities(events=int(Event.REQUEST_HEADERS | Event.RESPONSE_HEADERS))

    async def test() -> None:
        async with (
            pool_with(("waf", Dialect.SDK, allow, only_headers)) as (pool, _),
            pool.exchange("waf") as exchange,
        ):
            await exchange.request_headers(HEADERS)
            with pytest.raises(CannotReceive):
                await exchange.request_body_chunk(RequestBodyChunk(0, b"", True))
            assert (await exchange.response_headers(ResponseHeaders(200, {}))).verdict is not None

    run(test)


def test_requests_of_an_agent_that_goes_fail_at_once_and_alone() -> None:
    async def test() -> None:
        async with pool_with(
            ("waf", Dialect.SDK, lambda _: None, EVERYTHING), ("auth", Dialect.SDK, allow, EVERYTHING)
        ) as (pool, (agent, _)):
            asking = [asyncio.create_task(pool.send_request_headers("waf", GET, timeout=25)) for _ in range(5)]
            await until(lambda: len(agent.seen) == 5)
            agent.sock.shutdown(2)
            results = await asyncio.gather(*asking, return_exceptions=True)
            assert [type(result) for result in results] == [ConnectionLost] * 5
            assert (await pool.send_request_headers("auth", GET)).verdict == ALLOWED.verdict

    run(test)
