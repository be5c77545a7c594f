"""The smallest proxy that agents can connect to: accept, add to the pool, and ask.

    python examples/simple_accept_loop.py /tmp/agents.sock

The loop is the "simple accept loop" of the reverse connection document. Each agent that comes is asked about one
request, in a task of its own, since an agent that thinks must not keep the next one waiting. Ctrl-C ends it.
"""

import asyncio
import contextlib
import signal
import sys

from dialout import RequestHeaders, to_json_value
from dialout.proxy.errors import PoolError
from ipc.client import ClientError
from ipc.logs import configure, get_logger
from shards.pool import AgentPool
from supervisor.embedded import AcceptError, ReverseConnectionConfig, ReverseConnectionListener

log = get_logger()


async def accept_agents(path: str) -> None:
    """Accept agents at *path* for ever."""
    pool = AgentPool()
    listener = await ReverseConnectionListener.bind_uds(
        path,
        ReverseConnectionConfig(),
    )
    log.info("listening", path=path)

    # At the end: whoever has just connected is refused with an answer, and the socket file goes.
    async with listener, asyncio.TaskGroup() as questions:
        while True:
            try:
                client, registration = await listener.accept()
            except AcceptError as error:
                log.error("accept error", error=str(error))  # noqa: TRY400 - the message says it all
                continue

            log.info("agent connected", agent_id=registration.agent_id, capabilities=repr(registration.capabilities))

            try:
                await pool.add_reverse_connection(
                    registration.agent_id,
                    client,
                    registration.capabilities,
                )
            except (ClientError, PoolError) as error:
                log.error("failed to add agent", error=str(error))  # noqa: TRY400 - same
                continue

            questions.create_task(ask(pool, registration.agent_id))


async def ask(pool: AgentPool, agent_id: str) -> None:
    """Ask an agent about a request, and log what it decides."""
    event = RequestHeaders("GET", "/admin", {"host": ["example.com"]})
    try:
        response = await pool.send_request_headers(agent_id, event, timeout=5.0)
    except PoolError as error:
        # No decision of the agent, and so never an allow: a proxy has a policy for this.
        log.warning("no decision", agent_id=agent_id, error_code=error.code, error=str(error))
    else:
        log.info("decision", agent_id=agent_id, decision=to_json_value(response.verdict))


async def main(path: str) -> None:
    """Run until SIGINT or SIGTERM."""
    accepting = asyncio.create_task(accept_agents(path))
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, accepting.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await accepting


if __name__ == "__main__":
    configure("simple-proxy")
    asyncio.run(main(*sys.argv[1:]))
