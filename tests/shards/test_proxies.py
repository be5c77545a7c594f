"""The socket for proxies: what is asked is answered in order, and what is wrong costs no more than it has to."""

import asyncio
import struct
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.engine import PairedAgent, Seen, chunk, headers, run, tag_of, turns
from support.fences import descriptors, new_descriptors
from support.pools import until
from support.product import Product, short_folder
from support.proxying import RawProxy, local_shard, raw_proxy
from support.sending import send
from support.serving import ServingAgent
from support.waiting import wait_for

from dialout import Block, Cancel, CancelReason, Decision, Dialect, RequestHeaders, encode_frame
from dialout.proxy.errors import FlowControlPaused
from dialout.proxy.pool_client import PoolClient
from dialout.proxy.wire import (
    FINAL,
    GOING_AWAY,
    RETRY_SAFE,
    Answer,
    Failure,
    Pong,
    ProxyFrame,
    Welcome,
    decode_from_shard,
    encode_cancel,
    encode_failure,
    encode_finish,
    encode_hello,
    encode_ping,
    encode_request,
)
from ipc.options import FlowControlMode, PoolOptions
from ipc.rundir import RuntimeDir
from shards import proxies
from shards.proxies import MOST_IN_FLIGHT, ProxyConnection

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


def event_frame(request_id: int, payload: bytes, frame_type: int = 0x10, agent_id: bytes = b"waf") -> bytes:
    """An event with any bytes for its JSON."""
    header = struct.pack(">QIBB", request_id, 8000, 0, len(agent_id))
    return encode_frame(frame_type, header + agent_id + payload)


def is_event(seen: Seen) -> bool:
    """Whether it wants an answer."""
    return seen.is_event


def waiting_bytes(connection: ProxyConnection) -> int:
    """What a proxy has not read yet."""
    return 0 if connection._transport is None else connection._transport.get_write_buffer_size()


async def next_event(agent: PairedAgent) -> Seen:
    """The next event of an agent that is asked for one thing at a time."""
    seen: list[Seen] = []
    while not seen:
        await turns()
        seen = list(filter(is_event, agent.read()))
    (event,) = seen
    return event


# --- what is wrong -------------------------------------------------------------------------------------

BEFORE_HELLO = {
    "an event": event_frame(1, b'{"method":"GET","uri":"/","headers":{}}'),
    "an unreadable event": event_frame(1, b"{"),
    "a ping": encode_ping(b"x"),
    "a cancel": encode_cancel(1, "waf", CancelReason.MANUAL),
    "another protocol": encode_frame(ProxyFrame.HELLO, b'{"protocol":2}'),
    "a hello that is none": encode_frame(ProxyFrame.HELLO, b"[]"),
    "a registration": encode_frame(0x03, b'{"agent_id":"waf"}'),
}
AFTER_HELLO = {
    "a length of 0": b"\x00\x00\x00\x00",
    "a length above the limit": b"\x01\x00\x00\x01\x10",
    "an unknown type": encode_frame(0x99, b"{}"),
    "a frame of a shard": encode_frame(ProxyFrame.ANSWER, b"{}"),
    "request id 0": event_frame(0, b'{"method":"GET","uri":"/","headers":{}}'),
    "an incomplete header": encode_frame(0x10, b"\x00" * 13),
    "an unreadable cancel": encode_frame(ProxyFrame.CANCEL, struct.pack(">QIBB", 5, 0, 0, 3) + b"waf" + b"{"),
    "an unreadable finish": encode_frame(ProxyFrame.FINISH, struct.pack(">QIBB", 5, 0, 0, 3) + b"w f{}"),
}


@pytest.mark.parametrize("wrong", [*BEFORE_HELLO, *AFTER_HELLO])
def test_wrong_frame_closes_its_proxy_with_the_reason_and_no_other_and_nothing_behind_it_is_served(wrong: str) -> None:
    async def test() -> None:
        with short_folder() as folder:
            async with (
                local_shard(folder) as shard,
                raw_proxy(shard.path) as other,
                raw_proxy(shard.path, hello=wrong in AFTER_HELLO) as proxy,
            ):
                agent = PairedAgent(shard.pool)
                other.ask(1, headers("/other"))
                seen = await next_event(agent)
                behind = encode_hello("x", "1") + encode_request(headers("/behind"), request_id=9, agent_id="waf")
                proxy.send((BEFORE_HELLO | AFTER_HELLO)[wrong] + behind)
                refusal = await proxy.frame()
                assert isinstance(refusal, Welcome)
                assert refusal.error
                assert await proxy.frame() is None
                agent.answer(seen)
                assert isinstance(await other.result(), Answer)
                assert (shard.pool.requests.answered, shard.pool.requests.failed) == (1, {})

    run(test)


def test_refused_proxy_that_does_not_read_is_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxies, "LINGER", 0.01)

    async def test() -> None:
        with short_folder() as folder:
            async with local_shard(folder) as shard, raw_proxy(shard.path) as proxy:
                agent = PairedAgent(shard.pool)
                for number in range(1, 9):
                    proxy.ask(number, headers(f"/{number}"))
                proxy.reader._transport.pause_reading()  # type: ignore[attr-defined]  # StreamReader has no such method
                await until(lambda: shard.pool.requests.in_flight == 8)
                for seen in agent.read():
                    agent.answer(seen, Decision(Block(403, "x" * 100_000)))
                    await turns()
                (connection,) = shard.server.connections
                assert waiting_bytes(connection) > 0
                connection.refuse("enough")
                await until(lambda: not shard.server.connections)

    run(test)


@pytest.mark.parametrize(
    "payload", [b"{", b"null", b'{"method":"GET"}', b'{"method":1,"uri":"/","headers":{}}', b"\xff"]
)
def test_event_that_cannot_be_read_fails_alone(payload: bytes) -> None:
    async def test() -> None:
        with short_folder() as folder:
            async with local_shard(folder) as shard, raw_proxy(shard.path) as proxy:
                agent = PairedAgent(shard.pool)
                proxy.ask(1, headers("/good"))
                proxy.send(event_frame(2, payload))
                failure = await proxy.result()
                assert isinstance(failure, Failure)
                assert (failure.request_id, failure.error_code) == (2, "bad_request")
                agent.answer(await next_event(agent))
                assert (await proxy.result()).request_id == 1
                proxy.ask(2, headers("/again"))
                agent.answer(await next_event(agent))
                assert isinstance(await proxy.result(), Answer)

    run(test)


# --- order ---------------------------------------------------------------------------------------------


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
def test_failure_of_a_later_event_waits_for_its_turn_and_takes_those_behind_it_along(
    misstep: Callable[[RawProxy], None], code: str
) -> None:
    """A failure that came before the answer of an earlier event would be taken for that answer."""

    async def test() -> None:
        with short_folder() as folder:
            async with local_shard(folder) as shard, raw_proxy(shard.path) as proxy:
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
                assert list(filter(is_event, agent.read())) == [], "no body with a hole in it"
                (connection,) = shard.server.connections
                assert (len(connection._requests), connection._in_flight) == (0, 0)

    run(test)


def test_events_of_one_request_are_answered_in_order_and_those_of_others_as_they_are_ready() -> None:
    async def test() -> None:
        with short_folder() as folder:
            async with local_shard(folder) as shard, raw_proxy(shard.path) as proxy:
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

    run(test)


def test_request_that_no_agent_saw_may_begin_again() -> None:
    async def test() -> None:
        with short_folder() as folder:
            async with local_shard(folder) as shard, raw_proxy(shard.path) as proxy:
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

    run(test)


# --- load ----------------------------------------------------------------------------------------------


def test_overload_is_told_in_turn_and_is_safe_to_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MOST_IN_FLIGHT >= 10_000
    monkeypatch.setattr(proxies, "MOST_IN_FLIGHT", 3)

    async def test() -> None:
        with short_folder() as folder:
            async with local_shard(folder) as shard, raw_proxy(shard.path) as proxy:
                agent = PairedAgent(shard.pool)
                proxy.ask(1, headers("/1", has_body=True), flags=0)
                first = await next_event(agent)
                proxy.ask(2, headers("/2"))
                second = await next_event(agent)
                proxy.ask(3, headers("/3"))
                await next_event(agent)
                proxy.ask(4, headers("/4"))
                failure = await proxy.result()
                assert isinstance(failure, Failure)
                assert (failure.request_id, failure.error_code, failure.flags) == (4, "overloaded", RETRY_SAFE)
                # Of a request that has begun, it comes behind what is in flight.
                proxy.ask(1, chunk("c"))
                agent.answer(second)
                assert (await proxy.result()).request_id == 2
                agent.answer(first)
                results = [await proxy.result(), await proxy.result()]
                assert [type(result) for result in results] == [Answer, Failure]
                assert isinstance(results[1], Failure)
                assert (results[1].error_code, results[1].flags) == ("overloaded", RETRY_SAFE)
                proxy.ask(4, headers("/4 again"))
                agent.answer(await next_event(agent))
                assert isinstance(await proxy.result(), Answer)
                # A flood that does not stop is somebody's mistake.
                for index in range(20):
                    proxy.ask(5, chunk("x", index, last=False), flags=0)
                frame = await proxy.frame()
                while isinstance(frame, Failure):
                    frame = await proxy.frame()
                assert isinstance(frame, Welcome)
                assert "too many" in frame.error

    run(test)


def test_proxy_that_does_not_read_is_paused_and_others_are_served() -> None:
    size, many = 50_000, 100

    async def test() -> None:
        with short_folder() as folder:
            async with (
                local_shard(folder) as shard,
                raw_proxy(shard.path) as lazy,
                raw_proxy(shard.path) as other,
            ):
                agent = PairedAgent(shard.pool)
                answered = 0
                for number in range(1, many + 1):
                    lazy.ask(number, headers(f"/{number}"))
                # As long as the proxy is read, what it asks is answered; its stream's own buffer is small.
                lazy.reader._transport.pause_reading()  # type: ignore[attr-defined]  # StreamReader has no such method
                while answered < many:
                    await turns()
                    for seen in filter(is_event, agent.read()):
                        answered += 1
                        agent.answer(seen, Decision(Block(403, "x" * size)))
                        await turns()
                await until(lambda: shard.pool.requests.answered == many)
                held = max(shard.server.connections, key=waiting_bytes)
                assert waiting_bytes(held) > size
                for number in range(many + 1, many + 51):
                    lazy.ask(number, headers(f"/{number}"))
                for number in range(1, 20):
                    other.ask(number, headers(f"/other {number}"))
                    agent.answer(await next_event(agent))
                    assert isinstance(await other.result(), Answer)
                assert held._transport is not None
                assert not held._transport.is_reading()
                requests = shard.pool.requests
                assert (requests.answered, requests.in_flight) == (answered + 19, 0), "new events are not read"
                lazy.reader._transport.resume_reading()  # type: ignore[attr-defined]  # StreamReader has no such method
                for _ in range(many):
                    assert isinstance(await lazy.result(), Answer)
                behind: list[Seen] = []
                for _ in range(50):
                    while not behind:
                        await turns()
                        behind += list(filter(is_event, agent.read()))
                    agent.answer(behind.pop(0))
                    assert isinstance(await lazy.result(), Answer)

    run(test)


# --- cancels --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", [Dialect.SDK, Dialect.CORE])
@pytest.mark.parametrize("how", ["cancel", "disconnect"])
def test_cancelled_request_is_cancelled_at_the_agent_once(dialect: Dialect, how: str) -> None:
    async def test() -> None:
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

    run(test)


def test_request_that_waits_for_news_of_its_agent_keeps_its_order_and_can_be_cancelled() -> None:
    async def test() -> None:
        with short_folder() as folder:
            async with local_shard(folder) as shard, raw_proxy(shard.path) as proxy:
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

    run(test)


# --- the pool's policy ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "policy"), [("fail-open", "open"), ("fail-closed", "closed")])
def test_paused_agent_is_told_to_the_proxy_with_the_pools_policy(mode: str, policy: str) -> None:
    async def test() -> None:
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

    run(test)


@pytest.mark.parametrize(("written", "read"), [("open", "open"), ("closed", "closed"), (None, None), ("ajar", None)])
def test_policy_on_the_wire_is_one_of_two_words_or_none(written: str | None, read: str | None) -> None:
    frame = encode_failure(1, "flow_control_paused", "x", shard=0, policy=written)  # type: ignore[arg-type]
    assert (b"policy" in frame) is (written is not None), "older readers get what they got before"
    failure = decode_from_shard(frame[4], frame[5:])
    assert isinstance(failure, Failure)
    assert failure.policy == read


# --- the real product ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def product() -> Iterator[Product]:
    """A shardgate whose pool fails open."""
    with short_folder() as folder:
        config = folder / "shardgate.kdl"
        config.write_text('reverse-listener {\n pool {\n flow-control "fail-open"\n }\n}\n')
        product = Product(folder / "p", "--config", str(config))
        try:
            yield product
        finally:
            leftovers = product.end()
    assert leftovers == []


@settings(max_examples=30)
@given(
    pieces=st.lists(
        st.one_of(
            st.binary(max_size=30),
            st.builds(encode_frame, st.sampled_from([*range(0x10, 0x18), 0x30, 0x31, 1]), st.binary(max_size=40)),
            st.builds(event_frame, st.integers(0, 3), st.binary(max_size=10), st.integers(0x10, 0x17)),
        ),
        max_size=6,
    ),
    hello=st.booleans(),
)
def test_any_bytes_of_a_proxy_cost_nobody_else_anything(
    product: Product, served: "tuple[ServingAgent, asyncio.Runner, RawProxy]", pieces: list[bytes], hello: bool
) -> None:
    _, runner, other = served

    async def test() -> None:
        async with asyncio.timeout(10), raw_proxy(RuntimeDir(product.runtime_dir).shard_proxy(0), hello=hello) as proxy:
            for piece in pieces:
                proxy.send(piece)
            other.ask(next(NUMBERS), headers("/fine"), "steady")
            assert isinstance(await other.result(), Answer)

    runner.run(test())


NUMBERS = iter(range(1, 1 << 30))


@pytest.fixture(scope="module")
def served(product: Product) -> "Iterator[tuple[ServingAgent, asyncio.Runner, RawProxy]]":
    """An agent, and a proxy that asks it from a loop of its own."""
    path = RuntimeDir(product.runtime_dir).shard_proxy(0)
    with ServingAgent(product.socket, "steady") as agent, asyncio.Runner() as runner:
        context = raw_proxy(path)
        proxy = runner.run(context.__aenter__())
        yield agent, runner, proxy
        runner.run(context.__aexit__(None, None, None))


def test_requests_of_a_proxy_that_is_gone_are_cancelled_at_the_agent(product: Product) -> None:
    with ServingAgent(product.socket, "abandoned", Dialect.CORE, lambda _: None) as agent:

        async def test() -> None:
            # From both shards, so that one of them hands it on to the other.
            rundir = RuntimeDir(product.runtime_dir)
            async with raw_proxy(rundir.shard_proxy(0)) as zero, raw_proxy(rundir.shard_proxy(1)) as one:
                for proxy in (zero, one):
                    for number in range(1, 4):
                        proxy.ask(number, headers(f"/{number}"), "abandoned")
                await until(lambda: len(agent.seen) == 6)

        run(test)
        wait_for(lambda: len(agent.seen) == 12, "the cancels")
        asked = {correlation_id for _, correlation_id, event in agent.seen if isinstance(event, RequestHeaders)}
        cancelled = [correlation_id for _, correlation_id, event in agent.seen if isinstance(event, Cancel)]
        assert sorted(cancelled, key=str) == sorted(asked, key=str), "each of them once"


def test_shard_that_goes_away_serves_what_is_on_its_way_and_waits_for_the_proxys_farewell() -> None:
    async def test() -> None:
        with short_folder() as folder:
            async with local_shard(folder) as shard, raw_proxy(shard.path) as proxy:
                agent = PairedAgent(shard.pool)
                shard.server.go_away()
                assert await proxy.frame() == Welcome(1, going_away=True)
                proxy.ask(1, headers("/late"))
                agent.answer(await next_event(agent))
                assert isinstance(await proxy.result(), Answer)
                assert shard.server.is_busy, "another one may be on its way"
                proxy.send(encode_ping(b"{}"))
                assert isinstance(await proxy.frame(), Pong)
                assert shard.server.is_busy, "that was about something else"
                proxy.ask(2, headers("/last"))
                proxy.send(encode_ping(GOING_AWAY))
                seen = await next_event(agent)
                assert isinstance(await proxy.frame(), Pong)
                assert shard.server.is_busy, "one is in flight"
                agent.answer(seen)
                assert isinstance(await proxy.result(), Answer)
                assert not shard.server.is_busy
                # Since Python 3.13 the file is removed, too.
                with pytest.raises((ConnectionRefusedError, FileNotFoundError)):
                    async with raw_proxy(shard.path):
                        pass

    run(test)


def test_proxy_that_says_no_farewell_is_told_to_ask_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxies, "FAREWELL_SECONDS", 0.05)

    async def test() -> None:
        with short_folder() as folder:
            async with local_shard(folder) as shard, raw_proxy(shard.path) as proxy:
                shard.server.go_away()
                await until(lambda: not shard.server.is_busy)
                proxy.ask(1, headers())
                assert await proxy.frame() == Welcome(1, going_away=True)
                result = await proxy.result()
                assert isinstance(result, Failure)
                assert (result.error_code, result.flags) == ("shutting_down", RETRY_SAFE)

    run(test)


def test_shardgate_send_says_what_the_pools_policy_makes_of_a_pause(product: Product) -> None:
    with ServingAgent(product.socket, "pausing", Dialect.CORE) as agent:
        agent.send(PAUSE)

        def paused() -> bool:
            return send(product, "pausing", "--json").returncode == 1

        wait_for(paused, "the pause to be heard of")
        done = send(product, "pausing", "--json")
        assert '"policy":"open"' in done.stderr.replace(" ", "")
        assert '"decision"' not in done.stdout + done.stderr
        assert "fail-open: the proxy lets the request pass" in send(product, "pausing").stderr
