"""The agents of one process, their connections, and the choice among them."""

import asyncio
import itertools
import math
import select
import time
from collections import Counter
from collections.abc import Callable
from time import monotonic

from dialout import Capabilities, Dialect, awake
from dialout.proxy.errors import (
    AgentMoving,
    AgentNotFound,
    AgentUnavailable,
    CannotReceive,
    CircuitOpen,
    FailurePolicy,
    FlowControlPaused,
    Overloaded,
    PoolError,
)
from ipc.at_work import private_note
from ipc.events import CloseCode, Gone
from ipc.logs import Line, get_logger
from ipc.messages import Offer
from ipc.options import FlowControlMode, PoolOptions
from ipc.readiness import Readiness
from ipc.timers import Every
from shards.affinity import RecentTable
from shards.balance import choose, is_usable
from shards.breaker import Breaker, Circuit
from shards.calls import Call
from shards.connection import Agent, Connection
from shards.holding import Holding
from shards.kind import Kind
from shards.pool_api import PoolApi
from shards.requests import Requests
from shards.spending import Spending
from shards.stream import Stream

UPKEEP_SECONDS = 1.0
"""Seconds between rounds of upkeep: pings that are due, dead connections, ended sessions."""

MOST_BREAKERS = 10_000
BREAKER_IDLE = 3600.0
"""Seconds for which the failures of an agent are remembered while it is not connected."""

MOST_DEPARTED = 10_000
DEPARTED_KEPT = 2.0
"""Seconds for which a move of an agent is remembered. All shards know its new place by then."""

LEAVING_PAUSE = 0.005
"""Seconds between checks of an agent whose connections are all about to move and are busy."""

MOST_GONE = 1024
"""Connections that one probe closes. The readiness loop closes the others."""

MOST_KINDS = 1000
"""Kinds of agents that are remembered. There are few, unless agents make them up."""

MOST_READS = 256
"""Reads of one connection in a row, enough for a socket buffer full of answers, or for 256 KiB of other frames."""

_GONE = select.POLLRDHUP | select.POLLHUP | select.POLLERR


class AgentPool(PoolApi):
    """Agent id → connections → requests in flight.

    *on_closed* is called for every connection that ends. Create the pool on a running loop. A host may have only one
    pool for each *shard* number, because request ids contain it.
    """

    def __init__(
        self,
        options: PoolOptions | None = None,
        *,
        shard: int = 0,
        readiness: Readiness | None = None,
        on_closed: Callable[[Gone], None] | None = None,
    ) -> None:
        self.options = options or PoolOptions()
        self.shard = shard
        self.closed = False
        # While the shard drains, its agents are elsewhere, or about to be.
        self.draining = False
        self.readiness = readiness or Readiness()
        self.at_work = private_note()
        self._owns_readiness = readiness is None
        self._strategy, self._full_at = self.options.strategy, self.options.full_at
        self.close_at = self.options.close_at
        self.holding: Holding[Stream] = Holding(self.options.max_held_bytes)
        self.spending = Spending()
        self.requests = Requests(shard, self.options, self._select)
        self.agents: dict[str, Agent] = {}
        self.connections: dict[int, Connection] = {}
        self.adopted_total = 0
        self.closed_total = 0
        self.frames_total = 0
        self.moved_total = 0
        self.leaving = 0
        """Number of connections that are about to move to another shard."""
        self.moving: Counter[str] = Counter()
        """Connections on their way from here or to here, by agent. No shard serves these now."""
        self._log = get_logger()
        self._config_line = Line(
            "agent speaks about its configuration",
            "agents speak about their configuration",
            names=("agent_id", "connection_id", "kind"),
        )
        self._slow_line = Line(
            "the frames of one agent held everything up",
            "the frames of some agents held everything up",
            names=("agent_id", "connection_id"),
            numbers=("seconds",),
        )
        self._on_closed = on_closed
        self._loop = asyncio.get_running_loop()
        self.clock = awake.clock()
        self._sessions: RecentTable[tuple[str, str], int] = RecentTable(
            self.options.most_sticky, self.options.sticky_idle
        )
        # A breaker outlives the agent's connections: an agent that crashes at every request reconnects each time.
        self._breakers: RecentTable[str, Breaker] = RecentTable(MOST_BREAKERS, BREAKER_IDLE)
        self._departed: RecentTable[str, float] = RecentTable(MOST_DEPARTED, DEPARTED_KEPT)
        self._kinds: dict[tuple[Dialect, Capabilities], Kind] = {}
        self._to_write: list[Stream] = []
        self._sequence = itertools.count(1)
        self._upkeep_timer = Every(UPKEEP_SECONDS, self._upkeep)
        self._upkeep_round = 0

    # Connections.

    def adopt(self, offer: Offer, fd: int, on_closed: Callable[[], None] | None = None) -> Connection:
        """Add a committed connection to the pool, then send its acceptance, then read from it.

        *on_closed* is called when the connection is closed, which may happen before this method returns.
        """
        agent = self.agents.get(offer.agent_id)
        if agent is None:
            agent = self.agents[offer.agent_id] = Agent(offer.agent_id)
            agent.breaker = self._breakers.get(offer.agent_id, self._loop.time())
        named = (offer.dialect, offer.capabilities)
        kind = self._kinds.get(named)
        if kind is None:
            if len(self._kinds) >= MOST_KINDS:
                self._kinds.clear()
            kind = self._kinds[named] = Kind(*named, self.options.max_concurrent_per_connection)
        connection = Connection(self, agent, offer, kind, fd)
        agent.connections[offer.number] = self.connections[offer.number] = connection
        connection.on_closed = on_closed
        if self.spending.owes(offer.agent_id, monotonic()):
            connection.watched = True
        self.adopted_total += 1
        connection.start(offer.unsent, offer.residue)
        return connection

    def let_go(self, connection: Connection) -> int:
        """Forget a connection that another shard will serve, and return its open descriptor."""
        self._take_out(connection)
        self.moved_total += 1
        return connection.let_go()

    def moves(self, agent_id: str) -> None:
        """Note that a connection of the agent is on its way from here or to here."""
        self.moving[agent_id] += 1

    def has_moved(self, agent_id: str) -> None:
        """Note that a connection of the agent is no longer on its way."""
        self.moving[agent_id] -= 1
        if not self.moving[agent_id]:
            del self.moving[agent_id]
        self._departed.put(agent_id, self._loop.time(), self._loop.time())

    def remove(self, connection: Connection, code: CloseCode, reason: str) -> None:
        """Forget a connection that is closing itself."""
        self._take_out(connection)
        self.closed_total += 1
        if self._on_closed is not None:
            detail = "" if code is CloseCode.CLOSED_BY_AGENT else reason
            seconds = time.time() - connection.connected_at
            self._on_closed(Gone(connection.number, connection.agent.agent_id, code, seconds, detail))
        if connection.on_closed is not None:
            connection.on_closed()

    def note_config_update(self, connection: Connection, kind: str) -> None:
        """Log that an agent sent a message about its configuration."""
        agent_id = connection.agent.agent_id
        if self._config_line.allows(agent_id):
            self._config_line.write(time.time(), agent_id, connection.connection_id, kind)

    def note_slow_read(self, connection: Connection, seconds: float) -> None:
        """Log that one read of a connection has held up all others for *seconds*."""
        agent_id = connection.agent.agent_id
        if self._slow_line.allows(agent_id):
            self._slow_line.write(time.time(), agent_id, connection.connection_id, seconds)

    def serves(self, agent_id: str) -> bool:
        """Whether the agent has a connection here that is not about to move to another shard."""
        agent = self.agents.get(agent_id)
        return agent is not None and (not self.leaving or not all(c.leaving for c in agent.connections.values()))

    def left_at(self, agent_id: str) -> float | None:
        """The loop time of the agent's last move from here or to here; None if there was none lately."""
        return self._departed.get(agent_id, self._loop.time())

    def probe(self, agent_id: str) -> bool:
        """Close the agent's connections that have ended or are dead; returns whether room may have become free.

        That is so if a connection was closed, or if the agent has none here. Without an agent id, close the ended
        connections of all agents, at most `MOST_GONE`, and return whether there were any.
        """
        if not agent_id:
            return self._close_gone()
        agent = self.agents.get(agent_id)
        if agent is None:
            return True
        before = self.closed_total
        poll = select.poll()
        by_fd = {connection.fd: connection for connection in agent.connections.values()}
        for fd in by_fd:
            poll.register(fd, select.POLLRDHUP)
        for fd, events in poll.poll(0):
            if events & _GONE:
                self._read_to_the_end(by_fd[fd])
        now = self.clock.time()
        for connection in by_fd.values():
            if connection.fd >= 0 and self._is_dead(connection, now):
                connection.close(CloseCode.PING_TIMEOUT, "it does not answer pings")
        return self.closed_total > before

    def _close_gone(self) -> bool:
        before = self.closed_total
        for owner in self.readiness.gone(MOST_GONE):
            if isinstance(owner, Connection) and owner.fd >= 0:
                self._read_to_the_end(owner)
        return self.closed_total > before

    def write_soon(self, stream: Stream) -> None:
        """Have *stream* flushed at the end of this turn of the loop."""
        if not self._to_write:
            self._loop.call_soon(self._write_all)
        self._to_write.append(stream)

    def close_soon(self, stream: Stream, code: CloseCode, reason: str) -> None:
        """Close *stream* in a later callback, so that the calling code can finish with it."""
        self._loop.call_soon(stream.close, code, reason)

    def close(self, reason: str = "the pool is closed") -> None:
        """Close every connection and stop the timers. Requests in flight fail."""
        self.closed = True
        for connection in list(self.connections.values()):
            connection.close(CloseCode.SHARD_STOPPED, reason)
        self._upkeep_timer.cancel()
        self._config_line.close()
        self._slow_line.close()
        self.requests.close()
        if self._owns_readiness:
            self.readiness.close()

    # Requests.

    def judge(self, agent: Agent, *, failed: bool) -> None:
        """Count an outcome for or against the agent."""
        breaker = agent.breaker
        if not failed:
            if breaker is not None:
                breaker.succeeded()
                agent.breaker = None
                self._breakers.pop(agent.agent_id)
            return
        now = self._loop.time()
        if breaker is None:
            breaker = agent.breaker = Breaker(self.options.breaker_threshold, self.options.breaker_open_for)
        self._breakers.put(agent.agent_id, breaker, now)
        if breaker.failed(now):
            self._log.warning("circuit opened", agent_id=agent.agent_id, for_s=self.options.breaker_open_for)

    def _select(self, call: Call, now: float) -> Connection | PoolError | float:
        """Choose a connection for the first event of an exchange; an error if there is none, or seconds to wait."""
        exchange = call.exchange
        agent = self.agents.get(exchange.agent_id)
        if agent is None and exchange.agent_id in self.moving:
            return AgentMoving("the agent moves to another shard", agent_id=exchange.agent_id)
        if agent is None or self.draining:
            return AgentNotFound("the agent is not connected here", agent_id=exchange.agent_id)
        kind = type(call.event)
        chosen: Connection | None = None
        if exchange.session is not None:
            stuck = self._sessions.get((exchange.agent_id, exchange.session), now)
            chosen = None if stuck is None else agent.connections.get(stuck)
        if chosen is None or not is_usable(chosen, kind, self._full_at):
            chosen = choose(self._strategy, agent.connections.values(), kind, self._full_at)
        if chosen is None:
            return self._why_none(agent, call, now)
        if agent.breaker is not None and not agent.breaker.admits(now):
            after = agent.breaker.retry_after(now)
            return CircuitOpen(f"the agent failed too often; next trial in {after:.1f} s", agent_id=agent.agent_id)
        # Moved to the end, so that the table is in the order of last use.
        agent.connections[chosen.number] = agent.connections.pop(chosen.number)
        if exchange.session is not None:
            self._sessions.put((exchange.agent_id, exchange.session), chosen.number, now)
        return chosen

    def _why_none(self, agent: Agent, call: Call, now: float) -> PoolError | float:
        """The reason why no connection of *agent* can take *call*, or the seconds after which to ask again."""
        agent_id = agent.agent_id
        connections = [c for c in agent.connections.values() if c.can_receive(call.event)]
        if not connections:
            return CannotReceive(f"the agent takes no {type(call.event).__name__}", agent_id=agent_id)
        healthy = [c for c in connections if c.is_healthy]
        if not healthy:
            if agent.breaker is not None and agent.breaker.state is not Circuit.CLOSED:
                return CircuitOpen("the agent failed too often", agent_id=agent_id)
            return AgentUnavailable(f"all {len(connections)} connections are unhealthy", agent_id=agent_id)
        if all(c.leaving for c in healthy):
            return LEAVING_PAUSE
        if all(c.paused for c in healthy):
            waited = now - call.began
            if self.options.flow_control is FlowControlMode.WAIT and waited < self.options.flow_control_wait:
                return 0.01
            policy: FailurePolicy = "open" if self.options.flow_control is FlowControlMode.FAIL_OPEN else "closed"
            return FlowControlPaused("the agent asked for a pause", agent_id=agent_id, policy=policy)
        return Overloaded("the agent has all that it can work on", agent_id=agent_id)

    # Inside.

    def _take_out(self, connection: Connection) -> None:
        agent = connection.agent
        connection.leave(leaving=False)
        del self.connections[connection.number]
        del agent.connections[connection.number]
        if not agent.connections:
            del self.agents[agent.agent_id]

    def _write_all(self) -> None:
        streams, self._to_write = self._to_write, []
        for stream in streams:
            stream.flush()

    @staticmethod
    def _read_to_the_end(connection: Connection) -> None:
        """Serve the frames that the agent sent before it closed, then close. Reads at most a full socket buffer."""
        for _ in range(MOST_READS):
            if connection.fd < 0:
                return
            connection.read()
        connection.close(CloseCode.CLOSED_BY_AGENT, "closed by the agent")

    @staticmethod
    def _is_dead(connection: Connection, now: float) -> bool:
        """Whether a connection is still dead after all its input was read. The pong may be among the input."""
        if not connection.is_dead(now):
            return False
        poll = select.poll()
        poll.register(connection.fd, select.POLLIN)
        for _ in range(MOST_READS):
            if not poll.poll(0):
                break
            connection.read()
            if connection.fd < 0 or not connection.is_dead(now):
                return False
        return True

    def _upkeep(self) -> None:
        """Ping a share of the connections and close the dead ones. Each connection has its turn once an interval."""
        now = self.clock.time()
        shares = max(1, round(self.options.ping_interval / UPKEEP_SECONDS))
        self._upkeep_round = (self._upkeep_round + 1) % shares
        due = [c for number, c in self.connections.items() if number % shares == self._upkeep_round]
        for connection in due:
            if self._is_dead(connection, now):
                connection.close(CloseCode.PING_TIMEOUT, "it does not answer pings")
            elif connection.fd >= 0 and connection.pinged_at == 0:
                connection.ping(next(self._sequence), now)
        most = math.ceil(self.options.frame_timeout / UPKEEP_SECONDS)
        for stream in self.holding.next_round(most):
            stream.close(CloseCode.BAD_FRAME, f"a frame was not complete after {self.options.frame_timeout:g} s")
        self.spending.sweep(monotonic())
        now = self._loop.time()
        self._sessions.sweep(now)
        self._breakers.sweep(now)
        self._departed.sweep(now)
