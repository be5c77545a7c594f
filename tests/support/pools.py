"""A pool with real agents in it, in this process."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from dialout import Capabilities, Dialect
from ipc.options import PoolOptions
from shards.pool import AgentPool
from supervisor.embedded import ReverseConnectionConfig, ReverseConnectionListener
from support.product import short_folder
from support.serving import Decide, ServingAgent


@asynccontextmanager
async def pool_with(
    *agents: tuple[str, Dialect, Decide, Capabilities], options: PoolOptions | None = None
) -> AsyncIterator[tuple[AgentPool, list[ServingAgent]]]:
    """A pool with these agents in it."""
    pool = AgentPool(options)
    serving: list[ServingAgent] = []
    with short_folder() as folder:
        path = folder / "s"
        async with await ReverseConnectionListener.bind_uds(path, ReverseConnectionConfig()) as listener:
            for agent_id, dialect, decide, capabilities in agents:
                started = asyncio.to_thread(ServingAgent, path, agent_id, dialect, decide, capabilities)
                registering = asyncio.create_task(started)
                client, registered = await listener.accept()
                await pool.add_reverse_connection(agent_id, client, registered.capabilities)
                serving.append(await registering)
            try:
                yield pool, serving
            finally:
                pool.close()
                for agent in serving:
                    await asyncio.to_thread(agent.close)


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run it with a limit."""
    asyncio.run(asyncio.wait_for(test(), 30))


async def until(condition: Callable[[], object]) -> None:
    """Wait until *condition* holds; the test has a limit."""
    while not condition():  # noqa: ASYNC110 - what is waited for happens in another thread
        await asyncio.sleep(0.005)
