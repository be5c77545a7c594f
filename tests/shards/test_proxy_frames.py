"""Frames of proxies that are wrong: each costs no more than it has to, and says what was wrong."""

import struct

import pytest
from support.engine import PairedAgent, headers, next_event, on_loop
from support.pools import until
from support.product import short_folder
from support.proxying import event_frame, local_shard, one_shard, raw_proxy

from dialout import CancelReason, encode_frame
from dialout.proxy.wire import (
    Answer,
    Failure,
    ProxyFrame,
    Welcome,
    encode_cancel,
    encode_hello,
    encode_ping,
    encode_request,
)
from ipc.options import PoolOptions
from shards.proxy_server import SWEEP_SECONDS

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
@on_loop
async def test_wrong_frame_closes_its_proxy_with_the_reason_and_no_other_and_nothing_behind_it_is_served(
    wrong: str,
) -> None:
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


@pytest.mark.parametrize(
    "payload", [b"{", b"null", b'{"method":"GET"}', b'{"method":1,"uri":"/","headers":{}}', b"\xff"]
)
@on_loop
async def test_event_that_cannot_be_read_fails_alone(payload: bytes) -> None:
    async with one_shard() as (shard, proxy):
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


@on_loop
async def test_frame_that_a_proxy_does_not_complete_in_time_ends_its_connection_with_the_reason() -> None:
    options = PoolOptions(frame_timeout=SWEEP_SECONDS * 2)
    with short_folder() as folder:
        async with local_shard(folder, options=options) as shard, raw_proxy(shard.path) as proxy:
            proxy.send(struct.pack(">IB", 1000, ProxyFrame.PING) + bytes(100))
            await until(lambda: [one for one in shard.server.connections if one.unfinished()[0]])
            for _ in range(3):
                assert len(shard.server.connections) == 1
                shard.server._sweep()
            refusal = await proxy.frame()
            assert isinstance(refusal, Welcome)
            assert refusal.error == "a frame was not complete after 10 s"
            assert await proxy.frame() is None


@on_loop
async def test_unfinished_frames_of_proxies_have_one_budget_and_the_largest_goes() -> None:
    options = PoolOptions(max_held_bytes=100_000)
    with short_folder() as folder:
        async with (
            local_shard(folder, options=options) as shard,
            raw_proxy(shard.path) as small,
            raw_proxy(shard.path) as large,
        ):
            for proxy, length in ((small, 30_000), (large, 90_000)):
                proxy.send(struct.pack(">IB", 1_000_000, 0x10) + bytes(length))
            await until(lambda: sum(one.unfinished()[0] for one in shard.server.connections) > 120_000)
            shard.server._sweep()
            refusal = await large.frame()
            assert isinstance(refusal, Welcome)
            assert refusal.error == "unfinished frames of proxies have more than 100000 bytes"
            assert await large.frame() is None
            await until(lambda: len(shard.server.connections) == 1)
            assert shard.server._holding.total == 30_005
