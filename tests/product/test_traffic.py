"""Requests go through the real product to real agents, and decisions come back."""

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import uvloop
from support.agents import Agent
from support.product import Product, StartProduct, environment
from support.serving import ServingAgent
from support.waiting import until, wait_for

from dialout import (
    ALLOW,
    ALLOWED,
    Block,
    Capabilities,
    Decision,
    Dialect,
    Event,
    GuardrailInspect,
    HeaderOp,
    RequestBodyChunk,
    RequestComplete,
    RequestHeaders,
    ResponseHeaders,
    encode_frame,
)
from dialout.proxy.errors import (
    AgentNotFound,
    AgentUnavailable,
    BadAnswer,
    CannotReceive,
    CircuitOpen,
    ConnectionLost,
    PoolError,
    RequestTimeout,
)
from dialout.proxy.pool_client import PoolClient


def run(main: Coroutine[Any, Any, Any]) -> Any:
    """Run *main* on a uvloop loop, with a limit."""

    async def limited() -> Any:
        async with asyncio.timeout(120):
            return await main

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(limited())


def headers(uri: str = "/", *, has_body: bool = False) -> RequestHeaders:
    """A request's headers."""
    return RequestHeaders("GET", uri, {"host": ["a.example"]}, has_body)


def echo(event: object) -> Decision:
    """Allow, and say in a header which event this answers."""
    if isinstance(event, RequestHeaders):
        return Decision(ALLOW, request_headers=(HeaderOp.set("x-echo", event.uri),))
    if isinstance(event, RequestBodyChunk):
        if not event.is_last:
            return Decision(None, needs_more=True)
        return Decision(ALLOW, request_headers=(HeaderOp.set("x-echo", f"chunk {event.chunk_index}"),))
    if isinstance(event, ResponseHeaders):
        return Decision(ALLOW, response_headers=(HeaderOp.set("x-echo", f"status {event.status}"),))
    return ALLOWED


def echoed(response: Decision) -> str:
    """What an echoing agent said that it answers."""
    return (response.request_headers or response.response_headers)[0].value or ""


def sums_up(product: Product) -> bool:
    """Whether every request of every shard is answered or failed with a code."""
    return all(
        row["requests_total"] == row["answered_total"] + sum(row["failed_total"].values()) and not row["in_flight"]
        for row in product.status()["shards"]
    )


def configured(start_product: Callable[..., Product], tmp_path: Path, pool: str, **options: Any) -> Product:
    """A product with a `pool` block."""
    file = tmp_path / "shardgate.kdl"
    file.write_text(f"reverse-listener {{\n pool {{\n{pool}\n }}\n}}\n")
    return start_product("--config", str(file), **options)


def test_a_request_is_answered_in_every_dialect_from_every_shard(start_product: StartProduct) -> None:
    product = start_product()
    agents = [ServingAgent(product.socket, f"agent-{dialect}", dialect, echo) for dialect in Dialect]

    async def ask() -> None:
        async with PoolClient(product.runtime_dir) as client:
            shards = set()
            for number in range(20):
                for dialect in Dialect:
                    response = await client.send_request_headers(f"agent-{dialect}", headers(f"/{dialect}/{number}"))
                    assert echoed(response) == f"/{dialect}/{number}"
                    assert response.connection_id == next(a.connection_id for a in agents if a.dialect is dialect)
                    shards.add(response.shard)
            assert shards == {0, 1}

    run(ask())
    assert sums_up(product)
    for agent in agents:
        agent.close()


def test_a_request_that_starts_where_the_agent_is_not_is_answered_with_and_without_supervisor(
    start_product: StartProduct,
) -> None:
    product = start_product()
    with ServingAgent(product.socket, "lonely", decide=echo) as agent:
        holder = product.connections()[0]["shard"]
        for uri in ("/with", "/without"):
            for shard in (holder, 1 - holder):
                done = product.command("send", "lonely", "--uri", uri, "--shard", str(shard), "--json")
                assert done.returncode == 0, done.stderr
                assert '"decision":"allow"' in done.stdout.replace(" ", "")
            product.process.kill()
            product.process.wait()
        assert len([event for _, _, event in agent.seen if isinstance(event, RequestHeaders)]) == 4
    product.start()
    product.wait_until_running()


def test_body_chunks_and_the_response_follow_their_headers_to_one_connection(start_product: StartProduct) -> None:
    product = start_product()
    agents = [ServingAgent(product.socket, "pair", Dialect.SDK, echo) for _ in range(4)]

    async def ask() -> None:
        async with PoolClient(product.runtime_dir) as client:
            for number in range(10):
                async with client.exchange("pair") as exchange:
                    first = await exchange.request_headers(headers(f"/{number}", has_body=True))
                    last = await exchange.request_body(b"x" * 200_000)
                    assert last is not None
                    assert echoed(last).startswith("chunk ")
                    answer = await exchange.response_headers(ResponseHeaders(200, {}))
                    assert echoed(answer) == "status 200"
                    assert {first.connection_id, last.connection_id, answer.connection_id} == {first.connection_id}

    run(ask())
    assert sum(isinstance(event, RequestHeaders) for agent in agents for *_, event in agent.seen) == 10
    for agent in agents:
        chunks = [event for *_, event in agent.seen if isinstance(event, RequestBodyChunk)]
        starts = [index for index, chunk in enumerate(chunks) if chunk.chunk_index == 0]
        for start, end in zip(starts, [*starts[1:], len(chunks)], strict=False):
            body = chunks[start:end]
            assert [chunk.chunk_index for chunk in body] == list(range(len(body)))
            assert b"".join(chunk.data for chunk in body) == b"x" * 200_000
            assert [chunk.is_last for chunk in body] == [False] * (len(body) - 1) + [True]
        agent.close()


def test_an_agent_gets_only_what_it_can_receive_and_the_caller_is_told(start_product: StartProduct) -> None:
    product = start_product()
    only_headers = Capabilities(events=int(Event.REQUEST_HEADERS))
    with ServingAgent(product.socket, "modest", Dialect.SDK, echo, only_headers) as agent:

        async def ask() -> None:
            async with PoolClient(product.runtime_dir) as client:
                assert echoed(await client.send_request_headers("modest", headers("/a"))) == "/a"
                with pytest.raises(CannotReceive):
                    await client.send_guardrail_inspect("modest", GuardrailInspect("prompt_injection", "x"))
                with pytest.raises(CannotReceive):
                    await client.send_request_complete("modest", RequestComplete(200, 1))
                with pytest.raises(CannotReceive):
                    await client.send_response_headers("modest", ResponseHeaders(200, {}))
                with pytest.raises(AgentNotFound):
                    await client.send_request_headers("nobody", headers())
                assert echoed(await client.send_request_headers("modest", headers("/b"))) == "/b"

        run(ask())
        assert [event.uri for *_, event in agent.seen if isinstance(event, RequestHeaders)] == ["/a", "/b"]


@pytest.mark.parametrize(
    "frame",
    [
        b'{"request_id":0,"decision":"allow"}',
        b'{"request_id":%d}',
        b'{"request_id":%d,"decision":"perhaps"}',
        b'{"request_id":%d,"decision":{}}',
        b'{"request_id":%d,"decision":{"block":{"status":"no"}}}',
        b'{"request_id":%d,"decision":{"needs_more":true}}',
        b'{"request_id":%d,"decision":"allow"',
        b"\xff\xfe",
    ],
)
def test_an_answer_that_decides_nothing_fails_the_request_and_is_never_an_allow(product: Product, frame: bytes) -> None:
    # An agent of its own for each: five such answers open the circuit.
    name = f"confused-{sha256(frame).hexdigest()[:8]}"
    with Agent(product.socket) as agent:
        assert agent.register(name).accepted

        async def ask() -> None:
            async with PoolClient(product.runtime_dir) as client:
                loop = asyncio.get_running_loop()
                asking = loop.create_task(client.send_request_headers(name, headers(), timeout=20))
                got = await loop.run_in_executor(None, next_event, agent)
                agent.send(encode_frame(0x20, frame % got if b"%d" in frame else frame))
                with pytest.raises(BadAnswer):
                    await asking

        run(ask())


def next_event(agent: Agent) -> int:
    """The request id of the next event that the agent reads; pings and cancels are passed over."""
    import msgspec

    while True:
        frame = agent.frame()
        assert frame is not None
        if frame[0] in (0x10, 0x11):
            return int(msgspec.json.decode(frame[1])["request_id"])


def test_requests_of_an_agent_that_is_killed_fail_at_once(start_product: StartProduct) -> None:
    product = start_product()
    script = (
        "import sys, time; from support.serving import ServingAgent; from pathlib import Path;"
        "a = ServingAgent(Path(sys.argv[1]), 'victim', decide=lambda e: None); print('ready', flush=True);"
        "time.sleep(600)"
    )
    env = environment() | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    child = subprocess.Popen([sys.executable, "-P", "-c", script, str(product.socket)], stdout=subprocess.PIPE, env=env)
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"

    async def ask() -> None:
        async with PoolClient(product.runtime_dir) as client:
            asking = [
                asyncio.create_task(client.send_request_headers("victim", headers(f"/{n}"), timeout=60))
                for n in range(50)
            ]
            await until(lambda: sum(product.in_flight()) == 50, "all requests to be in flight")
            child.send_signal(signal.SIGKILL)
            child.wait()
            killed = time.monotonic()
            results = await asyncio.gather(*asking, return_exceptions=True)
            print(f"50 requests failed {1000 * (time.monotonic() - killed):.1f} ms after the agent was killed")
            assert {type(result) for result in results} == {ConnectionLost}
            safe = [result for result in results if isinstance(result, PoolError) and result.retry_safe]
            assert safe == [], "the agent may have acted on them"

    try:
        run(ask())
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def test_an_agent_that_never_answers_times_out_trips_the_breaker_and_recovers(
    start_product: StartProduct, tmp_path: Path
) -> None:
    pool = 'request-timeout "100ms"\nunhealthy-after 1000\nbreaker-threshold 5\nbreaker-open-for "1s"'
    product = configured(start_product, tmp_path, pool, shards=1)
    answering = False

    def decide(event: object) -> Decision | None:
        return echo(event) if answering else None

    with ServingAgent(product.socket, "mute", decide=decide):

        async def ask() -> None:
            nonlocal answering
            async with PoolClient(product.runtime_dir) as client:
                for _ in range(5):
                    with pytest.raises(RequestTimeout):
                        await client.send_request_headers("mute", headers(), timeout=0.1)
                with pytest.raises(CircuitOpen):
                    await client.send_request_headers("mute", headers(), timeout=0.1)
                answering = True
                deadline = time.monotonic() + 10
                while True:
                    try:
                        response = await client.send_request_headers("mute", headers("/again"), timeout=5)
                        break
                    except CircuitOpen:
                        assert time.monotonic() < deadline
                        await asyncio.sleep(0.05)
                assert echoed(response) == "/again"
                for number in range(10):
                    answer = await client.send_request_headers("mute", headers(f"/{number}"), timeout=5)
                    assert echoed(answer) == f"/{number}"

        run(ask())
    assert sums_up(product)


def test_a_connection_that_fails_is_passed_over_until_it_answers_a_ping(
    start_product: StartProduct, tmp_path: Path
) -> None:
    pool = 'request-timeout "100ms"\nunhealthy-after 2\nbreaker-threshold 1000\nping-interval "1s"'
    product = configured(start_product, tmp_path, pool, shards=1)
    silent = True
    with ServingAgent(product.socket, "moody", decide=lambda event: None if silent else echo(event)):

        async def ask() -> None:
            nonlocal silent
            async with PoolClient(product.runtime_dir) as client:
                failures: Counter[str] = Counter()
                while not failures["AgentUnavailable"]:
                    try:
                        await client.send_request_headers("moody", headers(), timeout=0.1)
                    except (RequestTimeout, AgentUnavailable) as error:
                        failures[type(error).__name__] += 1
                assert failures["RequestTimeout"] >= 2
                silent = False
                deadline = time.monotonic() + 15
                while True:
                    try:
                        answer = await client.send_request_headers("moody", headers("/back"), timeout=5)
                        assert echoed(answer) == "/back"
                        break
                    except AgentUnavailable:
                        assert time.monotonic() < deadline
                        await asyncio.sleep(0.05)

        run(ask())


def test_a_late_answer_is_dropped_and_counted_and_given_to_nobody(start_product: StartProduct) -> None:
    product = start_product(shards=1)
    held: list[tuple[int, str]] = []
    with Agent(product.socket) as agent:
        assert agent.register("tardy").accepted

        async def ask() -> None:
            async with PoolClient(product.runtime_dir) as client:
                loop = asyncio.get_running_loop()
                with pytest.raises(RequestTimeout):
                    await client.send_request_headers("tardy", headers("/first"), timeout=0.1)
                first = await loop.run_in_executor(None, next_event, agent)
                asking = loop.create_task(client.send_request_headers("tardy", headers("/second"), timeout=20))
                second = await loop.run_in_executor(None, next_event, agent)
                agent.send(encode_frame(0x20, b'{"request_id":%d,"decision":{"block":{"status":403}}}' % first))
                agent.send(encode_frame(0x20, b'{"request_id":%d,"decision":"allow"}' % second))
                assert (await asking).verdict == ALLOW
                held.append((first, "late"))

        run(ask())
        assert product.status()["shards"][0]["late_total"] == 1
    assert held


def test_a_cancelled_request_is_cancelled_at_the_agent(start_product: StartProduct) -> None:
    product = start_product()
    with ServingAgent(product.socket, "patient", Dialect.CORE, lambda event: None) as agent:

        async def ask() -> None:
            async with PoolClient(product.runtime_dir) as client:
                asking = asyncio.create_task(client.send_request_headers("patient", headers(), timeout=60))
                await until(lambda: agent.seen, "the request to reach the agent")
                asking.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await asking
                await until(lambda: len(agent.seen) == 2, "the cancel to reach the agent")

        run(ask())
        assert agent.seen[0][1] == agent.seen[1][1], "the cancel names the request"
    wait_for(lambda: all(row["in_flight"] == 0 for row in product.status()["shards"]), "nothing in flight")
    assert sums_up(product)


def test_an_answer_of_16_mib_is_served_and_one_byte_more_closes(start_product: StartProduct) -> None:
    product = start_product(shards=1)
    with Agent(product.socket, timeout=30) as agent:
        takes_bodies = Capabilities(events=int(Event.REQUEST_HEADERS | Event.REQUEST_BODY_CHUNK), streaming_body=True)
        assert agent.register("verbose", capabilities=takes_bodies).accepted

        async def ask() -> None:
            async with PoolClient(product.runtime_dir) as client:
                loop = asyncio.get_running_loop()
                exchange = client.exchange("verbose")
                asking = loop.create_task(exchange.request_headers(headers(has_body=True), timeout=30))
                request_id = await loop.run_in_executor(None, next_event, agent)
                agent.send(encode_frame(0x20, b'{"request_id":%d,"decision":"allow"}' % request_id))
                await asking
                # An answer to a chunk may hold the body, changed.
                asking = loop.create_task(exchange.request_body_chunk(RequestBodyChunk(0, b"a", True), timeout=30))
                assert await loop.run_in_executor(None, next_event, agent) == request_id
                start = b'{"request_id":%d,"decision":{"block":{"status":403,"body":"' % request_id
                end = b'"}}}'
                payload = start + b"x" * (16 * 1024 * 1024 - 1 - len(start) - len(end)) + end
                await loop.run_in_executor(None, agent.send, encode_frame(0x20, payload))
                decision = (await asking).verdict
                assert isinstance(decision, Block)
                assert decision.body is not None
                assert len(decision.body) == len(payload) - len(start) - len(end)

        run(ask())
        agent.send(b"\x01\x00\x00\x01\x20")
        assert agent.at_end()


def test_an_agent_that_does_not_read_makes_only_itself_wait(start_product: StartProduct) -> None:
    product = start_product(shards=1)
    with Agent(product.socket) as deaf, ServingAgent(product.socket, "quick", decide=echo):
        assert deaf.register("deaf").accepted

        async def ask() -> None:
            async with PoolClient(product.runtime_dir) as client:
                big = RequestHeaders("GET", "/" + "x" * 100_000, {})
                stuck = [asyncio.create_task(client.send_request_headers("deaf", big, timeout=60)) for _ in range(50)]
                for number in range(100):
                    assert echoed(await client.send_request_headers("quick", headers(f"/{number}"))) == f"/{number}"
                refused = [task for task in stuck if task.done()]
                assert refused, "beyond what the socket and 256 KiB hold, requests fail at once"
                assert {type(task.exception()) for task in refused} <= {
                    PoolError.__subclasses__()[0],
                    *PoolError.__subclasses__(),
                }
                for task in stuck:
                    task.cancel()
                await asyncio.gather(*stuck, return_exceptions=True)

        run(ask())


async def mixed(client: PoolClient, name: str, number: int, outcome: Counter[str]) -> None:
    """One request of a mixed load: every tenth has a body, every seventeenth is cancelled."""
    try:
        if number % 10 == 0:
            async with client.exchange(name) as exchange:
                await exchange.request_headers(headers(f"/{number}", has_body=True), timeout=20)
                last = await exchange.request_body(b"y" * 1000, timeout=20)
                assert last is not None
                assert echoed(last) == "chunk 0"
        elif number % 17 == 0:
            task = asyncio.create_task(client.send_request_headers(name, headers(f"/{number}"), timeout=20))
            await asyncio.sleep(0)
            task.cancel()
            try:
                await task
            except asyncio.CancelledError:
                outcome["cancelled"] += 1
                return
        else:
            response = await client.send_request_headers(name, headers(f"/{number}"), timeout=20)
            assert echoed(response) == f"/{number}", "an answer was given to another request"
    except PoolError as error:
        outcome[type(error).__name__] += 1
    else:
        outcome["answered"] += 1


def test_mixed_load_is_matched_request_by_request_while_agents_restart(start_product: StartProduct) -> None:
    """Headers, bodies, cancels and restarts of agents over both dialects; SHARDGATE_LOAD sets how many requests."""
    product = start_product("--max-connections-per-agent", "8")
    total = int(os.environ.get("SHARDGATE_LOAD", "3000"))
    names = [f"{dialect}-{n}" for dialect in (Dialect.SDK, Dialect.CORE) for n in range(2)]
    agents = [ServingAgent(product.socket, name, Dialect(name.split("-")[0]), echo) for name in names for _ in range(2)]
    outcome: Counter[str] = Counter()

    async def ask() -> None:
        loop = asyncio.get_running_loop()
        async with PoolClient(product.runtime_dir) as client:
            numbers, served = iter(range(total)), asyncio.Event()

            async def worker() -> None:
                for number in numbers:
                    await mixed(client, names[number % len(names)], number, outcome)

            async def restart() -> None:
                for turn in itertools.count():
                    await asyncio.sleep(0.1)
                    if served.is_set():
                        return
                    index = turn % len(agents)
                    name = names[index // 2]
                    await loop.run_in_executor(None, agents[index].close)
                    agents[index] = await loop.run_in_executor(
                        None, ServingAgent, product.socket, name, Dialect(name.split("-")[0]), echo
                    )

            restarting = asyncio.create_task(restart())
            await asyncio.gather(*(worker() for _ in range(32)))
            served.set()
            await restarting

    run(ask())
    print(dict(outcome))
    assert sum(outcome.values()) == total, "none was lost without an outcome"
    assert set(outcome) <= {"answered", "cancelled", "ConnectionLost"}
    assert outcome["answered"] > 0.9 * total
    wait_for(lambda: sums_up(product), "the counters to add up")
    for agent in agents:
        agent.close()
