"""Requests of proxies: answered in the order of their events, cancelled once, and failed with the reason."""

import asyncio
from collections.abc import Callable

import pytest
from support.engine import PAUSE, PairedAgent, chunk, headers, next_event, on_loop, tag_of, turns
from support.pools import until
from support.product import short_folder
from support.proxying import RawProxy, event_frame, failure, local_shard, one_shard, raw_proxy, two_shards

from dialout import (
    AgentEvent,
    Cancel,
    CancelReason,
    Capabilities,
    Configure,
    Dialect,
    Event,
    GuardrailInspect,
    RequestComplete,
    ResponseBodyChunk,
    ResponseHeaders,
    WebSocketFrame,
)
from dialout.proxy.errors import FlowControlPaused
from dialout.proxy.pool_client import PoolClient
from dialout.proxy.wire import (
    FINAL,
    RETRY_SAFE,
    Answer,
    Failure,
    decode_from_shard,
    encode_cancel,
    encode_failure,
    encode_finish,
    encode_ping,
)
from ipc.options import FlowControlMode, PoolOptions


def unreadable(proxy: RawProxy) -> None:
    proxy.send(event_frame(1, b"{", 0x11))


def for_another_agent(proxy: RawProxy) -> None:
    proxy.ask(1, chunk("x"), "auth", flags=0)


def hasty(proxy: RawProxy) -> None:
    proxy.ask(1, chunk("x", last=False), flags=0, timeout_ms=1)


@pytest.mark.parametrize(
    ("misstep", "code"),
    [(unreadable, "bad_request"), (for_another_agent, "bad_request"), (hasty, "request_timeout")],
)
@on_loop
async def test_failure_of_a_later_event_waits_for_its_turn_and_takes_those_behind_it_along(
    misstep: Callable[[RawProxy], None], code: str
) -> None:
    """A failure that came before the answer of an earlier event would be taken for that answer."""
    async with one_shard() as (shard, proxy):
        agent = PairedAgent(shard.pool)
        proxy.ask(1, headers("/first", has_body=True), flags=0)
        seen = await next_event(agent)
        misstep(proxy)
        proxy.ask(1, chunk("behind", 1))
        # A failure of another request shows that all of these were read; then the hasty one has its time.
        proxy.send(event_frame(2, b"{"))
        assert (await proxy.result()).request_id == 2
        if misstep is hasty:
            await until(lambda: shard.pool.requests.failed["request_timeout"])
        agent.answer(seen)
        results = [await proxy.result() for _ in range(3)]
        assert {result.request_id for result in results} == {1}
        assert isinstance(results[0], Answer)
        assert [result.error_code for result in results[1:] if isinstance(result, Failure)] == [code, code]
        await turns()
        assert [seen for seen in agent.read() if seen.is_event] == [], "no body with a hole in it"
        (connection,) = shard.server.connections
        assert (len(connection._requests), connection._in_flight) == (0, 0)


@on_loop
async def test_events_of_one_request_are_answered_in_order_and_those_of_others_as_they_are_ready() -> None:
    async with one_shard() as (shard, proxy):
        agent = PairedAgent(shard.pool)
        proxy.ask(1, headers("/slow", has_body=True), flags=0)
        for index in range(50):
            proxy.ask(1, chunk(f"c{index}", index, last=index == 49), flags=FINAL if index == 49 else 0)
        slow = await next_event(agent)
        proxy.ask(2, headers("/quick"))
        agent.answer(await next_event(agent))
        assert (await proxy.result()).request_id == 2
        agent.answer(slow)
        tags = ["/slow"]
        for _ in range(50):
            event = await next_event(agent)
            tags.append(tag_of(event.event))
            agent.answer(event)
        got = []
        for _ in range(51):
            result = await proxy.result()
            assert isinstance(result, Answer)
            assert result.request_id == 1
            got.append(result.response.request_headers[0].value)
        assert got == tags == ["/slow", *(f"c{n}" for n in range(50))]
        (connection,) = shard.server.connections
        assert len(connection._requests) == 0


@on_loop
async def test_request_that_no_agent_saw_may_begin_again() -> None:
    async with one_shard() as (shard, proxy):
        proxy.ask(1, headers("/", has_body=True), flags=0)
        failure = await proxy.result()
        assert isinstance(failure, Failure)
        assert (failure.error_code, failure.flags) == ("agent_not_found", RETRY_SAFE)
        agent = PairedAgent(shard.pool)
        proxy.ask(1, headers("/again", has_body=True), flags=0)
        agent.answer(await next_event(agent))
        assert isinstance(await proxy.result(), Answer)
        proxy.ask(1, chunk("body"))
        agent.answer(await next_event(agent))
        assert isinstance(await proxy.result(), Answer)


@pytest.mark.parametrize("dialect", [Dialect.SDK, Dialect.CORE])
@pytest.mark.parametrize("how", ["cancel", "disconnect"])
@on_loop
async def test_cancelled_request_is_cancelled_at_the_agent_once(dialect: Dialect, how: str) -> None:
    with short_folder() as folder:
        async with local_shard(folder) as shard:
            agent = PairedAgent(shard.pool, dialect=dialect)
            async with raw_proxy(shard.path) as proxy:
                proxy.ask(1, headers("/", has_body=True), flags=0)
                proxy.ask(1, chunk("a", last=False), flags=0)
                seen = await next_event(agent)
                if how == "cancel":
                    proxy.send(encode_cancel(1, "waf", CancelReason.UPSTREAM_ERROR))
                    results = [await proxy.result(), await proxy.result()]
                    assert [r.error_code for r in results if isinstance(r, Failure)] == ["cancelled", "cancelled"]
                    proxy.send(encode_finish(1, "waf"))
                    proxy.send(encode_ping(b"all of it was read"))
                    await proxy.frame()
            await until(lambda: not shard.server.connections)
            await turns()
            cancels = agent.read()
            reason = CancelReason.UPSTREAM_ERROR if how == "cancel" else CancelReason.CLIENT_DISCONNECT
            assert [found.event for found in cancels] == [Cancel(reason)]
            same = cancels[0].request_id, cancels[0].correlation_id
            assert same == (seen.request_id, seen.correlation_id)
            assert shard.pool.requests.in_flight == 0


@on_loop
async def test_request_that_waits_for_news_of_its_agent_keeps_its_order_and_can_be_cancelled() -> None:
    async with one_shard() as (shard, proxy):
        proxy.ask(1, headers("/first", has_body=True), flags=0)
        proxy.ask(1, chunk("second"))
        proxy.ask(2, headers("/cancelled", has_body=True), flags=0)
        proxy.ask(2, chunk("cancelled"))
        proxy.send(encode_cancel(2, "waf", CancelReason.MANUAL))
        for _ in range(2):
            result = await proxy.result()
            assert isinstance(result, Failure)
            assert (result.request_id, result.error_code) == (2, "cancelled")
        agent = PairedAgent(shard.pool)
        for tag in ("/first", "second"):
            seen = await next_event(agent)
            assert tag_of(seen.event) == tag
            agent.answer(seen)
            assert isinstance(await proxy.result(), Answer)
        assert shard.pool.requests.answered == 2


@pytest.mark.parametrize(("mode", "policy"), [("fail-open", "open"), ("fail-closed", "closed")])
@on_loop
async def test_paused_agent_is_told_to_the_proxy_with_the_pools_policy(mode: str, policy: str) -> None:
    options = PoolOptions(flow_control=FlowControlMode(mode))
    with short_folder() as folder:
        async with local_shard(folder, 0, options) as shard, raw_proxy(shard.path) as proxy:
            agent = PairedAgent(shard.pool, dialect=Dialect.CORE)
            agent.send(PAUSE)
            await until(lambda: agent.connection.paused)
            proxy.ask(1, headers())
            failure = await proxy.result()
            assert isinstance(failure, Failure)
            assert (failure.error_code, failure.policy) == ("flow_control_paused", policy)
            proxy.ask(2, headers(), "nobody")
            failure = await proxy.result()
            assert isinstance(failure, Failure)
            assert (failure.error_code, failure.policy) == ("agent_not_found", None)
            async with PoolClient(folder) as client:
                with pytest.raises(FlowControlPaused) as caught:
                    await client.send_request_headers("waf", headers())
                assert caught.value.policy == policy


@pytest.mark.parametrize(("written", "read"), [("open", "open"), ("closed", "closed"), (None, None), ("ajar", None)])
def test_policy_on_the_wire_is_one_of_two_words_or_none(written: str | None, read: str | None) -> None:
    frame = encode_failure(1, "flow_control_paused", "x", shard=0, policy=written)  # type: ignore[arg-type]
    assert (b"policy" in frame) is (written is not None), "older readers get what they got before"
    failure = decode_from_shard(frame[4], frame[5:])
    assert isinstance(failure, Failure)
    assert failure.policy == read


def refused_as_overloaded(proxy: RawProxy) -> None:
    proxy.ask(1, headers("/refused", has_body=True), flags=0)


def cannot_be_read(proxy: RawProxy) -> None:
    proxy.send(event_frame(1, b"{"))


@pytest.mark.parametrize(("first", "code"), [(refused_as_overloaded, "overloaded"), (cannot_be_read, "bad_request")])
@on_loop
async def test_body_that_was_on_its_way_behind_headers_which_nobody_got_reaches_no_agent(
    first: Callable[[RawProxy], None], code: str
) -> None:
    async with one_shard(PoolOptions(max_concurrent_per_connection=1)) as (shard, proxy):
        agent = PairedAgent(shard.pool)
        proxy.ask(9, headers("/busy"))
        busy = await next_event(agent)
        first(proxy)
        assert failure(await proxy.result())[0] == code
        # Now there is room, and the proxy, which has not read that yet, goes on with the body.
        agent.answer(busy)
        assert isinstance(await proxy.result(), Answer)
        proxy.ask(1, chunk("b0", last=False), flags=0)
        proxy.ask(1, chunk("b1", 1))
        assert [failure(await proxy.result())[0] for _ in range(2)] == [code, code]
        await turns()
        assert [seen for seen in agent.read() if seen.is_event] == []
        # It may begin anew, by the same id.
        for event, flags in ((headers("/again", has_body=True), 0), (chunk("body"), FINAL)):
            proxy.ask(1, event, flags=flags)
            seen = await next_event(agent)
            assert tag_of(seen.event) == tag_of(event)
            agent.answer(seen)
            assert isinstance(await proxy.result(), Answer)


@on_loop
async def test_agent_that_takes_no_headers_gets_the_events_that_it_does_take() -> None:
    async with one_shard() as (shard, proxy):
        agent = PairedAgent(shard.pool, capabilities=Capabilities(events=int(Event.RESPONSE_HEADERS)))
        proxy.ask(1, headers(), flags=0)
        assert failure(await proxy.result()) == ("cannot_receive", True)
        proxy.ask(1, ResponseHeaders(200, {}))
        agent.answer(await next_event(agent))
        assert isinstance(await proxy.result(), Answer)


@pytest.mark.parametrize("gone", ["idle", "dropped"])
@on_loop
async def test_request_that_nobody_went_on_with_is_ended_and_its_connection_is_idle_again(gone: str) -> None:
    options = PoolOptions(affinity_idle=0.0) if gone == "idle" else PoolOptions(most_affinities=1)
    async with one_shard(options) as (shard, proxy):
        agent = PairedAgent(shard.pool)
        begin, go_on = headers("/", has_body=True), chunk("body", last=False)
        for number, event in ((1, begin), (2, begin) if gone == "dropped" else (1, go_on)):
            proxy.ask(number, event, flags=0)
            agent.answer(await next_event(agent))
            assert isinstance(await proxy.result(), Answer)
            await asyncio.sleep(0.002)  # The clock of the loop goes on.
        assert agent.connection.exchanges == 1, "the first one is over, or goes on"
        proxy.send(encode_finish(2 if gone == "dropped" else 1, "waf"))
        await until(lambda: agent.connection.is_idle)


NO_BEGINNING = [chunk("evil"), chunk("evil", 7, last=False), ResponseBodyChunk(0, b"evil", True)]
BEHIND_HEADERS = [ResponseHeaders(200, {}), WebSocketFrame("text", b"evil", True, 5)]


def kind_of(event: AgentEvent) -> str:
    return type(event).__name__


def never_begun(_proxy: RawProxy) -> None:
    pass


def finished(proxy: RawProxy) -> None:
    proxy.send(encode_finish(1, "waf"))


def cancelled(proxy: RawProxy) -> None:
    proxy.send(encode_cancel(1, "waf", CancelReason.MANUAL))


@pytest.mark.parametrize("event", [*NO_BEGINNING, *BEHIND_HEADERS], ids=kind_of)
@pytest.mark.parametrize(
    "end", [never_begun, finished, cancelled, None], ids=lambda end: getattr(end, "__name__", "final")
)
@pytest.mark.parametrize("flags", [0, FINAL])
@on_loop
async def test_event_that_belongs_behind_others_begins_no_request(
    event: AgentEvent, end: Callable[[RawProxy], None] | None, flags: int
) -> None:
    async with one_shard() as (shard, proxy):
        agent, other = PairedAgent(shard.pool, dialect=Dialect.CORE), PairedAgent(shard.pool, dialect=Dialect.CORE)
        if end is not never_begun:
            proxy.ask(1, headers("/", has_body=True), flags=0 if end else FINAL)
            await until(lambda: shard.pool.requests.in_flight)
            await turns()
            for one in (agent, other):
                for seen in one.read():
                    one.answer(seen)
            assert isinstance(await proxy.result(), Answer)
        if end is not None:
            end(proxy)
        for _ in range(2):
            proxy.ask(1, event, flags=flags)
            assert failure(await proxy.result()) == ("bad_request", False)
        await turns()
        assert [seen for one in (agent, other) for seen in one.read() if seen.is_event] == []
        # Another request is served.
        proxy.ask(2, headers("/2"))
        await until(lambda: shard.pool.requests.in_flight)
        await turns()
        for one in (agent, other):
            for seen in one.read():
                one.answer(seen)
        assert isinstance(await proxy.result(), Answer)


@pytest.mark.parametrize("event", [*NO_BEGINNING, *BEHIND_HEADERS], ids=kind_of)
@on_loop
async def test_event_of_a_request_that_was_idle_for_too_long_begins_none(event: AgentEvent) -> None:
    async with one_shard(PoolOptions(affinity_idle=0.0)) as (shard, proxy):
        agent = PairedAgent(shard.pool, dialect=Dialect.CORE)
        proxy.ask(1, headers("/slow", has_body=True), flags=0)
        agent.answer(await next_event(agent))
        assert isinstance(await proxy.result(), Answer)
        await asyncio.sleep(0.002)  # The clock of the loop goes on.
        for connection in shard.server.connections:
            connection.sweep(asyncio.get_running_loop().time())
        proxy.ask(1, event)
        assert failure(await proxy.result()) == ("bad_request", False)
        await turns()
        assert [seen for seen in agent.read() if seen.is_event] == []


BEGINNINGS = [GuardrailInspect("pii_detection", "x"), RequestComplete(200, 1), Configure(1)]


@pytest.mark.parametrize("event", [*NO_BEGINNING, *BEHIND_HEADERS], ids=kind_of)
@pytest.mark.parametrize("beginning", BEGINNINGS, ids=kind_of)
@on_loop
async def test_request_that_began_without_headers_has_no_event_that_belongs_behind_them(
    beginning: AgentEvent, event: AgentEvent
) -> None:
    async with one_shard() as (shard, proxy):
        agent = PairedAgent(shard.pool, dialect=Dialect.CORE)
        proxy.ask(1, beginning, flags=0)
        agent.answer(await next_event(agent))
        assert isinstance(await proxy.result(), Answer)
        proxy.ask(1, event)
        assert failure(await proxy.result()) == ("bad_request", False)
        await turns()
        assert [seen for seen in agent.read() if seen.is_event] == []
        await until(lambda: agent.connection.is_idle)


@pytest.mark.parametrize("event", BEHIND_HEADERS, ids=kind_of)
@on_loop
async def test_response_that_waits_for_its_agent_is_no_beginning_when_the_agent_takes_headers(
    event: AgentEvent,
) -> None:
    """While the agent is nowhere, or between two shards, nobody knows what it takes."""
    async with one_shard() as (shard, proxy):
        proxy.ask(1, event)
        await until(lambda: shard.dispatch.waiting)
        agent = PairedAgent(shard.pool, dialect=Dialect.CORE)
        assert failure(await proxy.result()) == ("bad_request", False)
        await turns()
        assert [seen for seen in agent.read() if seen.is_event] == []


@pytest.mark.parametrize("event", BEHIND_HEADERS, ids=kind_of)
@on_loop
async def test_response_begins_a_request_for_an_agent_that_takes_no_request_headers(event: AgentEvent) -> None:
    events = int(Event.RESPONSE_HEADERS | Event.WEB_SOCKET_FRAME)
    async with one_shard() as (shard, proxy):
        agent = PairedAgent(shard.pool, dialect=Dialect.CORE, capabilities=Capabilities(events=events, websocket=True))
        proxy.ask(1, event)
        agent.answer(await next_event(agent))
        assert isinstance(await proxy.result(), Answer)


@pytest.mark.parametrize("end", [finished, cancelled], ids=["finished", "cancelled"])
@on_loop
async def test_id_of_a_request_whose_answer_is_still_to_come_begins_no_other(end: Callable[[RawProxy], None]) -> None:
    """A proxy must not use it again, and the answer to the one must not come in the place of the other's."""
    async with two_shards() as (zero, one, proxy):
        agent = PairedAgent(one.pool)
        zero.hears("waf", {1: 1})
        proxy.ask(1, headers("/benign", has_body=True), flags=0)
        seen = await next_event(agent)
        end(proxy)
        proxy.ask(1, headers("/evil", has_body=True), flags=0)
        proxy.send(event_frame(2, b"{"))
        assert (await proxy.result()).request_id == 2, "all of these were read"
        agent.answer(seen)
        first = await proxy.result()
        if end is finished:
            assert isinstance(first, Answer)
            assert first.response.request_headers[0].value == "/benign"
        else:
            assert failure(first) == ("cancelled", False)
        assert failure(await proxy.result()) == ("bad_request", False)
        await turns()
        assert [found for found in agent.read() if found.is_event] == []
        # Now it is free.
        proxy.ask(1, headers("/third"))
        agent.answer(await next_event(agent))
        assert isinstance(await proxy.result(), Answer)
        await until(lambda: agent.connection.is_idle)


@on_loop
async def test_late_outcome_of_a_request_that_made_room_ends_no_other_by_its_id() -> None:
    async with one_shard(PoolOptions(most_affinities=1)) as (shard, proxy):
        agent = PairedAgent(shard.pool)
        proxy.ask(1, headers("/1"))
        first = await next_event(agent)
        proxy.ask(2, headers("/2", has_body=True), flags=0)
        await next_event(agent)
        proxy.ask(1, headers("/1 again", has_body=True), flags=0)
        again = await next_event(agent)
        agent.answer(first)
        agent.answer(again)
        assert [(await proxy.result()).request_id for _ in range(2)] == [1, 1]
        proxy.ask(1, chunk("rest"))
        assert tag_of((await next_event(agent)).event) == "rest"


@on_loop
async def test_headers_come_once_in_a_request() -> None:
    async with one_shard() as (shard, proxy):
        agent = PairedAgent(shard.pool)
        proxy.ask(1, headers("/benign", has_body=True), flags=0)
        seen = await next_event(agent)
        proxy.ask(1, headers("/evil"))
        agent.answer(seen)
        agent.answer(seen)
        assert isinstance(await proxy.result(), Answer)
        assert failure(await proxy.result()) == ("bad_request", False)
        await turns()
        assert [found for found in agent.read() if found.is_event] == []
        proxy.ask(2, headers("/2"))
        agent.answer(await next_event(agent))
        assert isinstance(await proxy.result(), Answer)


def test_slow_upload_may_pause_for_many_minutes() -> None:
    assert PoolOptions().affinity_idle >= 1800
