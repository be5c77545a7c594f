"""What agents make a shard compute for nothing. Pure: a budget of seconds for each connection, and its debt."""

from shards.affinity import RecentTable

BURST = 0.04
"""Seconds of the processor that a connection may cost at once with frames that answer nothing. All others wait so long
for each such connection, once."""

REFILL = 0.02
"""Seconds that it gets back in each second: health, metrics and pongs of an agent cost less than a thousandth."""

MOST_AT_ONCE = BURST / 2
"""Seconds counted at a time: a shard that was stopped in the middle of a read blames no agent for it."""

ANSWER = 50e-6
"""Seconds free of charge for each answer that was waited for. One costs 5 to 20 µs with all that follows from it."""

SUSPICIOUS = 1e-3
"""Seconds for one read from which on the processor's clock is asked about that connection: it costs 0.5 µs."""

READ_BYTE = 2e-9
"""Seconds for each byte of a frame, beside what serving it takes: it was read, put together and copied."""

FRAME = 1.5e-6
"""Seconds for a frame of no use, the least that one costs: many small reads hide from a clock that others share."""

MOST_DEBTORS = 10_000


class Spending:
    """What each connection has spent lately. One that overspent leaves its debt to the next one of its agent."""

    __slots__ = ("_agents", "_connections")

    def __init__(self) -> None:
        idle = BURST / REFILL
        self._connections: RecentTable[int, tuple[float, float]] = RecentTable(MOST_DEBTORS, idle)
        self._agents: RecentTable[str, tuple[float, float]] = RecentTable(MOST_DEBTORS, idle)

    def owes(self, agent_id: str, now: float) -> bool:
        """Whether a connection of the agent has overspent lately."""
        return len(self._agents) > 0 and self._agents.get(agent_id, now) is not None

    def charge(self, number: int, agent_id: str, seconds: float, now: float) -> float:
        """Count *seconds* that connection *number* cost; returns what is left of its budget, below 0 for more."""
        debt, at = self._connections.get(number, now) or self._agents.get(agent_id, now) or (0.0, now)
        debt = max(0.0, debt - (now - at) * REFILL) + min(seconds, MOST_AT_ONCE)
        if debt <= BURST:
            self._connections.put(number, (debt, now), now)
            return BURST - debt
        self._connections.pop(number)
        self._agents.put(agent_id, (BURST, now), now)
        return BURST - debt

    def sweep(self, now: float) -> None:
        """Forget those that owe nothing any more."""
        self._connections.sweep(now)
        self._agents.sweep(now)
