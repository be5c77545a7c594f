"""An accept loop that stops in order, with tokens, an allowlist and a limit.

    shardgate token --pattern 'waf-*'    # prints the token, for the agent, and the line for the file "tokens"
    python examples/production_accept_loop.py 127.0.0.1:9090 tokens

The loop is the "production accept loop" of the reverse connection document: it waits for an agent or for the shutdown,
whichever comes first. SIGTERM and SIGINT stop it: no new agents, then what is in flight is decided, then the pool.
"""

import asyncio
import signal
import sys

from dialout import RequestHeaders, to_json_value
from dialout.proxy.errors import PoolError
from ipc.client import AcceptedClient, ClientError
from ipc.logs import configure, get_logger
from shards.pool import AgentPool
from supervisor.embedded import (
    AcceptError,
    ConfigError,
    ListenError,
    ReverseConnectionConfig,
    ReverseConnectionListener,
    read_token_file,
)

log = get_logger()


async def run_accept_loop(
    listener: ReverseConnectionListener,
    pool: AgentPool,
    shutdown: asyncio.Event,
    tasks: asyncio.TaskGroup,
) -> None:
    """Accept agents until *shutdown*."""
    stopping = asyncio.create_task(shutdown.wait())
    while True:
        accepting = asyncio.create_task(listener.accept())
        await asyncio.wait({accepting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if stopping.done():
            log.info("shutting down accept loop")
            # Nobody gets lost: an agent that accept has returned just now is refused when its client is dropped.
            accepting.cancel()
            break
        try:
            client, registration = accepting.result()
        except AcceptError as error:
            log.error("accept error", error=str(error))  # noqa: TRY400 - the message says it all
            await asyncio.sleep(0.1)
            continue
        await handle_new_connection(pool, client, registration.agent_id, tasks)


async def handle_new_connection(
    pool: AgentPool, client: AcceptedClient, agent_id: str, tasks: asyncio.TaskGroup
) -> None:
    """Add an agent to the pool, and ask it about a request to see that it works."""
    try:
        connection_id = await pool.add_reverse_connection(agent_id, client)
    except (ClientError, PoolError) as error:
        log.error("failed to add agent", agent_id=agent_id, error=str(error))  # noqa: TRY400 - the message says it all
        return
    log.info("agent connected", agent_id=agent_id, connection_id=connection_id)
    tasks.create_task(ask(pool, agent_id))


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


async def main(address: str, token_file: str) -> None:
    """Run until SIGINT or SIGTERM."""
    shutdown = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, shutdown.set)

    config = ReverseConnectionConfig(
        # Require authentication
        require_auth=True,
        # Only allow specific agents
        allowed_agents=(
            "waf-*",  # Wildcard: any waf-prefixed agent
            "auth-primary",  # Exact match
            "auth-secondary",
        ),
        # Shorter timeout for faster failure detection
        handshake_timeout=5.0,
    )
    pool = AgentPool()
    async with await ReverseConnectionListener.bind_tcp(
        address, config, tokens=read_token_file(token_file)
    ) as listener:
        log.info("listening", address=listener.address)
        async with asyncio.TaskGroup() as tasks:
            await run_accept_loop(listener, pool, shutdown, tasks)
    pool.close()
    log.info("stopped", accepted=listener.accepted_total, rejected=listener.rejected_total)


if __name__ == "__main__":
    configure("proxy")
    try:
        asyncio.run(main(*sys.argv[1:]))
    except (ConfigError, ListenError) as error:
        sys.exit(str(error))
