"""An agent: it dials out, stays connected, and blocks whatever asks for /admin.

python examples/agent.py /run/shardgate/agents.sock demo-agent
"""

import asyncio
import logging
import sys

from dialout import Agent, AgentConnectionManager, Decision, RequestHeaders, agent_metadata

agent = Agent()


@agent.hook
async def on_request_headers(event: RequestHeaders) -> Decision:
    """Say what becomes of a request."""
    if event.uri.startswith("/admin"):
        return Decision.block(403, "not for you")
    return Decision.allow().set_request_header("x-checked-by", "demo-agent")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    address, agent_id = sys.argv[1:]
    asyncio.run(AgentConnectionManager(address, agent_id, agent, metadata=agent_metadata("1.0.0")).run())
