"""Siblings that fail: what was handed on fails in time, is never answered by another event's answer, and is bounded."""

from contextlib import AsyncExitStack

import pytest
from support.engine import PairedAgent, chunk, headers, next_event, on_loop
from support.pools import until
from support.product import short_folder
from support.proxying import allowed, failure, local_shard, odd_sibling, raw_proxy, two_shards

from dialout import ALLOWED, RequestHeaders, encode_frame
from dialout.proxy.errors import ConnectionLost
from dialout.proxy.wire import FINAL, RELAYED, Answer, ProxyRequest
from shards import relay


@on_loop
async def test_requests_fail_at_once_when_the_link_is_lost_and_the_next_ones_use_a_new_one() -> None:
    async with two_shards() as (zero, one, proxy):
        agent = PairedAgent(one.pool)
        zero.hears("waf", {1: 1})
        proxy.ask(1, headers("/1", has_body=True), flags=0)
        proxy.ask(2, headers("/2"))
        await until(lambda: agent.connection.in_flight == 2)
        for connection in one.server.connections:
            assert connection._transport is not None
            connection._transport.abort()
        results = [await proxy.result(), await proxy.result()]
        assert {result.request_id for result in results} == {1, 2}
        assert {failure(result) for result in results} == {("connection_lost", False)}
        proxy.ask(1, chunk("later"))
        assert failure(await proxy.result()) == ("connection_lost", True), "of a request whose link is gone"
        await until(lambda: one.pool.requests.in_flight == 0)
        agent.read()
        proxy.ask(3, headers("/3"))
        agent.answer(await next_event(agent))
        assert isinstance(await proxy.result(), Answer)


@on_loop
async def test_sibling_that_is_gone_has_seen_nothing_and_is_used_again_when_it_is_back() -> None:
    with short_folder() as folder:
        async with local_shard(folder) as zero, raw_proxy(zero.path) as proxy, AsyncExitStack() as later:
            zero.hears("waf", {1: 1})
            proxy.ask(1, headers())
            assert failure(await proxy.result()) == ("connection_lost", True)
            one = await later.enter_async_context(local_shard(folder, 1))
            agent = PairedAgent(one.pool)
            proxy.ask(2, headers())
            agent.answer(await next_event(agent))
            assert isinstance(await proxy.result(), Answer)


@on_loop
async def test_sibling_that_has_stopped_is_held_to_the_deadline_and_its_late_answer_is_given_to_nobody() -> None:
    asked: list[ProxyRequest] = []

    with short_folder() as folder:
        async with (
            local_shard(folder) as zero,
            odd_sibling(folder, asked.append) as writers,
            raw_proxy(zero.path) as proxy,
        ):
            zero.hears("waf", {1: 1})
            proxy.ask(1, headers("/", has_body=True), flags=0, timeout_ms=50)
            assert failure(await proxy.result()) == ("request_timeout", False)
            assert asked[0].timeout_ms <= 50
            assert asked[0].flags & RELAYED
            proxy.ask(1, chunk("later"), flags=FINAL, timeout_ms=5000)
            await until(lambda: len(asked) == 2)
            blocked = encode_frame(0x20, allowed(asked[0])[5:].replace(b'"allow"', b'{"block":{"status":403}}'))
            writers[0].write(blocked + allowed(asked[1]))
            result = await proxy.result()
            assert isinstance(result, Answer)
            assert result.response == ALLOWED, "the first answer was for the first event"


@on_loop
async def test_answer_of_a_sibling_that_cannot_be_read_costs_one_request_and_a_bad_frame_the_link() -> None:
    replies = [
        lambda request: allowed(request).replace(b'"allow"', b'"alloy"'),
        allowed,
        lambda _: encode_frame(0x99, b"{}"),
        lambda _: b"\x00\x00\x00\x00",
        allowed,
    ]

    with short_folder() as folder:
        async with (
            local_shard(folder) as zero,
            odd_sibling(folder, lambda request: replies[request.request_id - 1](request)) as writers,
            raw_proxy(zero.path) as proxy,
        ):
            zero.hears("waf", {1: 1})
            codes = []
            for number in range(1, 6):
                proxy.ask(number, headers())
                result = await proxy.result()
                codes.append("answer" if isinstance(result, Answer) else result.error_code)
            assert codes == ["bad_answer", "answer", "connection_lost", "connection_lost", "answer"]
            assert len(writers) == 3, "one link, and two more after those that were out of step"


@on_loop
async def test_what_waits_for_a_sibling_that_does_not_read_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "MOST_WAITING", 1_000_000)

    with short_folder() as folder:
        async with (
            local_shard(folder) as zero,
            odd_sibling(folder, lambda _: None) as writers,
            raw_proxy(zero.path) as proxy,
        ):
            zero.hears("waf", {1: 1})
            proxy.ask(1, headers())
            await until(lambda: writers)
            writers[0].transport.pause_reading()  # type: ignore[attr-defined]  # a transport that reads, too
            for number in range(2, 12):
                proxy.ask(number, headers("/" + "x" * 300_000))
            assert failure(await proxy.result()) == ("overloaded", True)


@on_loop
async def test_body_goes_on_to_a_sibling_without_a_hole_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    async with two_shards() as (zero, one, proxy):
        agent = PairedAgent(one.pool)
        zero.hears("waf", {1: 1})
        proxy.ask(1, headers("/", has_body=True), flags=0)
        agent.answer(await next_event(agent))
        assert isinstance(await proxy.result(), Answer)
        with monkeypatch.context() as patch:
            patch.setattr(relay, "MOST_WAITING", -1)
            proxy.ask(1, chunk("evil", last=False), flags=0)
            assert failure(await proxy.result()) == ("overloaded", True)
        proxy.ask(1, chunk("behind", 1))
        assert failure(await proxy.result()) == ("overloaded", True)
        await until(lambda: agent.connection.is_idle)
        assert [seen for seen in agent.read() if seen.is_event] == []


@on_loop
async def test_what_waited_for_a_link_that_was_given_up_is_never_sent() -> None:
    """It has failed as seen by nobody, and may have been asked elsewhere."""
    asked: list[ProxyRequest] = []
    with short_folder() as folder:
        async with (
            odd_sibling(folder, asked.append) as writers,
            local_shard(folder) as zero,
            raw_proxy(zero.path) as proxy,
        ):
            zero.hears("waf", {1: 1})
            link = zero.relay._link(1)
            results: list[object] = []
            zero.relay.begin(1, "waf").submit(headers(), results.append, 5.0, final=True)
            link.fail("it takes too long")
            (lost,) = results
            assert isinstance(lost, ConnectionLost)
            assert lost.retry_safe
            proxy.ask(1, headers("/next"))
            await until(lambda: asked)
            await until(lambda: len(writers) == 2)
            assert [request.event.uri for request in asked if isinstance(request.event, RequestHeaders)] == ["/next"]
