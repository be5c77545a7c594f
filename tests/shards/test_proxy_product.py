"""The socket for proxies of a real shardgate."""

import asyncio
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.engine import PAUSE, headers, run
from support.pools import until
from support.product import Product, short_folder
from support.proxying import RawProxy, event_frame, raw_proxy
from support.sending import send
from support.serving import ServingAgent
from support.waiting import wait_for

from dialout import Cancel, Dialect, RequestHeaders, encode_frame
from dialout.proxy.wire import Answer
from ipc.rundir import RuntimeDir


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
