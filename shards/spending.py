"""Processor time that agents make a shard waste: a budget in seconds for each connection, and its debt. Pure."""

from shards.affinity import RecentTable

BURST = 0.04
"""Seconds of the processor that a connection may cost at once with frames that answer nothing. All other connections
may wait that long for each such connection, once."""

REFILL = 0.02
"""Seconds that a connection gets back in each second. Health, metrics and pongs of an agent cost less than a
thousandth."""

MOST_AT_ONCE = BURST / 2
"""Seconds that one charge counts at most. A shard may have been stopped in the middle of a read, which is not the
agent's fault."""

ANSWER = 50e-6
"""Seconds free of charge for each expected answer. One costs 5 to 20 µs with all work that follows from it."""

SUSPICIOUS = 1e-3
"""Seconds of one read from which on the processor's clock is read for the connection. Reading it costs 0.5 µs."""

READ_BYTE = 2e-9
"""Seconds for each byte of a frame, in addition to serving it: the byte was read, joined and copied."""

FRAME = 1.5e-6
"""Seconds for a frame of no use, the least that one costs: many small reads hide from a clock that others share."""

MOST_DEBTORS = 10_000


class Spending:
    """The recent debt of each connection. A connection that overspent leaves its debt to the next one of its agent."""

    __slots__ = ("_agents", "_connections")

    def __init__(self) -> None:
        idle = BURST / REFILL
        self._connections: RecentTable[int, tuple[float, float]] = RecentTable(MOST_DEBTORS, idle)
        self._agents: RecentTable[str, tuple[float, float]] = RecentTable(MOST_DEBTORS, idle)

    def owes(self, agent_id: str, now: float) -> bool:
        """Whether a connection of the agent has overspent lately."""
        return len(self._agents) > 0 and self._agents.get(agent_id, now) is not None

    def charge(self, number: int, agent_id: str, seconds: float, now: float) -> float:
        """Charge *seconds* to connection *number*; returns the rest of its budget, negative if it has overspent."""
        debt, at = self._connections.get(number, now) or self._agents.get(agent_id, now) or (0.0, now)
        debt = max(0.0, debt - (now - at) * REFILL) + min(seconds, MOST_AT_ONCE)
        if debt <= BURST:
            self._connections.put(number, (debt, now), now)
            return BURST - debt
        self._connections.pop(number)
        self._agents.put(agent_id, (BURST, now), now)
        return BURST - debt

    def sweep(self, now: float) -> None:
        """Forget connections and agents that owe nothing any more."""
        self._connections.sweep(now)
        self._agents.sweep(now)
