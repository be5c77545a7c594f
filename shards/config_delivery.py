"""Delivery of changed configurations: one Configure event to each connection that can take it.

Each connection gets the event, not each agent, because every connection may be another process.
"""

import asyncio
import hashlib
from functools import partial
from itertools import islice

import msgspec

from dialout import Block, Configure
from dialout.proxy.errors import PoolError
from ipc.logs import get_logger, printable
from shards.calls import Call, Outcome
from shards.connection import Connection
from shards.pool import AgentPool

AT_ONCE = 32
"""Connections told in one turn of the loop: with 48 KiB each, 1.5 MiB to encode and write."""

PAUSE = 0.1
"""Seconds between checks of connections that have no room for the event."""

ANSWER_TIMEOUT = 10.0


class ConfigDelivery:
    """Configurations on their way to connections of *pool*. A newer one replaces one that still waits.

    A waiting configuration counts as an open exchange of its connection, so that the connection does not move before
    it.
    """

    def __init__(self, pool: AgentPool) -> None:
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self._log = get_logger()
        self._waiting: dict[int, Configure] = {}
        self._timer: asyncio.TimerHandle | None = None

    def push(self, config: bytes, agent_ids: list[str]) -> None:
        """Send *config*, a JSON object, to all connections of these agents that can take it."""
        event = Configure(msgspec.json.decode(config), hashlib.sha256(config).hexdigest()[:12])
        for agent_id in agent_ids:
            agent = self._pool.agents.get(agent_id)
            for connection in () if agent is None else agent.connections.values():
                if connection.can_receive(event):
                    if connection.number not in self._waiting:
                        connection.exchanges += 1
                    self._waiting[connection.number] = event
        if self._waiting and self._timer is None:
            self._timer = self._loop.call_later(0, self._turn)

    def close(self) -> None:
        """Stop the delivery and drop waiting configurations."""
        if self._timer is not None:
            self._timer.cancel()
        self._waiting.clear()

    def _turn(self) -> None:
        sent = False
        for number in list(islice(self._waiting, AT_ONCE)):
            event = self._waiting.pop(number)
            connection = self._pool.connections.get(number)
            if connection is None:
                continue
            if connection.paused or not connection.has_room:
                self._waiting[number] = event  # Behind the others.
                continue
            sent = True
            connection.exchanges -= 1
            exchange = self._pool.requests.begin_on(connection, connection.agent.agent_id)
            done = partial(self._done, connection)
            self._pool.requests.submit(exchange, event, done, ANSWER_TIMEOUT, final=True)
        self._timer = None
        if self._waiting:
            self._timer = self._loop.call_later(0 if sent else PAUSE, self._turn)

    def _done(self, connection: Connection, call: Call, outcome: Outcome) -> None:
        assert isinstance(call.event, Configure)
        about = {"connection_id": connection.connection_id, "config_version": call.event.config_version}
        if isinstance(outcome, PoolError):
            self._log.warning("agent did not take its configuration", error_code=str(outcome.code), **about)
        elif isinstance(outcome.verdict, Block):
            reason = printable(outcome.verdict.body or "", 200)
            self._log.warning("agent refuses its configuration", status=outcome.verdict.status, reason=reason, **about)
        else:
            self._log.debug("agent took its configuration", **about)
