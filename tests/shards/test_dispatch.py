"""Where requests are served: here, by the shard that has the agent, or where it is on its way to; and once."""

import asyncio
import os
from contextlib import AsyncExitStack, suppress
from typing import Any

import pytest
from support.engine import PAUSE, PairedAgent, chunk, headers, next_event, on_loop, tag_of, turns
from support.pools import until
from support.product import short_folder
from support.proxying import LocalShard, allowed, failure, local_shard, odd_sibling, raw_proxy, two_shards

from dialout import CancelReason, Dialect
from dialout.proxy.wire import FINAL, RELAYED, RETRY_SAFE, Answer, Failure, ProxyRequest, encode_cancel, encode_failure
from ipc.options import FlowControlMode, PoolOptions
from shards import dispatch, relay
from shards.calls import Call, Exchange
from shards.proxies import ProxyConnection


@on_loop
async def test_request_for_an_agent_of_another_shard_is_handed_on_once_with_all_its_events() -> None:
    async with two_shards() as (zero, one, proxy):
        agent = PairedAgent(one.pool)
        zero.hears("waf", {1: 1})
        proxy.ask(1, headers("/first", has_body=True), flags=0)
        proxy.ask(1, chunk("c0", last=False), flags=0)
        proxy.ask(1, chunk("c1", 1))
        for tag in ("/first", "c0", "c1"):
            seen = await next_event(agent)
            assert tag_of(seen.event) == tag
            agent.answer(seen)
            result = await proxy.result()
            assert isinstance(result, Answer)
            assert result.response.request_headers[0].value == tag
            assert (result.shard, result.flags & RELAYED) == (1, RELAYED)
        assert (zero.dispatch.relayed_total, one.dispatch.relayed_total) == (3, 0)
        assert (zero.pool.requests.answered, one.pool.requests.answered) == (0, 3)


@on_loop
async def test_two_shards_that_each_take_the_other_for_the_holder_do_not_play_ping_pong() -> None:
    async with two_shards() as (zero, one, proxy):
        zero.hears("waf", {1: 1})
        one.hears("waf", {0: 1})
        proxy.ask(1, headers())
        assert failure(await proxy.result()) == ("agent_not_found", True)
        assert one.relay._next_id == 1
        assert zero.relay._next_id - 1 <= 1 + relay.NEWS_WAIT / 0.02


@on_loop
async def test_request_that_no_connection_here_can_take_goes_to_the_other_shard_with_less_time() -> None:
    options = PoolOptions(flow_control=FlowControlMode.WAIT, flow_control_wait=0.1)
    async with two_shards(options) as (zero, one, proxy):
        paused, agent = PairedAgent(zero.pool, dialect=Dialect.CORE), PairedAgent(one.pool)
        paused.send(PAUSE)
        await until(lambda: paused.connection.paused)
        zero.hears("waf", {0: 1, 1: 1})
        proxy.ask(1, headers("/x"), timeout_ms=5000)
        seen = await next_event(agent)
        (call,) = (agent.connection.pending or {}).values()
        assert 1.0 < call.timeout < 5.0, "what was waited for here is not given again there"
        agent.answer(seen)
        assert isinstance(await proxy.result(), Answer)


@on_loop
async def test_cancel_goes_the_way_of_the_request() -> None:
    async with two_shards() as (zero, one, proxy):
        agent = PairedAgent(one.pool)
        zero.hears("waf", {1: 1})
        proxy.ask(1, headers("/", has_body=True), flags=0)
        await next_event(agent)
        proxy.send(encode_cancel(1, "waf", CancelReason.UPSTREAM_ERROR))
        assert failure(await proxy.result()) == ("cancelled", False)
        await turns()
        (cancel,) = agent.read()
        assert getattr(cancel.event, "reason", None) is CancelReason.UPSTREAM_ERROR


@on_loop
async def test_policy_of_the_other_shards_pool_reaches_the_proxy() -> None:
    async with two_shards(PoolOptions(flow_control=FlowControlMode.FAIL_OPEN)) as (zero, one, proxy):
        agent = PairedAgent(one.pool, dialect=Dialect.CORE)
        agent.send(PAUSE)
        await until(lambda: agent.connection.paused)
        zero.hears("waf", {1: 1})
        proxy.ask(1, headers())
        result = await proxy.result()
        assert isinstance(result, Failure)
        assert (result.error_code, result.policy, result.shard) == ("flow_control_paused", "open", 1)
        assert result.flags == RELAYED | RETRY_SAFE


@pytest.mark.parametrize("where", ["here", "there", "elsewhere first"])
@on_loop
async def test_agent_that_has_just_been_accepted_is_found_before_the_word_of_it_is_here(where: str) -> None:
    async def only_connection(shard: LocalShard) -> ProxyConnection:
        await until(lambda: len(shard.server.connections) == 1)
        (connection,) = shard.server.connections
        return connection

    async with two_shards() as (zero, one, proxy):
        if where == "elsewhere first":
            zero.hears("waf", {1: 1})  # Where it was.
        proxy.ask(1, headers("/early"))
        connection = await only_connection(zero)
        await until(lambda: any(request.held for request, _ in connection._requests._entries.values()))
        agent = PairedAgent(one.pool if where == "there" else zero.pool)
        if where == "there":
            zero.hears("waf", {1: 1})
        agent.answer(await next_event(agent))
        assert isinstance(await proxy.result(), Answer)


@pytest.mark.parametrize("asked", [0, 1, 2], ids=["where it was", "where it goes", "elsewhere"])
@pytest.mark.parametrize("stays", [False, True], ids=["moves", "stays"])
@on_loop
async def test_request_waits_for_an_agent_that_moves(monkeypatch: pytest.MonkeyPatch, asked: int, stays: bool) -> None:
    # It takes many times as long as word of an agent may take.
    monkeypatch.setattr(relay, "NEWS_WAIT", 0.03)

    async with two_shards() as (zero, one, _), AsyncExitStack() as stack:
        two = await stack.enter_async_context(local_shard(zero.path.parent, 2))
        shards = (zero, one, two)
        proxy = await stack.enter_async_context(raw_proxy(shards[asked].path))
        for shard in (one, two):
            shard.hears("waf", {0: 1})
        # As the shards' handoff does on both sides of a move.
        zero.pool.moves("waf")
        one.pool.moves("waf")
        proxy.ask(1, headers("/meanwhile"))
        proxy.ask(2, headers("/a body", has_body=True), flags=0)
        await asyncio.sleep(0.2)
        zero.pool.has_moved("waf")
        one.pool.has_moved("waf")
        target = zero if stays else one
        agent = PairedAgent(target.pool)
        await asyncio.sleep(0.1)
        for shard in shards:
            shard.hears("waf", {target.shard: 1})
        results: list[Answer | Failure] = []
        while len(results) < 2:
            for seen in agent.read():
                if seen.is_event:
                    agent.answer(seen)
            with suppress(TimeoutError):
                async with asyncio.timeout(0.01):
                    results.append(await proxy.result())
        assert all(isinstance(result, Answer) for result in results), results


@pytest.mark.parametrize("asked", [0, 1, 2], ids=["where it was", "where it is", "elsewhere"])
@on_loop
async def test_agent_is_found_where_it_has_moved_though_nobody_has_told(
    monkeypatch: pytest.MonkeyPatch, asked: int
) -> None:
    # The supervisor has died between the move and the word of it, and no other one comes.
    monkeypatch.setattr(relay, "NEWS_WAIT", 0.0)

    async with two_shards() as (zero, one, _), AsyncExitStack() as stack:
        two = await stack.enter_async_context(local_shard(zero.path.parent, 2))
        for shard in (zero, one, two):
            shard.hears("waf", {0: 1})
        proxy = await stack.enter_async_context(raw_proxy((zero, one, two)[asked].path))
        agent = PairedAgent(one.pool)
        for number in range(1, 4):
            proxy.ask(number, headers())
            agent.answer(await next_event(agent))
            result = await proxy.result()
            assert isinstance(result, Answer), result
            assert result.shard == 1
        agent.close()
        await until(lambda: not one.pool.agents)
        proxy.ask(4, headers())
        assert failure(await proxy.result()) == ("agent_not_found", True)


@on_loop
async def test_request_for_an_agent_that_moves_for_ever_fails_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "MOVING_LIMIT", 0.1)

    async with two_shards() as (zero, one, proxy):
        zero.hears("waf", {1: 1})
        one.pool.moves("waf")
        proxy.ask(1, headers())
        assert failure(await proxy.result()) == ("agent_unavailable", True)
        one.pool.moves("waf")
        proxy.ask(2, headers(), timeout_ms=60)
        assert failure(await proxy.result())[0] in ("agent_unavailable", "request_timeout")


@on_loop
async def test_agent_that_does_not_exist_is_waited_for_once_and_then_refused_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with two_shards() as (zero, _, proxy):
        looks: list[Exchange] = []
        submit = zero.pool.requests.submit

        def look(exchange: Exchange, *rest: Any, **options: Any) -> Call:
            looks.append(exchange)
            return submit(exchange, *rest, **options)

        monkeypatch.setattr(zero.pool.requests, "submit", look)
        proxy.ask(1, headers(), "nobody")
        assert failure(await proxy.result()) == ("agent_not_found", True)
        tries = len(looks)
        assert tries > 1
        proxy.ask(2, headers(), "nobody")
        assert failure(await proxy.result()) == ("agent_not_found", True)
        assert len(looks) == tries + 1
        assert zero.pool.requests.failed == {"agent_not_found": 2}, "requests are counted, and not the looks"


@on_loop
async def test_shard_that_has_heard_nothing_yet_asks_the_sibling_that_is_there() -> None:
    async with two_shards() as (zero, one, proxy):
        zero.directory.stale = True
        agent = PairedAgent(one.pool)
        proxy.ask(1, headers())
        agent.answer(await next_event(agent))
        assert isinstance(await proxy.result(), Answer)


@pytest.mark.parametrize("asked", [0, 1], ids=["where it was", "elsewhere"])
@pytest.mark.parametrize("stays", [False, True], ids=["moves", "stays"])
@on_loop
async def test_all_events_of_a_request_wait_for_an_agent_that_moves_and_reach_it_in_their_order(
    asked: int, stays: bool
) -> None:
    """A proxy that sends a body behind its headers, and does not wait, must not see that an agent moves."""
    async with two_shards() as (zero, one, _), AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(raw_proxy((zero, one)[asked].path))
        leaving = PairedAgent(zero.pool)
        leaving.connection.leave(leaving=True)
        one.hears("waf", {0: 1})
        tags = ["/headers", "c0", "c1", "c2"]
        proxy.ask(1, headers(tags[0], has_body=True), flags=0)
        for index in range(3):
            proxy.ask(1, chunk(tags[1 + index], index, last=index == 2), flags=FINAL if index == 2 else 0)
        # All of them wait at shard 0, where the connection is about to go, and then has gone.
        await until(lambda: zero.pool.requests.in_flight == 4)
        zero.pool.moves("waf")
        one.pool.moves("waf")
        os.close(zero.pool.let_go(leaving.connection))
        await until(lambda: zero.dispatch.waiting + one.dispatch.waiting == 4)
        proxy.ask(2, headers("/single"))
        zero.pool.has_moved("waf")
        one.pool.has_moved("waf")
        target = zero if stays else one
        agent = PairedAgent(target.pool)
        for shard in (zero, one):
            shard.hears("waf", {target.shard: 1})
        seen: list[str] = []
        results: list[Answer | Failure] = []
        while len(results) < 5:
            for found in agent.read():
                if found.is_event:
                    seen.append(tag_of(found.event))
                    agent.answer(found)
            with suppress(TimeoutError):
                async with asyncio.timeout(0.01):
                    results.append(await proxy.result())
        assert all(isinstance(result, Answer) for result in results), results
        assert [tag for tag in seen if tag != "/single"] == tags
        assert (zero.dispatch.waiting, one.dispatch.waiting) == (0, 0)
        assert zero.pool.requests.failed.total() + one.pool.requests.failed.total() == 0
        assert zero.pool.requests.answered + one.pool.requests.answered == 5


@on_loop
async def test_request_with_a_later_event_that_has_failed_does_not_begin_again_elsewhere() -> None:
    options = PoolOptions(flow_control=FlowControlMode.WAIT, flow_control_wait=0.2)
    async with two_shards(options) as (zero, one, proxy):
        paused, agent = PairedAgent(zero.pool, dialect=Dialect.CORE), PairedAgent(one.pool)
        paused.send(PAUSE)
        await until(lambda: paused.connection.paused)
        zero.hears("waf", {0: 1, 1: 1})
        proxy.ask(1, headers("/", has_body=True), flags=0)
        proxy.ask(1, chunk("hasty", last=False), flags=0, timeout_ms=1)
        proxy.ask(1, chunk("patient", 1))
        codes = [failure(await proxy.result())[0] for _ in range(3)]
        assert codes[:2] == ["flow_control_paused", "request_timeout"]
        await turns()
        assert agent.read() == [], "no body with a hole in it"


@on_loop
async def test_request_for_an_agent_that_no_shard_has_is_counted_once_and_where_it_came_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with two_shards() as (zero, one, proxy):
        zero.hears("waf", {1: 1})
        one.hears("waf", {1: 1})
        proxy.ask(1, headers())
        assert failure(await proxy.result()) == ("agent_not_found", True)
        assert (zero.pool.requests.failed, one.pool.requests.failed) == ({"agent_not_found": 1}, {})
        # What is held is in flight, and a cancel is its outcome.
        monkeypatch.setattr(dispatch, "NEWS_PAUSE", 5.0)
        monkeypatch.setattr(relay, "NEWS_WAIT", 5.0)
        proxy.ask(2, headers(), "another")
        await until(lambda: zero.dispatch.waiting == 1)
        proxy.send(encode_cancel(2, "another", CancelReason.MANUAL))
        assert failure(await proxy.result()) == ("cancelled", False)
        assert zero.dispatch.waiting == 0
        assert zero.pool.requests.failed == {"agent_not_found": 1, "cancelled": 1}


@on_loop
async def test_request_that_is_served_elsewhere_is_no_failure_here() -> None:
    async with two_shards(PoolOptions(max_concurrent_per_connection=1)) as (zero, one, proxy):
        full, free = PairedAgent(zero.pool), PairedAgent(one.pool)
        zero.hears("waf", {0: 1, 1: 1})
        proxy.ask(1, headers("/here"))
        here = await next_event(full)
        proxy.ask(2, headers("/there"))
        free.answer(await next_event(free))
        assert isinstance(await proxy.result(), Answer)
        full.answer(here)
        assert isinstance(await proxy.result(), Answer)
        assert (zero.pool.requests.answered, zero.pool.requests.failed) == (1, {})
        assert (one.pool.requests.answered, zero.dispatch.relayed_total) == (1, 1)


@on_loop
async def test_events_that_come_back_late_from_another_shard_are_waited_for_before_the_request_begins_again() -> None:
    asked: list[tuple[int, str]] = []

    def reply(request: ProxyRequest) -> bytes | None:
        asked.append((request.request_id, tag_of(request.event)))
        if request.request_id > 1:
            return allowed(request)
        moving = encode_failure(1, "agent_moving", "it moves", shard=1, flags=RETRY_SAFE)
        if len(asked) == 1:
            return moving
        asyncio.get_running_loop().call_later(5 * dispatch.NEWS_PAUSE, writers[0].write, moving)
        return None

    with short_folder() as folder:
        async with local_shard(folder) as zero, odd_sibling(folder, reply) as writers, raw_proxy(zero.path) as proxy:
            zero.hears("waf", {1: 1})
            proxy.ask(1, headers("/headers", has_body=True), flags=0)
            proxy.ask(1, chunk("c0", last=False), flags=0)
            proxy.ask(1, chunk("c1", 1))
            results = [await proxy.result() for _ in range(3)]
            assert all(isinstance(result, Answer) for result in results), results
            tags = ["/headers", "c0", "c1"]
            assert asked == [(number, tag) for number in (1, 2) for tag in tags]
