"""Requests from shard to shard in a real shardgate."""

import asyncio
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.engine import headers, on_loop
from support.pools import until
from support.product import Product, shared_product
from support.proxying import RawProxy, failure, raw_proxy
from support.serving import ServingAgent

from dialout.proxy.pool_client import PoolClient
from dialout.proxy.wire import Answer
from ipc.rundir import RuntimeDir


def is_listening(path: Path) -> bool:
    """Whether a process accepts connections there."""
    with socket.socket(socket.AF_UNIX) as sock:
        return sock.connect_ex(str(path)) == 0


@pytest.fixture(scope="module")
def product() -> Iterator[Product]:
    """A shardgate with two shards."""
    with shared_product() as product:
        yield product


@on_loop
async def test_agent_that_was_just_accepted_is_found_from_every_shard(product: Product) -> None:
    rounds = 40

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


@on_loop
async def test_shard_that_is_killed_fails_what_was_handed_to_it_at_once_and_serves_again_when_it_is_back(
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
        # The file alone may be the killed shard's.
        await until(lambda: is_listening(rundir.shard_proxy(holder)))
        async with PoolClient(product.runtime_dir) as client, asyncio.timeout(8):
            assert (await client.send_request_headers("reborn", headers())).agent_id == "reborn"
        async with raw_proxy(rundir.shard_proxy(holder)) as back:
            await ask_until_answered(back, numbers)
        await loop.run_in_executor(None, agent.close)
