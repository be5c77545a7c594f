"""Requests that start in one shard for an agent of another: handed on once, within their time, and never lost."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from support.engine import PairedAgent, Seen, chunk, headers, run, tag_of, turns
from support.fences import descriptors, new_descriptors
from support.pools import until
from support.product import Product, short_folder
from support.proxying import LocalShard, RawProxy, local_shard, raw_proxy
from support.serving import ServingAgent

from dialout import ALLOWED, CancelReason, Dialect, FrameDecoder, encode_frame
from dialout.proxy.pool_client import PoolClient
from dialout.proxy.wire import (
    FINAL,
    RELAYED,
    RETRY_SAFE,
    Answer,
    Failure,
    ProxyRequest,
    decode_from_proxy,
    encode_answer,
    encode_cancel,
    encode_welcome,
)
from ipc.options import FlowControlMode, PoolOptions
from ipc.rundir import RuntimeDir
from shards import dispatch, relay
from shards.calls import Call, Exchange
from shards.proxies import ProxyConnection

PAUSE = encode_frame(0x33, b'{"correlation_id":null,"action":"pause","timestamp_ms":1}')


@pytest.fixture(autouse=True)
def no_descriptor_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test of this file leaves none."""
    if "product" in request.fixturenames:
        yield
        return
    before = descriptors()
    yield
    assert new_descriptors(before) == []


@asynccontextmanager
async def two_shards(options: PoolOptions | None = None) -> AsyncIterator[tuple[LocalShard, LocalShard, RawProxy]]:
    """Shards 0 and 1, and a proxy of shard 0."""
    with short_folder() as folder:
        async with (
            local_shard(folder, 0, options) as zero,
            local_shard(folder, 1, options) as one,
            raw_proxy(zero.path) as proxy,
        ):
            yield zero, one, proxy


async def next_event(agent: PairedAgent) -> Seen:
    """The next event of an agent that is asked for one thing at a time."""
    seen: list[Seen] = []
    while not seen:
        await turns()
        seen = [found for found in agent.read() if found.is_event]
    (event,) = seen
    return event


def failure(result: Answer | Failure) -> tuple[str, bool]:
    """Its code, and whether a retry is safe; AssertionError for an answer."""
    assert isinstance(result, Failure), result
    return result.error_code, bool(result.flags & RETRY_SAFE)


# --- once ----------------------------------------------------------------------------------------------


def test_request_for_an_agent_of_another_shard_is_handed_on_once_with_all_its_events() -> None:
    async def test() -> None:
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

    run(test)


def test_two_shards_that_each_take_the_other_for_the_holder_do_not_play_ping_pong() -> None:
    async def test() -> None:
        async with two_shards() as (zero, one, proxy):
            zero.hears("waf", {1: 1})
            one.hears("waf", {0: 1})
            proxy.ask(1, headers())
            assert failure(await proxy.result()) == ("agent_not_found", True)
            assert one.relay._next_id == 1
            assert zero.relay._next_id - 1 <= 1 + relay.NEWS_WAIT / 0.02

    run(test)


def test_request_that_no_connection_here_can_take_goes_to_the_other_shard_with_less_time() -> None:
    async def test() -> None:
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

    run(test)


def test_cancel_goes_the_way_of_the_request() -> None:
    async def test() -> None:
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

    run(test)


def test_policy_of_the_other_shards_pool_reaches_the_proxy() -> None:
    async def test() -> None:
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

    run(test)


# --- news ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["here", "there", "elsewhere first"])
def test_agent_that_has_just_been_accepted_is_found_before_the_word_of_it_is_here(where: str) -> None:
    async def test() -> None:
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

    async def only_connection(shard: LocalShard) -> ProxyConnection:
        await until(lambda: len(shard.server.connections) == 1)
        (connection,) = shard.server.connections
        return connection

    run(test)


@pytest.mark.parametrize("asked", [0, 1, 2], ids=["where it was", "where it goes", "elsewhere"])
@pytest.mark.parametrize("stays", [False, True], ids=["moves", "stays"])
def test_request_waits_for_an_agent_that_moves(monkeypatch: pytest.MonkeyPatch, asked: int, stays: bool) -> None:
    # It takes many times as long as word of an agent may take.
    monkeypatch.setattr(relay, "NEWS_WAIT", 0.03)

    async def test() -> None:
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

    run(test)


@pytest.mark.parametrize("asked", [0, 1, 2], ids=["where it was", "where it is", "elsewhere"])
def test_agent_is_found_where_it_has_moved_though_nobody_has_told(monkeypatch: pytest.MonkeyPatch, asked: int) -> None:
    # The supervisor has died between the move and the word of it, and no other one comes.
    monkeypatch.setattr(relay, "NEWS_WAIT", 0.0)

    async def test() -> None:
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

    run(test)


def test_request_for_an_agent_that_moves_for_ever_fails_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "MOVING_LIMIT", 0.1)

    async def test() -> None:
        async with two_shards() as (zero, one, proxy):
            zero.hears("waf", {1: 1})
            one.pool.moves("waf")
            proxy.ask(1, headers())
            assert failure(await proxy.result()) == ("agent_unavailable", True)
            one.pool.moves("waf")
            proxy.ask(2, headers(), timeout_ms=60)
            assert failure(await proxy.result())[0] in ("agent_unavailable", "request_timeout")

    run(test)


def test_agent_that_does_not_exist_is_waited_for_once_and_then_refused_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test() -> None:
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

    run(test)


def test_shard_that_has_heard_nothing_yet_asks_the_sibling_that_is_there() -> None:
    async def test() -> None:
        async with two_shards() as (zero, one, proxy):
            zero.directory.stale = True
            agent = PairedAgent(one.pool)
            proxy.ask(1, headers())
            agent.answer(await next_event(agent))
            assert isinstance(await proxy.result(), Answer)

    run(test)


# --- a sibling that fails ---------------------------------------------------------------------------------


def test_requests_fail_at_once_when_the_link_is_lost_and_the_next_ones_use_a_new_one() -> None:
    async def test() -> None:
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

    run(test)


def test_sibling_that_is_gone_has_seen_nothing_and_is_used_again_when_it_is_back() -> None:
    async def test() -> None:
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

    run(test)


@asynccontextmanager
async def odd_sibling(
    folder: Path, reply: Callable[[ProxyRequest], bytes | None]
) -> AsyncIterator[list[asyncio.StreamWriter]]:
    """Something that listens as shard 1 and says what *reply* returns."""
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        decoder = FrameDecoder()
        while data := await reader.read(65536):
            for frame_type, payload in decoder.feed(data):
                frame = decode_from_proxy(frame_type, payload)
                said = reply(frame) if isinstance(frame, ProxyRequest) else encode_welcome(1, "e", "0")
                if said:
                    writer.write(said)
        writer.close()

    server = await asyncio.start_unix_server(serve, str(RuntimeDir(folder).shard_proxy(1)))
    try:
        yield writers
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()


def allowed(request: ProxyRequest) -> bytes:
    """An allow, as a shard writes it."""
    return encode_answer(
        request.request_id, ALLOWED, agent_id=request.agent_id, connection_id="c", shard=1, duration_us=1
    )


def test_sibling_that_has_stopped_is_held_to_the_deadline_and_its_late_answer_is_given_to_nobody() -> None:
    asked: list[ProxyRequest] = []

    async def test() -> None:
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

    run(test)


def test_answer_of_a_sibling_that_cannot_be_read_costs_one_request_and_a_bad_frame_the_link() -> None:
    replies = [
        lambda request: allowed(request).replace(b'"allow"', b'"alloy"'),
        allowed,
        lambda _: encode_frame(0x99, b"{}"),
        lambda _: b"\x00\x00\x00\x00",
        allowed,
    ]

    async def test() -> None:
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

    run(test)


def test_what_waits_for_a_sibling_that_does_not_read_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "MOST_WAITING", 1_000_000)

    async def test() -> None:
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

    run(test)


# --- the real product ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def product() -> Iterator[Product]:
    """A shardgate with two shards."""
    with short_folder() as folder:
        product = Product(folder / "p")
        try:
            yield product
        finally:
            leftovers = product.end()
    assert leftovers == []


def test_agent_that_was_just_accepted_is_found_from_every_shard(product: Product) -> None:
    rounds = 40

    async def test() -> None:
        rundir = RuntimeDir(product.runtime_dir)
        loop = asyncio.get_running_loop()
        async with raw_proxy(rundir.shard_proxy(0)) as zero, raw_proxy(rundir.shard_proxy(1)) as one:
            for number in range(1, rounds + 1):
                name = f"fresh-{number}"
                agent = await loop.run_in_executor(None, ServingAgent, product.socket, name)
                for proxy in (zero, one):
                    proxy.ask(number, headers(), name)
                results = [await zero.result(), await one.result()]
                assert [type(result) for result in results] == [Answer, Answer], results
                await loop.run_in_executor(None, agent.close)

    run(test)


def test_shard_that_is_killed_fails_what_was_handed_to_it_at_once_and_serves_again_when_it_is_back(
    product: Product,
) -> None:
    async def ask_until_answered(proxy: RawProxy, numbers: Iterator[int]) -> None:
        while True:
            proxy.ask(next(numbers), headers("/again"), "reborn")
            result = await proxy.result()
            if isinstance(result, Answer):
                return
            assert result.error_code in {"connection_lost", "agent_not_found"}
            await asyncio.sleep(0.01)  # Shards start in their own time; the test has a limit.

    async def test() -> None:
        rundir = RuntimeDir(product.runtime_dir)
        loop = asyncio.get_running_loop()
        numbers = iter(range(100, 10_000))
        mute = await loop.run_in_executor(None, lambda: ServingAgent(product.socket, "mute", decide=lambda _: None))
        holder = next(shard for shard in (0, 1) if product.query_connections(shard))
        async with raw_proxy(rundir.shard_proxy(1 - holder)) as proxy:
            for number in range(1, 11):
                proxy.ask(number, headers(), "mute", timeout_ms=60_000)
            await until(lambda: len(mute.seen) == 10)
            os.kill(product.shard_pid(holder), signal.SIGKILL)
            results = [await proxy.result() for _ in range(10)]
            assert {failure(result) for result in results} == {("connection_lost", False)}
            await loop.run_in_executor(None, mute.close)
            agent = await loop.run_in_executor(None, ServingAgent, product.socket, "reborn")
            await ask_until_answered(proxy, numbers)
            product.wait_until_running()
            await until(rundir.shard_proxy(holder).exists)
            async with PoolClient(product.runtime_dir) as client, asyncio.timeout(8):
                assert (await client.send_request_headers("reborn", headers())).agent_id == "reborn"
            async with raw_proxy(rundir.shard_proxy(holder)) as back:
                await ask_until_answered(back, numbers)
            await loop.run_in_executor(None, agent.close)

    run(test)
