"""A PoolClient, the real product and real agents: events in, decisions out."""

import asyncio
import itertools
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, closing
from typing import Any

import pytest
import uvloop
from support.product import Product, environment, short_folder
from support.serving import ServingAgent
from support.stand_in_shard import until

from dialout import (
    ALLOWED,
    MAX_FRAME_LENGTH,
    Allow,
    Audit,
    Block,
    BodyMutation,
    Cancel,
    CancelReason,
    Challenge,
    Configure,
    Decision,
    Dialect,
    GuardrailInspect,
    HeaderOp,
    Redirect,
    RequestBodyChunk,
    RequestComplete,
    RequestHeaders,
    ResponseHeaders,
    WebSocketFrame,
    encode_frame,
)
from dialout.proxy.errors import (
    AgentNotFound,
    BadAnswer,
    CannotReceive,
    ConnectionLost,
    PoolError,
    RequestTimeout,
)
from dialout.proxy.pool_client import PoolClient
from dialout.proxy.pool_response import Response

Talk = Callable[[PoolClient], Coroutine[Any, Any, None]]
DIALECTS = [Dialect.SDK, Dialect.CORE, Dialect.DOCS]
LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]


@pytest.fixture(scope="module")
def product() -> Iterator[Product]:
    """Two shards, shared by the tests that leave them as they found them."""
    with short_folder() as folder:
        product = Product(folder / "p")
        try:
            yield product
        finally:
            leftovers = product.end()
    assert leftovers == []


_numbers = itertools.count(1)


@pytest.fixture
def waf() -> str:
    """The id of an agent that no other test uses: its circuit is closed."""
    return f"waf-{next(_numbers)}"


def talk(product: Product, main: Talk, factory: Callable[[], asyncio.AbstractEventLoop] = LOOPS[0]) -> None:
    """Run *main* with a client of *product*."""

    async def with_client() -> None:
        async with PoolClient(product.runtime_dir, client_name="test") as client:
            assert len(client.shards) == 2
            await main(client)

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(with_client())


def get(uri: str = "/") -> RequestHeaders:
    return RequestHeaders("GET", uri, {"host": ["a.example"]})


def echo(event: object) -> Decision:
    """Allow, and say what was asked: the URI, or the length of a chunk."""
    asked = getattr(event, "uri", None) or str(len(getattr(event, "data", b"")))
    return Decision(Allow(), (HeaderOp.set("asked", asked),))


def asked(response: Response) -> str | None:
    return response.request_headers[0].value


ANSWERS = [
    ALLOWED,
    Decision(Block(403, "no", {"x-why": "sqli"}), audit=Audit(("waf",), ("942100",), ("sqli",), 0.5)),
    Decision(Redirect("https://login.example.com/", 302)),
    Decision(Challenge("captcha", {"site_key": "abc"})),
    Decision(Allow(), (HeaderOp.set("X-A", "1"), HeaderOp.remove("X-B")), (HeaderOp.set("X-C", ""),)),
]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_client_gets_what_an_agent_decides(product: Product, waf: str, dialect: Dialect) -> None:
    answers = iter(ANSWERS)

    async def main(client: PoolClient) -> None:
        for expected in ANSWERS:
            response = await client.send_request_headers(waf, get())
            assert response.verdict == expected.verdict
            assert response.request_headers == expected.request_headers
            assert response.response_headers == expected.response_headers
            assert response.audit == expected.audit
            assert (response.agent_id, response.connection_id) == (waf, agent.connection_id)
            assert response.shard in {0, 1}
            assert 0 < response.duration < 10

    with closing(ServingAgent(product.socket, waf, dialect, lambda _: next(answers))) as agent:
        talk(product, main)
        assert [event for _, _, event in agent.seen if isinstance(event, RequestHeaders)] != []


def test_client_sends_every_kind_of_event(product: Product, waf: str) -> None:
    async def main(client: PoolClient) -> None:
        async with client.exchange(waf) as exchange:
            await exchange.request_headers(get())
            await exchange.request_body_chunk(RequestBodyChunk(0, b"a", True))
            await exchange.response_headers(ResponseHeaders(200, {}))
            await exchange.websocket_frame(WebSocketFrame("text", b"a", True, 0))
            await exchange.complete(RequestComplete(200, 5))
        await client.send_guardrail_inspect(waf, GuardrailInspect("pii_detection", "a"))
        await client.send_configure(waf, Configure({"a": 1}))

    with closing(ServingAgent(product.socket, waf, Dialect.CORE)) as agent:
        talk(product, main)
        kinds = [type(event).__name__ for _, _, event in agent.seen if hasattr(event, "flag")]
    assert kinds == [
        "RequestHeaders",
        "RequestBodyChunk",
        "ResponseHeaders",
        "WebSocketFrame",
        "RequestComplete",
        "GuardrailInspect",
        "Configure",
    ]


@pytest.mark.parametrize("factory", LOOPS, ids=["asyncio", "uvloop"])
def test_agent_of_one_shard_is_reached_through_both(
    product: Product, factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    async def main(client: PoolClient) -> None:
        # All at once: nothing is known of the agent yet, so half of them start at the wrong shard.
        responses = await asyncio.gather(*(client.send_request_headers("lonely", get(f"/{n}")) for n in range(40)))
        assert [asked(response) for response in responses] == [f"/{n}" for n in range(40)]
        assert {response.connection_id for response in responses} == {agent.connection_id}
        assert len({response.shard for response in responses}) == 1
        assert {response.relayed for response in responses} == {True, False}
        # From now on the client knows better.
        responses = [await client.send_request_headers("lonely", get("/")) for _ in range(5)]
        assert {response.relayed for response in responses} == {False}

    with closing(ServingAgent(product.socket, "lonely", decide=echo)) as agent:
        talk(product, main, factory)


def test_unknown_agent_is_not_found(product: Product) -> None:
    async def main(client: PoolClient) -> None:
        with pytest.raises(AgentNotFound) as raised:
            await client.send_request_headers("nobody", get())
        assert raised.value.agent_id == "nobody"

    talk(product, main)


def test_agent_is_not_sent_what_it_cannot_receive(product: Product, waf: str) -> None:
    async def main(client: PoolClient) -> None:
        with pytest.raises(CannotReceive):
            await client.send_request_complete(waf, RequestComplete(200, 5))
        async with client.exchange(waf) as exchange:
            await exchange.request_headers(get())
            assert await exchange.complete(RequestComplete(200, 5)) is None

    with closing(ServingAgent(product.socket, waf, Dialect.SDK)) as agent:
        talk(product, main)
        assert not any(isinstance(event, RequestComplete) for _, _, event in agent.seen)


@pytest.mark.parametrize(
    "payload", [b'{"request_id":%d,"decision":"maybe"}', b'{"request_id":%d}', b'{"request_id":%d']
)
def test_answer_that_is_no_decision_is_never_an_allow(product: Product, waf: str, payload: bytes) -> None:
    def decide(_: object) -> None:
        agent.send(encode_frame(0x20, payload % (agent.seen[-1][0] or 0)))

    async def main(client: PoolClient) -> None:
        with pytest.raises(BadAnswer):
            await client.send_request_headers(waf, get())

    with closing(ServingAgent(product.socket, waf, decide=decide)) as agent:
        talk(product, main)


def test_silent_agent_costs_a_timeout(product: Product, waf: str) -> None:
    async def main(client: PoolClient) -> None:
        with pytest.raises(RequestTimeout) as raised:
            await client.send_request_headers(waf, get(), timeout=0.05)
        assert not raised.value.retry_safe
        assert list(client.shards.values()) == [0, 0]

    with closing(ServingAgent(product.socket, waf, decide=lambda _: None)):
        talk(product, main)


def test_requests_of_an_agent_that_hangs_up_fail_as_lost(product: Product, waf: str) -> None:
    async def main(client: PoolClient) -> None:
        tasks = [asyncio.create_task(client.send_request_headers(waf, get())) for _ in range(10)]
        await until(lambda: len(agent.seen) == 10, "the requests")
        await asyncio.to_thread(agent.close)
        errors = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(error) for error in errors] == [ConnectionLost] * 10
        assert not any(error.retry_safe for error in errors if isinstance(error, PoolError))
        assert len(client.shards) == 2

    agent = ServingAgent(product.socket, waf, decide=lambda _: None)
    talk(product, main)


@pytest.mark.parametrize("dialect", [Dialect.SDK, Dialect.CORE])
def test_agent_hears_of_a_cancelled_exchange(product: Product, waf: str, dialect: Dialect) -> None:
    async def main(client: PoolClient) -> None:
        exchange = client.exchange(waf)
        task = asyncio.create_task(exchange.request_headers(get()))
        await until(lambda: agent.seen, "the request")
        exchange.cancel(CancelReason.UPSTREAM_ERROR)
        await asyncio.gather(task, return_exceptions=True)
        await until(lambda: any(isinstance(event, Cancel) for _, _, event in agent.seen), "the cancel")

    with closing(ServingAgent(product.socket, waf, dialect, lambda _: None)) as agent:
        talk(product, main)
        cancels = [event for _, _, event in agent.seen if isinstance(event, Cancel)]
    # An sdk agent is cancelled once more to make it forget the request.
    assert cancels[0] == Cancel(CancelReason.UPSTREAM_ERROR)


def test_agent_hears_of_a_cancelled_task(product: Product, waf: str) -> None:
    async def main(client: PoolClient) -> None:
        task = asyncio.create_task(client.send_request_headers(waf, get()))
        await until(lambda: agent.seen, "the request")
        task.cancel()
        await until(lambda: any(isinstance(event, Cancel) for _, _, event in agent.seen), "the cancel")

    with closing(ServingAgent(product.socket, waf, decide=lambda _: None)) as agent:
        talk(product, main)


def test_body_goes_to_the_connection_that_saw_the_headers(product: Product, waf: str) -> None:
    body = random.Random(7).randbytes(300_000)

    def decide(event: object) -> Decision:
        if isinstance(event, RequestHeaders):
            return Decision(None, needs_more=True)
        if isinstance(event, RequestBodyChunk) and not event.is_last:
            return Decision(None, needs_more=True)
        return Decision(Allow(), request_body_mutation=BodyMutation(b"safe", 0))

    async def main(client: PoolClient) -> None:
        async with client.exchange(waf) as exchange:
            first = await exchange.request_headers(RequestHeaders("POST", "/", {}, has_body=True))
            assert first.needs_more
            assert first.verdict is None
            last = await exchange.request_body(body)
            assert last.verdict == Allow()
            assert last.request_body_mutation == BodyMutation(b"safe", 0)
            assert last.connection_id == first.connection_id
            await exchange.complete(RequestComplete(200, 5))

    with ExitStack() as stack:
        agents = [
            stack.enter_context(closing(ServingAgent(product.socket, waf, Dialect.CORE, decide))) for _ in range(4)
        ]
        talk(product, main)
        [used] = [agent for agent in agents if agent.seen]
        chunks = [event for _, _, event in used.seen if isinstance(event, RequestBodyChunk)]
        assert b"".join(chunk.data for chunk in chunks) == body
        assert [chunk.chunk_index for chunk in chunks] == list(range(5))
        assert len({correlation_id for _, correlation_id, _ in used.seen}) == 1


def test_largest_answer_of_an_agent_arrives(product: Product, waf: str) -> None:
    def decide(event: object) -> Decision | None:
        if not isinstance(event, RequestBodyChunk):
            return Decision.allow()
        # Only the answer to a chunk may be as large as a frame: it may hold the body, changed.
        start, end = b'{"request_id":%d,"decision":{"block":{"body":"' % (agent.seen[-1][0] or 0), b'","status":403}}}'
        agent.send(encode_frame(0x20, start + b"x" * (MAX_FRAME_LENGTH - 1 - len(start) - len(end)) + end))
        return None

    async def main(client: PoolClient) -> None:
        async with client.exchange(waf) as exchange:
            await exchange.request_headers(RequestHeaders("POST", "/", {}, has_body=True))
            response = await exchange.request_body_chunk(RequestBodyChunk(0, b"a", True))
        assert isinstance(response.verdict, Block)
        assert len(response.verdict.body or "") > MAX_FRAME_LENGTH - 100

    with closing(ServingAgent(product.socket, waf, decide=decide)) as agent:
        talk(product, main)


@pytest.mark.parametrize("factory", LOOPS, ids=["asyncio", "uvloop"])
def test_mixed_load_gets_every_answer_to_its_request(
    product: Product, factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    async def main(client: PoolClient) -> None:
        chance = random.Random(7)
        outcomes = {"answered": 0, "cancelled": 0, "bodies": 0}

        async def one(number: int) -> None:
            agent_id = f"agent-{number % 2}"
            kind = chance.choice(["headers", "headers", "headers", "cancel", "body"])
            if kind == "body":
                async with client.exchange(agent_id) as exchange:
                    assert asked(await exchange.request_headers(get(f"/{number}"))) == f"/{number}"
                    assert asked(await exchange.request_body(bytes(number), chunk_size=500)) == str(number % 500)
                outcomes["bodies"] += 1
                return
            task = asyncio.create_task(client.send_request_headers(agent_id, get(f"/{number}")))
            if kind == "cancel":
                await asyncio.sleep(chance.choice([0, 0, 0.001]))
                task.cancel()
            try:
                assert asked(await task) == f"/{number}"
                outcomes["answered"] += 1
            except asyncio.CancelledError:
                outcomes["cancelled"] += 1

        numbers = iter(range(1, 1500))

        async def worker() -> None:
            for number in numbers:
                if number % 500:
                    await one(number)

        await asyncio.gather(*(worker() for _ in range(48)))
        assert list(client.shards.values()) == [0, 0]
        assert sum(outcomes.values()) == 1497
        assert min(outcomes.values()) > 100

    with ExitStack() as stack:
        for number in range(8):
            dialect = [Dialect.SDK, Dialect.CORE][number % 2]
            stack.enter_context(closing(ServingAgent(product.socket, f"agent-{number % 2}", dialect, echo)))
        talk(product, main, factory)


def test_client_goes_on_while_a_shard_is_killed_and_comes_back(
    start_product: Callable[..., Product],
) -> None:
    product = start_product()

    async def main(client: PoolClient) -> None:
        waiting = {
            agent.connection_id: asyncio.create_task(client.send_request_headers(f"silent-{n}", get()))
            for n, agent in enumerate(silent)
        }
        await until(lambda: all(agent.seen for agent in silent), "the requests")
        shards = {row["connection_id"]: row["shard"] for row in await asyncio.to_thread(product.connections)}
        doomed = shards[silent[0].connection_id]
        os.kill(product.shard_pid(doomed), signal.SIGKILL)
        await until(lambda: doomed not in client.shards, "the loss")
        async with asyncio.timeout(5):
            with pytest.raises(ConnectionLost):
                await waiting[silent[0].connection_id]
        survivor = next(agent for agent in echoes if shards[agent.connection_id] != doomed)
        agent_id = f"echo-{echoes.index(survivor)}"
        assert asked(await client.send_request_headers(agent_id, get("/alive"))) == "/alive"
        await until(lambda: len(client.shards) == 2, "the shard to be back")
        responses = await asyncio.gather(*(client.send_request_headers(agent_id, get("/both")) for _ in range(20)))
        assert {response.connection_id for response in responses} == {survivor.connection_id}
        for task in waiting.values():
            task.cancel()
        await asyncio.gather(*waiting.values(), return_exceptions=True)

    with ExitStack() as stack:
        silent, echoes = (
            [stack.enter_context(closing(ServingAgent(product.socket, f"{name}-{n}", decide=decide))) for n in range(4)]
            for name, decide in (("silent", lambda _: None), ("echo", echo))
        )
        talk(product, main)


def test_asyncio_is_loaded_for_those_only_who_ask_for_the_client() -> None:
    program = """
import sys, dialout
assert "asyncio" not in sys.modules
assert dialout.PoolClient.__name__ == "PoolClient" and dialout.Response and dialout.Exchange
assert "asyncio" in sys.modules
try:
    dialout.Poolclient
except AttributeError as error:
    assert "Poolclient" in str(error)
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", program], env=environment(), check=True, timeout=120)
