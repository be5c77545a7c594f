"""Lists of a shard's agents and connections for its query sockets, one page at a time."""

import heapq
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from ipc import peers
from ipc.query import MAX_PAGE, MAX_PAGE_BYTES, page_length, typed
from ipc.query_server import Method
from shards.connection import Connection
from shards.pool import AgentPool


class _AgentsPage(msgspec.Struct):
    after: str = ""
    limit: int = MAX_PAGE
    agent: str | None = None


class _ConnectionsPage(msgspec.Struct):
    after: int = 0
    limit: int = MAX_PAGE
    agent: str | None = None


class _Busiest(msgspec.Struct):
    limit: int = 100


def methods(pool: AgentPool) -> dict[str, Method]:
    """The queries for lists of *pool*, by name. Arguments have checked types, and a page has a maximum length."""

    def agents_page(arguments: dict[str, Any]) -> list[tuple[str, int, int, bool]]:
        asked = typed(arguments, _AgentsPage)
        return agents(pool, asked.after, page_length(asked.limit), asked.agent)

    def busiest_agents(arguments: dict[str, Any]) -> list[tuple[str, int, int, int]]:
        return busiest(pool, page_length(typed(arguments, _Busiest).limit))

    def connections_page(arguments: dict[str, Any]) -> list[dict[str, Any]]:
        asked = typed(arguments, _ConnectionsPage)
        return connections(pool, asked.after, page_length(asked.limit), asked.agent)

    return {"agents": agents_page, "busiest": busiest_agents, "connections": connections_page}


def agents(pool: AgentPool, after: str, limit: int, only: str | None = None) -> list[tuple[str, int, int, bool]]:
    """At most *limit* agents, or *only* one, with an id above *after*, ascending.

    A row has the id, connections, requests in flight, and whether the agent is healthy.
    """
    among: Iterable[str] = pool.agents if only is None else {only} & pool.agents.keys()
    rows = []
    for agent_id in heapq.nsmallest(limit, (agent_id for agent_id in among if agent_id > after)):
        connections = pool.agents[agent_id].connections.values()
        in_flight = sum(connection.in_flight for connection in connections)
        is_healthy = any(connection.is_healthy for connection in connections)
        rows.append((agent_id, len(connections), in_flight, is_healthy))
    return rows


def busiest(pool: AgentPool, limit: int) -> list[tuple[str, int, int, int]]:
    """At most *limit* agents with the most frames: id, connections, requests in flight, frames received.

    It looks at every connection: 100,000 take 20 ms. Only programs that an operator watches ask for it.
    """
    rows = []
    for agent_id, agent in pool.agents.items():
        connections = agent.connections.values()
        in_flight = sum(connection.in_flight for connection in connections)
        rows.append((agent_id, len(connections), in_flight, sum(connection.frames for connection in connections)))
    return heapq.nlargest(limit, rows, key=lambda row: (row[3], row[2]))


def connections(pool: AgentPool, after: int, limit: int, agent_id: str | None = None) -> list[dict[str, Any]]:
    """At most *limit* connections with a number above *after*, ascending, of one agent or of all.

    The page ends after `MAX_PAGE_BYTES`, because agents decide how long their metadata are.
    """
    among: dict[int, Connection] = pool.connections
    if agent_id is not None:
        agent = pool.agents.get(agent_id)
        among = {} if agent is None else agent.connections
    numbers = heapq.nsmallest(limit, (number for number in among if number > after))
    return list(_up_to_a_size(_describe(among[number]) for number in numbers))


def _up_to_a_size(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    size = 0
    for row in rows:
        yield row
        size += len(msgspec.msgpack.encode(row))
        if size >= MAX_PAGE_BYTES:
            return


def _describe(connection: Connection) -> dict[str, Any]:
    return {
        "n": connection.number,
        "connection_id": connection.connection_id,
        "agent_id": connection.agent.agent_id,
        "transport": connection.transport,
        "peer": peers.describe(connection.fd, connection.transport),
        "dialect": connection.kind.dialect.value,
        "connected_at": connection.connected_at,
        "in_flight": connection.in_flight,
        "metadata": connection.metadata,
        "frames": connection.frames,
        "frames_ignored": connection.frames_ignored,
    }
