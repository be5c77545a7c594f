"""Proxies that ask for too much, do not read, or are to go elsewhere."""

import pytest
from support.engine import PairedAgent, Seen, chunk, headers, next_event, on_loop, turns
from support.pools import until
from support.product import short_folder
from support.proxying import local_shard, one_shard, raw_proxy, waiting_bytes

from dialout import Block, Decision
from dialout.proxy.wire import GOING_AWAY, RETRY_SAFE, Answer, Failure, Pong, Welcome, encode_hello, encode_ping
from shards import proxies, proxy_server
from shards.proxies import MOST_IN_FLIGHT


@on_loop
async def test_overload_is_told_in_turn_and_is_safe_to_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MOST_IN_FLIGHT >= 10_000
    monkeypatch.setattr(proxies, "MOST_IN_FLIGHT", 3)

    async with one_shard() as (shard, proxy):
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
        proxy.ask(5, headers("/5", has_body=True), flags=0)
        for index in range(20):
            proxy.ask(5, chunk("x", index, last=False), flags=0)
        agent.answer(await next_event(agent))
        frame = await proxy.frame()
        while isinstance(frame, Answer | Failure):
            frame = await proxy.frame()
        assert isinstance(frame, Welcome)
        assert "too many" in frame.error


@on_loop
async def test_proxy_that_does_not_read_is_paused_and_others_are_served() -> None:
    size, many = 50_000, 100

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
                for seen in (seen for seen in agent.read() if seen.is_event):
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
                    behind += [seen for seen in agent.read() if seen.is_event]
                agent.answer(behind.pop(0))
                assert isinstance(await lazy.result(), Answer)


@on_loop
async def test_refused_proxy_that_does_not_read_is_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxies, "LINGER", 0.01)

    async with one_shard() as (shard, proxy):
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


@on_loop
async def test_shard_that_goes_away_serves_what_is_on_its_way_and_waits_for_the_proxys_farewell() -> None:
    async with one_shard() as (shard, proxy):
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


@on_loop
async def test_proxy_that_says_no_farewell_is_told_to_ask_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy_server, "FAREWELL_SECONDS", 0.05)

    async with one_shard() as (shard, proxy):
        shard.server.go_away()
        await until(lambda: not shard.server.is_busy)
        proxy.ask(1, headers())
        assert await proxy.frame() == Welcome(1, going_away=True)
        result = await proxy.result()
        assert isinstance(result, Failure)
        assert (result.error_code, result.flags) == ("shutting_down", RETRY_SAFE)


@pytest.mark.parametrize("moment", ["before the hello", "before it is let in"])
@on_loop
async def test_proxy_that_comes_as_the_shard_goes_away_hears_of_it_with_its_welcome(moment: str) -> None:
    async with one_shard() as (shard, _), raw_proxy(shard.path, hello=False) as late:
        if moment == "before the hello":
            await until(lambda: len(shard.server.connections) == 2)
        else:
            # It has been accepted, and its connection is made in the next turn of the loop.
            (made,) = [connection for connection in shard.server.connections if connection._greeted]
            await until(lambda: len(shard.server.connections) == 2)
            (other,) = shard.server.connections - {made}
            shard.server.connections.discard(other)
        shard.server.go_away()
        if moment == "before it is let in":
            shard.server._made(other)
        late.send(encode_hello("late", "1"))
        welcome = await late.frame()
        assert isinstance(welcome, Welcome)
        assert not welcome.going_away
        assert await late.frame() == Welcome(1, going_away=True)
        assert shard.server.is_busy, "it may have sent a request"
        shard.server.stop()
        late.ask(1, headers())
        result = await late.result()
        assert isinstance(result, Failure)
        assert result.error_code == "shutting_down"
