"""The agents of one shard and their connections."""

import asyncio
import select
from collections.abc import Callable
from typing import Any

from dialout import Capabilities
from ipc.handoff import Offer
from ipc.logs import get_logger
from ipc.readiness import Readiness
from shards.connection import Connection

_GONE = select.POLLRDHUP | select.POLLHUP | select.POLLERR


class Agent:
    """An agent with at least one connection here."""

    __slots__ = ("agent_id", "connections")

    def __init__(self, agent_id: str) -> None:
        self.agent_id = agent_id
        self.connections: dict[int, Connection] = {}


class Pool:
    """Agent id → connections. *on_closed* is told of every connection that leaves (number, agent id)."""

    def __init__(self, readiness: Readiness, on_closed: Callable[[int, str], None]) -> None:
        self.readiness = readiness
        self.agents: dict[str, Agent] = {}
        self.connections: dict[int, Connection] = {}
        self.adopted_total = 0
        self.closed_total = 0
        self.frames_total = 0
        self._on_closed = on_closed
        self._loop = asyncio.get_running_loop()
        self._capabilities: dict[Capabilities, Capabilities] = {}
        self._to_write: list[Connection] = []
        self._log = get_logger()

    def adopt(self, offer: Offer, fd: int) -> None:
        """Make a committed connection a member: in the pool first, then its acceptance, then reading."""
        agent = self.agents.get(offer.agent_id)
        if agent is None:
            agent = self.agents[offer.agent_id] = Agent(offer.agent_id)
        # Agents of one kind have equal capabilities; a copy for each would be a large part of a connection's memory.
        capabilities = self._capabilities.setdefault(offer.capabilities, offer.capabilities)
        connection = Connection(self, agent, offer, capabilities, fd)
        agent.connections[offer.number] = self.connections[offer.number] = connection
        self.adopted_total += 1
        connection.start(offer.acceptance, offer.residue)

    def remove(self, connection: Connection, reason: str) -> None:
        """Forget a connection that has closed itself."""
        agent = connection.agent
        del self.connections[connection.number]
        del agent.connections[connection.number]
        if not agent.connections:
            del self.agents[agent.agent_id]
        if not self.agents:
            self._capabilities.clear()
        self.closed_total += 1
        self._log.debug("connection closed", connection_id=connection.connection_id, reason=reason)
        self._on_closed(connection.number, agent.agent_id)

    def probe(self, agent_id: str) -> None:
        """Close those connections of the agent that are at their end, whatever lies unread before it."""
        agent = self.agents.get(agent_id)
        if agent is None:
            return
        poll = select.poll()
        by_fd = {connection.fd: connection for connection in agent.connections.values()}
        for fd in by_fd:
            poll.register(fd, select.POLLRDHUP)
        for fd, events in poll.poll(0):
            if events & _GONE:
                self._read_to_the_end(by_fd[fd])

    def write_soon(self, connection: Connection) -> None:
        """Have *connection* flushed at the end of this turn of the loop."""
        if not self._to_write:
            self._loop.call_soon(self._write_all)
        self._to_write.append(connection)

    def close_all(self, reason: str) -> None:
        """Close every connection."""
        for connection in list(self.connections.values()):
            connection.close(reason)

    def list_agents(self, after: str, limit: int) -> list[tuple[str, int, int, bool]]:
        """At most *limit* agents with an id above *after*, ascending: id, connections, in flight, healthy."""
        chosen = sorted(agent_id for agent_id in self.agents if agent_id > after)[:limit]
        return [(agent_id, len(self.agents[agent_id].connections), 0, True) for agent_id in chosen]

    def list_connections(self, after: int, limit: int, agent_id: str | None) -> list[dict[str, Any]]:
        """At most *limit* connections with a number above *after*, ascending, of one agent or of all."""
        among: dict[int, Connection] = self.connections
        if agent_id is not None:
            agent = self.agents.get(agent_id)
            among = {} if agent is None else agent.connections
        chosen = sorted(number for number in among if number > after)[:limit]
        return [_describe(among[number]) for number in chosen]

    def _write_all(self) -> None:
        connections, self._to_write = self._to_write, []
        for connection in connections:
            connection.flush()

    @staticmethod
    def _read_to_the_end(connection: Connection) -> None:
        """Serve what the agent sent before it closed, and close; bounded by what a socket buffer can hold."""
        for _ in range(256):
            if connection.fd < 0:
                return
            connection.read()
        connection.close("closed by the agent")


def _describe(connection: Connection) -> dict[str, Any]:
    return {
        "n": connection.number,
        "connection_id": connection.connection_id,
        "agent_id": connection.agent.agent_id,
        "transport": connection.transport,
        "peer": connection.peer,
        "dialect": connection.dialect.value,
        "connected_at": connection.connected_at,
        "in_flight": 0,
        "metadata": connection.metadata,
        "frames": connection.frames,
        "frames_ignored": connection.frames_ignored,
    }
