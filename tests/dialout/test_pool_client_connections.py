"""How a PoolClient treats its connections: shards come and go, frames wait, requests are given up.

Against a stand-in for the shards, since only that can be told when to do what; ``test_pool_client.py`` has the rest.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.product import short_folder
from support.stand_in_shard import StandInShard, allowed, answered, failed, until

from dialout import (
    ALLOWED,
    Block,
    CancelReason,
    Decision,
    RequestBodyChunk,
    RequestComplete,
    RequestHeaders,
    ResponseBodyChunk,
    ResponseHeaders,
    encode_frame,
)
from dialout.proxy import shard_links
from dialout.proxy.errors import (
    AgentNotFound,
    AgentUnavailable,
    BadAnswer,
    BadRequest,
    CannotReceive,
    ConnectionLost,
    FailureCode,
    NoShard,
    Overloaded,
    PoolError,
    RequestCancelled,
    RequestTimeout,
    ShuttingDown,
)
from dialout.proxy.pool_client import PoolClient
from dialout.proxy.pool_response import Response
from dialout.proxy.wire import (
    FINAL,
    GOING_AWAY,
    RELAYED,
    RETRY_SAFE,
    ProxyFinish,
    ProxyPing,
    ProxyRequest,
    encode_going_away,
    encode_refusal,
)

Main = Callable[[], Coroutine[Any, Any, None]]
Run = Callable[[Main], None]


def get(uri: str = "/") -> RequestHeaders:
    return RequestHeaders("GET", uri, {})


def run_on(factory: Callable[[], asyncio.AbstractEventLoop], main: Main) -> None:
    """Run *main*; nothing may be left in the loop, and nothing may have gone to its exception handler."""
    complaints: list[dict[str, Any]] = []

    async def fenced() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        await main()
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(fenced())
    assert complaints == []


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    return lambda main: run_on(request.param, main)


@pytest.fixture
def folder() -> Iterator[Path]:
    with short_folder() as path:
        yield path


def asked(response: Response) -> str | None:
    return response.request_headers[0].value


# --- shards that come and go --------------------------------------------------------------------------


def test_client_uses_shards_that_come_later_and_come_back(run: Run, folder: Path) -> None:
    async def main() -> None:
        async with PoolClient(folder, client_name="late") as client:
            assert client.shards == {}
            async with StandInShard(folder, 0):
                await until(lambda: client.shards == {0: 0}, "the first shard")
                async with StandInShard(folder, 7):
                    await until(lambda: client.shards == {0: 0, 7: 0}, "the second shard")
                await until(lambda: client.shards == {0: 0}, "the second shard to be gone")
                assert (await client.send_request_headers("waf", get())).shard == 0
            await until(lambda: client.shards == {}, "the first shard to be gone")
            async with StandInShard(folder, 0):
                await until(lambda: client.shards == {0: 0}, "the first shard to be back")
                assert (await client.send_request_headers("waf", get())).shard == 0

    run(main)


def test_client_finds_a_shard_that_was_away_for_long(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_links, "_LONGEST_PAUSE", 0.05)

    async def main() -> None:
        async with PoolClient(folder) as client:
            links = client._links
            assert links is not None
            async with StandInShard(folder):
                await until(lambda: client.shards, "the shard")
            await until(lambda: not links._keepers, "the client to give it up")
            async with StandInShard(folder):
                await until(lambda: client.shards, "the shard to be back")

    run(main)


def test_client_ignores_other_files_of_the_directory(run: Run, folder: Path) -> None:
    for name in ("shard-x.proxy", "shard-01.proxy", "shard-0.query", "shard-0.proxy.old", "lock"):
        (folder / name).touch()

    async def main() -> None:
        async with StandInShard(folder, 3), PoolClient(folder) as client:
            assert client.shards == {3: 0}

    run(main)


def test_request_waits_for_a_shard_that_is_on_its_way(run: Run, folder: Path) -> None:
    async def main() -> None:
        async with PoolClient(folder, shard_wait=10.0) as client:
            request = asyncio.create_task(client.send_request_headers("waf", get("/early")))
            await asyncio.sleep(0)
            async with StandInShard(folder):
                assert asked(await request) == "/early"

    run(main)


def test_request_fails_when_there_is_no_shard(run: Run, folder: Path) -> None:
    async def main() -> None:
        async with PoolClient(folder / "nothing", shard_wait=0.02) as client:
            with pytest.raises(NoShard, match=r"nothing.*shardgate is running") as raised:
                await client.send_request_headers("waf", get())
        assert raised.value.retry_safe

    run(main)


@pytest.mark.parametrize(
    ("welcome", "reason"),
    [
        (encode_refusal("not today"), "not today"),
        (encode_frame(0x02, b'{"protocol":9}'), "version 9"),
        (encode_frame(0x02, b"[]"), "cannot be read"),
        (b"HTTP/1.1 400 Bad Request\r\n", "out of step"),
    ],
)
def test_client_says_why_a_shard_cannot_be_used(run: Run, folder: Path, welcome: bytes, reason: str) -> None:
    async def main() -> None:
        shard = StandInShard(folder)
        shard.welcome = welcome
        async with shard, PoolClient(folder, shard_wait=0.02) as client:
            with pytest.raises(NoShard, match=reason):
                await client.send_request_headers("waf", get())

    run(main)


def test_dead_socket_file_does_not_keep_the_client_from_living_shards(run: Run, folder: Path) -> None:
    (folder / "shard-0.proxy").touch()

    async def main() -> None:
        async with StandInShard(folder, 1), PoolClient(folder) as client:
            assert (await client.send_request_headers("waf", get())).shard == 1

    run(main)


# --- lost connections ---------------------------------------------------------------------------------


def test_requests_in_flight_fail_at_once_when_their_shard_is_lost(run: Run, folder: Path) -> None:
    async def main() -> None:
        async with (
            StandInShard(folder, 0, lambda _: None) as shard,
            PoolClient(folder, default_timeout=1000.0) as client,
        ):
            tasks = [asyncio.create_task(client.send_request_headers("waf", get())) for _ in range(20)]
            await until(lambda: len(shard.requests) == 20, "the requests")
            shard.drop()
            errors = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(type(error) is ConnectionLost and not error.retry_safe and error.shard == 0 for error in errors)
        assert len(shard.requests) == 20

    run(main)


def test_request_that_was_never_written_goes_to_another_shard(run: Run, folder: Path) -> None:
    big = RequestBodyChunk(0, bytes(3_000_000), True)

    async def main() -> None:
        async with StandInShard(folder, 0, lambda _: None) as stuck, PoolClient(folder) as client:
            stuck.stop_reading()
            # More than the socket and the transport take: what comes behind it stays with the client.
            filler = asyncio.create_task(client.exchange("waf").request_body_chunk(big))
            await asyncio.sleep(0.01)
            small = asyncio.create_task(client.send_request_headers("waf", get("/small"), retry=False))
            await asyncio.sleep(0.01)
            assert client.shards == {0: 2}
            async with StandInShard(folder, 1) as other:
                await until(lambda: 1 in client.shards, "the other shard")
                stuck.drop()
                assert (await small).shard == 1
                with pytest.raises(ConnectionLost) as raised:
                    await filler
                assert not raised.value.retry_safe
                assert len(other.requests) == 1

    run(main)


def test_request_goes_to_another_shard_while_a_connection_is_being_closed(run: Run, folder: Path) -> None:
    async def main() -> None:
        async with StandInShard(folder, 0) as closing, PoolClient(folder) as client:
            [channel] = client._links.channels  # type: ignore[union-attr]  # it is open
            async with StandInShard(folder, 1):
                await until(lambda: 1 in client.shards, "the other shard")
                tasks = [asyncio.create_task(client.send_request_headers("waf", get())) for _ in range(4)]
                await asyncio.sleep(0)
                assert client.shards[0] > 0
                channel.close("between queueing and writing")
                assert {(await task).shard for task in tasks} == {1}
                assert closing.requests == []

    run(main)


def test_client_closes_a_connection_that_is_out_of_step(run: Run, folder: Path) -> None:
    async def main() -> None:
        async with StandInShard(folder, 0, lambda _: None) as shard, PoolClient(folder) as client:
            first = asyncio.create_task(client.send_request_headers("waf", get("/1")))
            second = asyncio.create_task(client.send_request_headers("waf", get("/2")))
            await until(lambda: len(shard.requests) == 2, "the requests")
            shard.write(allowed(shard.requests[0]) + b"\0\0\0\0" + allowed(shard.requests[1]))
            assert asked(await first) == "/1"
            with pytest.raises(ConnectionLost, match="out of step"):
                await second
            shard.reply = allowed
            await until(lambda: client.shards == {0: 0}, "the connection to be back")
            assert asked(await client.send_request_headers("waf", get("/3"))) == "/3"

    run(main)


def test_answer_that_cannot_be_read_fails_only_its_request(run: Run, folder: Path) -> None:
    async def main() -> None:
        async with StandInShard(folder, 0, lambda _: None) as shard, PoolClient(folder) as client:
            first = asyncio.create_task(client.send_request_headers("waf", get("/1")))
            second = asyncio.create_task(client.send_request_headers("waf", get("/2")))
            await until(lambda: len(shard.requests) == 2, "the requests")
            header = shard.requests[0].request_id.to_bytes(8, "big") + bytes(5)
            shard.write(encode_frame(0x20, header + b'{"decision":"perhaps"}') + allowed(shard.requests[1]))
            with pytest.raises(BadAnswer):
                await first
            assert asked(await second) == "/2"

    run(main)


def test_client_that_is_closed_fails_what_is_in_flight(run: Run, folder: Path) -> None:
    async def main() -> None:
        async with StandInShard(folder, 0, lambda _: None) as shard:
            async with PoolClient(folder) as client:
                request = asyncio.create_task(client.send_request_headers("waf", get()))
                await until(lambda: shard.requests, "the request")
            with pytest.raises(ShuttingDown):
                await request
            with pytest.raises(ShuttingDown, match="not open"):
                await client.send_request_headers("waf", get())
            with pytest.raises(ShuttingDown):
                await client.__aenter__()
            await client.aclose()
            await until(lambda: not shard.connections, "the connection to close")

    run(main)


def test_client_that_is_closed_does_not_look_for_another_shard(run: Run, folder: Path) -> None:
    async def main() -> None:
        async with StandInShard(folder, 0) as shard:
            async with PoolClient(folder, shard_wait=1000.0) as client:
                shard.stop_reading()
                big = RequestBodyChunk(0, bytes(3_000_000), True)
                filler = asyncio.create_task(client.exchange("waf").request_body_chunk(big))
                await asyncio.sleep(0.01)
                unwritten = asyncio.create_task(client.send_request_headers("waf", get()))
                await asyncio.sleep(0.01)
            results = await asyncio.gather(filler, unwritten, return_exceptions=True)
            assert [type(result) for result in results] == [ShuttingDown, ShuttingDown]

    run(main)


# --- retries ------------------------------------------------------------------------------------------


def failing(code: str, flags: int) -> Callable[[ProxyRequest], bytes]:
    return lambda request: failed(request, code, flags=flags)


@pytest.mark.parametrize(
    "code", ["agent_not_found", "agent_unavailable", "connection_lost", "overloaded", "shutting_down"]
)
def test_failure_that_is_safe_to_retry_is_retried_on_another_shard(run: Run, folder: Path, code: str) -> None:
    async def main() -> None:
        async with (
            StandInShard(folder, 0, failing(code, RETRY_SAFE)),
            StandInShard(folder, 1),
            PoolClient(folder) as client,
        ):
            assert [(await client.send_request_headers("waf", get())).shard for _ in range(4)] == [1] * 4
            async with client.exchange("waf") as exchange:
                assert (await exchange.request_headers(get())).shard == 1
                assert (await exchange.response_headers(ResponseHeaders(200, {}))).shard == 1

    run(main)


@pytest.mark.parametrize(
    ("code", "flags"),
    [("agent_unavailable", 0), ("circuit_open", RETRY_SAFE), ("bad_request", RETRY_SAFE), ("moon_phase", RETRY_SAFE)],
)
def test_failure_that_no_other_shard_can_mend_is_raised(run: Run, folder: Path, code: str, flags: int) -> None:
    async def main() -> None:
        shards = [StandInShard(folder, shard, failing(code, flags)) for shard in (0, 1)]
        async with shards[0], shards[1], PoolClient(folder) as client:
            with pytest.raises(PoolError) as raised:
                await client.send_request_headers("waf", get())
        assert raised.value.code == code
        assert raised.value.agent_id == "waf"
        assert str(raised.value) == "said shard 0"
        assert sum(len(shard.requests) for shard in shards) == 1

    run(main)


def test_failure_is_retried_once_and_only_when_asked_for(run: Run, folder: Path) -> None:
    async def main() -> None:
        shards = [StandInShard(folder, n, failing("agent_unavailable", RETRY_SAFE)) for n in range(3)]
        async with shards[0], shards[1], shards[2], PoolClient(folder) as client:

            async def attempts(request: Coroutine[Any, Any, Response]) -> int:
                before = sum(len(shard.requests) for shard in shards)
                with pytest.raises(AgentUnavailable):
                    await request
                return sum(len(shard.requests) for shard in shards) - before

            assert await attempts(client.send_request_headers("waf", get())) == 2
            assert await attempts(client.send_response_headers("waf", ResponseHeaders(200, {}))) == 2
            assert await attempts(client.send_request_headers("waf", get(), retry=False)) == 1
            assert await attempts(client.exchange("waf").request_body_chunk(RequestBodyChunk(0, b"", True))) == 1
            assert await attempts(client.send_request_complete("waf", RequestComplete(200, 1))) == 1

    run(main)


def test_retry_goes_to_another_shard_though_the_agent_is_known_to_be_on_the_first(run: Run, folder: Path) -> None:
    async def main() -> None:
        async with StandInShard(folder, 0) as first, PoolClient(folder) as client:
            await client.send_request_headers("waf", get())
            async with StandInShard(folder, 1):
                await until(lambda: 1 in client.shards, "the other shard")
                first.reply = failing("overloaded", RETRY_SAFE)
                assert (await client.send_request_headers("waf", get())).shard == 1
                assert len(first.requests) == 2

    run(main)


def test_exchange_whose_first_event_reached_nobody_can_begin_again_elsewhere(run: Run, folder: Path) -> None:
    async def main() -> None:
        async with StandInShard(folder, 0) as first, PoolClient(folder) as client:
            await client.send_request_headers("waf", get())
            first.reply = failing("overloaded", RETRY_SAFE)
            exchange = client.exchange("waf")
            with pytest.raises(Overloaded):
                await exchange.request_headers(get())
            async with StandInShard(folder, 1):
                await until(lambda: 1 in client.shards, "the other shard")
                # Tried where the agent is known to be, and then, like any first event, at another shard.
                assert (await exchange.request_headers(get())).shard == 1
                assert len(first.requests) == 3
                assert (await exchange.response_headers(ResponseHeaders(200, {}))).shard == 1

    run(main)


def test_failure_of_the_only_shard_is_raised(run: Run, folder: Path) -> None:
    async def main() -> None:
        async with (
            StandInShard(folder, 0, failing("agent_not_found", RETRY_SAFE)) as shard,
            PoolClient(folder) as client,
        ):
            with pytest.raises(AgentNotFound):
                await client.send_request_headers("waf", get())
            assert len(shard.requests) == 1

    run(main)


def test_shard_that_is_going_away_is_avoided(run: Run, folder: Path) -> None:
    async def main() -> None:
        async with (
            StandInShard(folder, 0, failing("shutting_down", RETRY_SAFE)) as leaving,
            StandInShard(folder, 1),
            PoolClient(folder) as client,
        ):
            # Of agents that were not asked for before, so that nothing but the shard speaks against it.
            for number in range(20):
                assert (await client.send_request_headers(f"agent-{number}", get())).shard == 1
            assert len(leaving.requests) == 1

    run(main)


def test_shard_that_says_it_is_going_away_gets_no_new_request_and_loses_none(run: Run, folder: Path) -> None:
    async def main() -> None:
        async with (
            StandInShard(folder, 0, lambda _: None) as leaving,
            PoolClient(folder) as client,
        ):
            # On their way when the shard says it, as those are that the client has not written yet.
            waiting = [asyncio.create_task(client.send_request_headers("waf", get(f"/{n}"))) for n in range(3)]
            await until(lambda: len(leaving.requests) == 3, "the requests")
            waiting += [asyncio.create_task(client.send_request_headers("waf", get("/3")))]
            exchange = client.exchange("waf")
            waiting += [asyncio.create_task(exchange.request_headers(get("/4")))]
            await asyncio.sleep(0)
            leaving.write(encode_going_away())
            await until(lambda: client.shards == {}, "the client to have heard")
            async with StandInShard(folder, 1):
                await until(lambda: client.shards == {1: 0}, "another shard")
                assert (await client.send_request_headers("waf", get("/new"))).shard == 1
                # What has begun goes on where it began.
                waiting += [asyncio.create_task(exchange.request_body_chunk(RequestBodyChunk(0, b"x", True)))]
                await until(lambda: len(leaving.requests) == 6, "the requests that were on their way")
                farewell = leaving.frames.index(ProxyPing(GOING_AWAY))
                assert all(isinstance(frame, ProxyRequest) for frame in leaving.frames[:farewell])
                for request in leaving.requests:
                    leaving.write(allowed(request))
                answers = await asyncio.gather(*waiting)
                assert [answer.shard for answer in answers] == [0] * 6
            exchange.cancel()

    run(main)


# --- giving up ----------------------------------------------------------------------------------------


def test_cancelled_task_cancels_its_request_and_swallows_the_late_answer(run: Run, folder: Path) -> None:
    async def main() -> None:
        async with StandInShard(folder, 0, lambda _: None) as shard, PoolClient(folder) as client:
            given_up = asyncio.create_task(client.send_request_headers("waf", get("/given-up")))
            kept = asyncio.create_task(client.send_request_headers("waf", get("/kept")))
            await until(lambda: len(shard.requests) == 2, "the requests")
            given_up.cancel()
            with pytest.raises(asyncio.CancelledError):
                await given_up
            await until(lambda: shard.cancels, "the cancel")
            [cancel] = shard.cancels
            first, second = shard.requests
            assert (cancel.request_id, cancel.agent_id) == (first.request_id, "waf")
            assert cancel.reason is CancelReason.CLIENT_DISCONNECT
            assert client.shards == {0: 1}
            shard.write(allowed(first) + failed(first, "cancelled") + allowed(second))
            assert asked(await kept) == "/kept"

    run(main)


def test_task_cancelled_in_the_turn_of_its_answer_leaves_nothing_behind(run: Run, folder: Path) -> None:
    async def main() -> None:
        async with StandInShard(folder, 0, lambda _: None) as shard, PoolClient(folder) as client:
            task = asyncio.create_task(client.send_request_headers("waf", get()))
            await until(lambda: shard.requests, "the request")
            [channel] = client._links.channels  # type: ignore[union-attr]  # it is open
            channel.data_received(failed(shard.requests[0], "bad_answer"))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            del task
            await channel.room()
            shard.reply = allowed
            await client.send_request_headers("waf", get())
            assert shard.cancels == []

    run(main)


def test_client_gives_up_a_shard_that_lets_a_deadline_pass(run: Run, folder: Path) -> None:
    async def main() -> None:
        async with StandInShard(folder, 0, lambda _: None) as shard, PoolClient(folder) as client:
            slow = asyncio.create_task(client.send_request_headers("waf", get("/slow"), timeout=1000.0))
            # With the connection there, the short time is the shard's alone.
            await until(lambda: shard.requests, "the slow request")
            with pytest.raises(RequestTimeout) as raised:
                await client.send_request_headers("waf", get("/late"), timeout=0.01)
            assert (raised.value.shard, raised.value.retry_safe) == (0, False)
            await until(lambda: shard.cancels, "the cancel")
            late = next(request for request in shard.requests if request.event == get("/late"))
            assert late.timeout_ms <= 10
            assert [(cancel.request_id, cancel.reason) for cancel in shard.cancels] == [
                (late.request_id, CancelReason.TIMEOUT)
            ]
            assert not slow.done()
            shard.write(b"".join(allowed(request) for request in shard.requests))
            assert asked(await slow) == "/slow"

    run(main)


def test_shard_that_let_a_deadline_pass_is_avoided_until_it_says_something(run: Run, folder: Path) -> None:
    async def main() -> None:
        async with StandInShard(folder, 0, lambda _: None) as stuck, PoolClient(folder) as client:
            await until(lambda: 0 in client.shards, "the shard")
            stuck.stop_reading()
            with pytest.raises(RequestTimeout):
                await client.send_request_headers("waf", get(), timeout=0.01)
            async with StandInShard(folder, 1):
                await until(lambda: 1 in client.shards, "the other shard")
                for number in range(10):
                    assert (await client.send_request_headers(f"agent-{number}", get())).shard == 1
                stuck.reply = lambda request: allowed(request, 0)
                stuck.read_again()
                await until(lambda: any(isinstance(frame, ProxyPing) for frame in stuck.frames), "the ping")
                shards: set[int] = set()
                while shards != {0, 1}:
                    agent = f"agent-{len(stuck.frames)}-{len(shards)}"
                    shards.add((await client.send_request_headers(agent, get())).shard)

    run(main)


@pytest.mark.parametrize("timeout", [0, -1.0, float("nan"), float("inf")])
def test_client_refuses_a_timeout_that_is_none(run: Run, folder: Path, timeout: float) -> None:
    async def main() -> None:
        async with StandInShard(folder) as shard, PoolClient(folder) as client:
            with pytest.raises(BadRequest, match="timeout"):
                await client.send_request_headers("waf", get(), timeout)
            assert shard.requests == []

    run(main)


@pytest.mark.parametrize(("agent_id", "uri"), [("no such id!", "/"), ("waf", "/\udcff")])
def test_client_refuses_what_cannot_be_written(run: Run, folder: Path, agent_id: str, uri: str) -> None:
    async def main() -> None:
        async with StandInShard(folder) as shard, PoolClient(folder) as client:
            with pytest.raises(BadRequest):
                await client.send_request_headers(agent_id, get(uri))
            assert shard.requests == []
            assert client.shards == {0: 0}

    run(main)


# --- writing ------------------------------------------------------------------------------------------


def test_requests_of_one_loop_turn_leave_in_one_write(run: Run, folder: Path) -> None:
    async def main() -> None:
        async with StandInShard(folder) as shard, PoolClient(folder) as client:
            before = shard.reads
            responses = await asyncio.gather(*(client.send_request_headers("waf", get(f"/{n}")) for n in range(100)))
            assert [asked(response) for response in responses] == [f"/{n}" for n in range(100)]
            assert shard.reads - before <= 2

    run(main)


def test_client_refuses_more_than_it_may_buffer_for_one_shard(run: Run, folder: Path) -> None:
    big = RequestBodyChunk(0, bytes(1_500_000), True)

    async def main() -> None:
        async with StandInShard(folder) as shard, PoolClient(folder, max_buffered=5_000_000) as client:
            shard.stop_reading()
            tasks = [asyncio.create_task(client.exchange("waf").request_body_chunk(big)) for _ in range(2)]
            await asyncio.sleep(0.01)
            with pytest.raises(Overloaded) as raised:
                await client.exchange("waf").request_body_chunk(big)
            assert (raised.value.shard, raised.value.retry_safe) == (0, True)
            small = asyncio.create_task(client.send_request_headers("waf", get("/small")))
            shard.read_again()
            assert asked(await small) == "/small"
            assert [asked(response) for response in await asyncio.gather(*tasks)] == ["0", "0"]
            assert client.shards == {0: 0}

    run(main)


def test_overloaded_request_goes_to_another_shard_when_it_may(run: Run, folder: Path) -> None:
    big = RequestBodyChunk(0, bytes(3_000_000), True)

    async def main() -> None:
        async with StandInShard(folder, 0) as shard, PoolClient(folder, max_buffered=1) as client:
            shard.stop_reading()
            task = asyncio.create_task(client.exchange("waf").request_body_chunk(big))
            await asyncio.sleep(0.01)
            async with StandInShard(folder, 1):
                await until(lambda: 1 in client.shards, "the other shard")
                assert {(await client.send_request_headers("waf", get())).shard for _ in range(10)} == {1}
                task.cancel()
                shard.drop()
                await asyncio.gather(task, return_exceptions=True)

    run(main)


def test_body_waits_while_its_shard_does_not_read(run: Run, folder: Path) -> None:
    async def main() -> None:
        async with StandInShard(folder) as shard, PoolClient(folder, max_buffered=1) as client:
            exchange = client.exchange("waf")
            await exchange.request_headers(get())
            shard.stop_reading()
            filler = asyncio.create_task(
                client.exchange("waf").request_body_chunk(RequestBodyChunk(0, bytes(3_000_000), True))
            )
            await asyncio.sleep(0.01)
            body = asyncio.create_task(exchange.request_body(b"x" * 10))
            await asyncio.sleep(0.01)
            assert not body.done()
            shard.read_again()
            assert asked(await body) == "0"
            await filler

    run(main)


def test_body_that_waits_fails_when_its_shard_is_lost(run: Run, folder: Path) -> None:
    async def main() -> None:
        async with StandInShard(folder) as shard, PoolClient(folder) as client:
            exchange = client.exchange("waf")
            await exchange.request_headers(get())
            shard.stop_reading()
            big = RequestBodyChunk(0, bytes(3_000_000), True)
            filler = asyncio.create_task(client.exchange("waf").request_body_chunk(big))
            await asyncio.sleep(0.01)
            body = asyncio.create_task(exchange.request_body(b"x" * 10))
            await asyncio.sleep(0.01)
            shard.drop()
            results = await asyncio.gather(body, filler, return_exceptions=True)
            assert [type(result) for result in results] == [ConnectionLost, ConnectionLost]

    run(main)


# --- where requests go --------------------------------------------------------------------------------


def test_client_remembers_which_shard_had_to_be_asked(run: Run, folder: Path) -> None:
    async def main() -> None:
        async with (
            StandInShard(folder, 0, lambda request: allowed(request, 1, RELAYED)) as other,
            StandInShard(folder, 1) as holder,
            PoolClient(folder) as client,
        ):
            responses = [await client.send_request_headers("waf", get()) for _ in range(10)]
            assert {response.shard for response in responses} == {1}
            assert len(other.requests) <= 1
            assert [response.relayed for response in responses].count(True) == len(other.requests)
            assert len(other.requests) + len(holder.requests) == 10
            assert responses[0].duration == 0.0015
            assert responses[0].connection_id == "on-1"

    run(main)


@pytest.mark.parametrize("code", ["agent_not_found", "agent_unavailable", "connection_lost"])
def test_client_forgets_where_an_agent_was_when_it_is_not_there(run: Run, folder: Path, code: str) -> None:
    async def main() -> None:
        async with StandInShard(folder, 0) as first, PoolClient(folder) as client:
            await client.send_request_headers("waf", get())
            first.reply = lambda _: None
            held = asyncio.create_task(client.send_request_headers("silent", get()))
            await until(lambda: len(first.requests) == 2, "the request that keeps the first shard busier")
            async with StandInShard(folder, 1):
                await until(lambda: 1 in client.shards, "the other shard")
                first.reply = allowed
                assert (await client.send_request_headers("waf", get())).shard == 0
                first.reply = failing(code, 0)
                with pytest.raises(PoolError):
                    await client.send_request_headers("waf", get())
                assert (await client.send_request_headers("waf", get())).shard == 1
                held.cancel()
                await asyncio.wait([held])

    run(main)


def test_client_forgets_what_was_on_a_shard_that_is_lost(run: Run, folder: Path) -> None:
    async def main() -> None:
        async with StandInShard(folder, 0) as first, PoolClient(folder) as client:
            await client.send_request_headers("waf", get())
            first.drop()
            await until(lambda: client.shards == {}, "the loss")
            await until(lambda: client.shards == {0: 0}, "the shard to be back")
            first.reply = lambda _: None
            held = asyncio.create_task(client.send_request_headers("silent", get()))
            await until(lambda: len(first.requests) == 2, "the request that keeps the first shard busier")
            async with StandInShard(folder, 1):
                await until(lambda: 1 in client.shards, "the other shard")
                assert (await client.send_request_headers("waf", get())).shard == 1
                held.cancel()
                await asyncio.wait([held])

    run(main)


def test_client_spreads_requests_that_take_long(run: Run, folder: Path) -> None:
    async def main() -> None:
        shards = [StandInShard(folder, n, lambda _: None) for n in range(3)]
        async with shards[0], shards[1], shards[2], PoolClient(folder) as client:
            tasks = [asyncio.create_task(client.send_request_headers("waf", get())) for _ in range(30)]
            await until(lambda: sum(len(shard.requests) for shard in shards) == 30, "the requests")
            assert client.shards == {0: 10, 1: 10, 2: 10}
            for shard in shards:
                shard.write(b"".join(allowed(request, shard.shard) for request in shard.requests))
            await asyncio.gather(*tasks)
            assert client.shards == {0: 0, 1: 0, 2: 0}

    run(main)


# --- exchanges ----------------------------------------------------------------------------------------


def test_exchange_sends_all_events_to_one_shard_and_finishes(run: Run, folder: Path) -> None:
    async def main() -> None:
        async with StandInShard(folder, 0) as zero, StandInShard(folder, 1) as one, PoolClient(folder) as client:
            async with client.exchange("waf") as exchange:
                assert exchange.agent_id == "waf"
                await exchange.request_headers(get())
                await exchange.request_body(b"x" * 10, chunk_size=4)
                await exchange.response_headers(ResponseHeaders(200, {}))
                await exchange.response_body(b"")
            used, idle = (zero, one) if zero.frames else (one, zero)
            await until(lambda: isinstance(used.frames[-1], ProxyFinish), "the finish")
        assert idle.frames == []
        assert [request.event for request in used.requests] == [
            get(),
            RequestBodyChunk(0, b"xxxx", False, 10, 4),
            RequestBodyChunk(1, b"xxxx", False, 10, 8),
            RequestBodyChunk(2, b"xx", True, 10, 10),
            ResponseHeaders(200, {}),
            ResponseBodyChunk(0, b"", True, 0, 0),
        ]
        assert {frame.request_id for frame in used.frames if isinstance(frame, ProxyRequest | ProxyFinish)} == {
            used.requests[0].request_id
        }
        assert {request.flags for request in used.requests} == {0}

    run(main)


def test_single_events_and_completion_say_that_nothing_follows(run: Run, folder: Path) -> None:
    async def main() -> None:
        async with StandInShard(folder) as shard, PoolClient(folder) as client:
            await client.send_request_headers("waf", get())
            async with client.exchange("waf") as exchange:
                await exchange.request_headers(get())
                assert await exchange.complete(RequestComplete(200, 5)) is not None
                with pytest.raises(BadRequest, match="complete"):
                    await exchange.request_body_chunk(RequestBodyChunk(0, b"", True))
            await client.send_request_headers("waf", get())
        assert [request.flags for request in shard.requests] == [FINAL, 0, FINAL, FINAL]
        assert len(shard.frames) == 4

    run(main)


def test_completion_that_the_agent_cannot_receive_still_finishes(run: Run, folder: Path) -> None:
    def reply(request: ProxyRequest) -> bytes:
        if isinstance(request.event, RequestComplete):
            return failed(request, FailureCode.CANNOT_RECEIVE, flags=RETRY_SAFE)
        return allowed(request)

    async def main() -> None:
        async with StandInShard(folder, 0, reply) as shard, PoolClient(folder) as client:
            async with client.exchange("waf") as exchange:
                await exchange.request_headers(get())
                assert await exchange.complete(RequestComplete(200, 5)) is None
            await until(lambda: isinstance(shard.frames[-1], ProxyFinish), "the finish")
            with pytest.raises(CannotReceive):
                await client.send_request_complete("waf", RequestComplete(200, 5))

    run(main)


async def pieces(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


def test_exchange_streams_a_body_and_marks_its_last_chunk(run: Run, folder: Path) -> None:
    async def main() -> None:
        async with StandInShard(folder) as shard, PoolClient(folder) as client:
            exchange = client.exchange("waf")
            response = await exchange.request_body(pieces(b"ab", b"", b"cdefg", b"h"), chunk_size=3)
            await exchange.response_body(pieces())
        assert asked(response) == "3"
        assert [request.event for request in shard.requests] == [
            RequestBodyChunk(0, b"ab", False, None, 2),
            RequestBodyChunk(1, b"cde", False, None, 5),
            RequestBodyChunk(2, b"fg", False, None, 7),
            RequestBodyChunk(3, b"h", True, None, 8),
            ResponseBodyChunk(0, b"", True, None, 0),
        ]

    run(main)


def test_exchange_stops_streaming_when_the_agent_blocks(run: Run, folder: Path) -> None:
    def reply(request: ProxyRequest) -> bytes:
        assert isinstance(request.event, RequestBodyChunk)
        if request.event.chunk_index == 1:
            return answered(request, Decision(Block(403)))
        return answered(request, Decision(None, needs_more=True) if request.event.chunk_index else ALLOWED)

    async def main() -> None:
        async with StandInShard(folder, 0, reply) as shard, PoolClient(folder) as client:
            response = await client.exchange("waf").request_body(pieces(b"a", b"b", b"c", b"d"))
        assert response.verdict == Block(403)
        assert len(shard.requests) == 2

    run(main)


def test_answers_of_one_request_go_to_its_events_in_order(run: Run, folder: Path) -> None:
    async def main() -> None:
        async with StandInShard(folder, 0, lambda _: None) as shard, PoolClient(folder) as client:
            exchange = client.exchange("waf")
            events = [RequestBodyChunk(n, b"", False) for n in range(5)]
            tasks = [asyncio.create_task(exchange.request_body_chunk(event)) for event in events]
            await until(lambda: len(shard.requests) == 5, "the events")
            first, second, *rest = shard.requests
            shard.write(allowed(first) + failed(second, "cannot_receive") + b"".join(map(allowed, rest)))
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert isinstance(results.pop(1), CannotReceive)
            assert [asked(response) for response in results if isinstance(response, Response)] == ["0", "2", "3", "4"]

    run(main)


def test_exchange_is_over_after_a_deadline(run: Run, folder: Path) -> None:
    async def main() -> None:
        async with StandInShard(folder, 0, failing("request_timeout", 0)) as shard, PoolClient(folder) as client:
            async with client.exchange("waf") as exchange:
                with pytest.raises(RequestTimeout):
                    await exchange.request_headers(get())
                with pytest.raises(BadRequest, match="timed out"):
                    await exchange.response_headers(ResponseHeaders(200, {}))
            assert len(shard.requests) == 1

    run(main)


def test_exchange_that_is_cancelled_gives_up_all_its_events(run: Run, folder: Path) -> None:
    async def main() -> None:
        async with StandInShard(folder, 0, lambda _: None) as shard, PoolClient(folder) as client:
            exchange = client.exchange("waf")
            tasks = [
                asyncio.create_task(exchange.request_body_chunk(RequestBodyChunk(n, b"", False))) for n in range(3)
            ]
            await until(lambda: len(shard.requests) == 3, "the events")
            exchange.cancel(CancelReason.UPSTREAM_ERROR)
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert [type(result) for result in results] == [RequestCancelled] * 3
            with pytest.raises(BadRequest, match="cancelled"):
                await exchange.request_headers(get())
            await until(lambda: shard.cancels, "the cancel")
            assert [cancel.reason for cancel in shard.cancels] == [CancelReason.UPSTREAM_ERROR]

    run(main)


def test_exchange_cannot_go_on_at_another_shard(run: Run, folder: Path) -> None:
    async def main() -> None:
        async with StandInShard(folder, 0) as shard, PoolClient(folder) as client:
            exchange = client.exchange("waf")
            await exchange.request_headers(get())
            async with StandInShard(folder, 1) as other:
                await until(lambda: 1 in client.shards, "the other shard")
                shard.drop()
                await until(lambda: 0 not in client.shards, "the loss")
                with pytest.raises(ConnectionLost) as raised:
                    await exchange.response_headers(ResponseHeaders(200, {}))
                assert raised.value.retry_safe
                assert other.requests == []

    run(main)


# --- anything at all ----------------------------------------------------------------------------------

STEPS = st.lists(
    st.tuples(st.sampled_from(["send", "send", "send", "answer", "fail", "cancel", "drop"]), st.integers(0, 9)),
    max_size=25,
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS)
def test_every_request_gets_its_own_answer_or_an_error_whatever_happens(
    folder: Path, steps: list[tuple[str, int]]
) -> None:
    """Random sends, answers out of order, failures, cancellations and lost connections."""

    async def main() -> None:
        open_requests: list[ProxyRequest] = []

        def reply(request: ProxyRequest) -> None:
            open_requests.append(request)

        tasks: dict[str, asyncio.Task[Response]] = {}
        async with StandInShard(folder, 0, reply) as shard, PoolClient(folder) as client:
            for number, (step, index) in enumerate(steps):
                if step == "send":
                    uri = f"/{number}"
                    tasks[uri] = asyncio.create_task(client.send_request_headers("waf", get(uri)))
                    await until(lambda: tasks[uri].done() or any(r.event == get(uri) for r in open_requests), "it")  # noqa: B023
                elif step == "cancel" and tasks:
                    list(tasks.values())[index % len(tasks)].cancel()
                elif step == "drop":
                    shard.drop()
                    open_requests.clear()
                    await until(lambda: not shard.connections or client.shards, "the loss")
                elif open_requests and shard.connections:
                    request = open_requests.pop(index % len(open_requests))
                    shard.write(allowed(request) if step == "answer" else failed(request, "bad_answer"))
            while open_requests and shard.connections:
                shard.write(allowed(open_requests.pop()))
            await asyncio.wait(tasks.values(), timeout=10) if tasks else None
        for uri, task in tasks.items():
            assert task.done()
            if not task.cancelled() and task.exception() is None:
                assert asked(task.result()) == uri
            elif not task.cancelled():
                assert isinstance(task.exception(), ConnectionLost | BadAnswer)

    run_on(asyncio.new_event_loop, main)
