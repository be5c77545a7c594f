"""Probe rounds: before an agent is refused for the limit, the shards check its connections.

An agent that has closed a connection may register again at once, even when its shard has not reported the close yet.
So a registration over the limit waits. The shards that hold the agent's connections look for closed ones. A shard
reports these first and answers the probe after that, over the same ordered pipe.

One round is in flight for each agent, however many registrations wait. A round decides only registrations that came
*before* it was sent. A later registration may rely on a close that the round has missed. It waits for the next round.

A round may be about more than one agent, when a rule, a peer or all agents together are over a limit. *agent_id* is
then the key that `scope_key` makes.

Pure: the clock comes in as an argument.
"""

from dataclasses import dataclass, field
from typing import Generic, TypeVar

from ipc.peers import Owner
from supervisor.quotas import Scope

Waiter = TypeVar("Waiter")


@dataclass(slots=True)
class Round(Generic[Waiter]):
    """One probe of one agent: the registrations that wait for it, and the shards that have not answered.

    *asked* says whether the probe was sent.
    """

    probe: int
    agent_id: str
    deadline: float
    waiters: list[Waiter]
    asked: bool = False
    shards: set[int] = field(default_factory=set)


def scope_key(scope: Scope, agent_id: str, owner: Owner) -> str:
    """The key of a round: an agent's id, or a text with a space. No agent id has a space."""
    match scope:
        case Scope.AGENT:
            return agent_id
        case Scope.RULE:
            return f"rule {owner.rule}"
        case Scope.PEER:
            return f"peer {owner.peer}"
        case Scope.TOTAL:
            return "all of them"


def is_agent(key: str) -> bool:
    """Whether a round with this key is about one agent."""
    return " " not in key


class ProbeBook(Generic[Waiter]):
    """The rounds in flight and the registrations that wait for a later one."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._rounds: dict[int, Round[Waiter]] = {}
        self._by_agent: dict[str, Round[Waiter]] = {}
        self._later: dict[str, list[Waiter]] = {}
        self._next_probe = 1

    def __len__(self) -> int:
        if not self._rounds and not self._later:
            return 0
        return sum(len(r.waiters) for r in self._rounds.values()) + sum(map(len, self._later.values()))

    def wait(self, agent_id: str, waiter: Waiter, now: float) -> Round[Waiter] | None:
        """Let *waiter* wait. Returns a new round that the caller must send, or None when it waits in another one."""
        current = self._by_agent.get(agent_id)
        if current is None:
            # Between the end of a round and `next_round`, earlier waiters join this round too.
            return self._open(agent_id, [*self._later.pop(agent_id, ()), waiter], now)
        if current.asked:
            self._later.setdefault(agent_id, []).append(waiter)
        else:
            current.waiters.append(waiter)
        return None

    def ask(self, current: Round[Waiter], shards: set[int]) -> bool:
        """Note that *shards* are asked now. True when there are none and the round is over."""
        current.asked = True
        current.shards = set(shards)
        if not shards:
            self._close(current)
        return not shards

    def answered(self, probe: int, shard: int) -> Round[Waiter] | None:
        """Note a shard's answer. Returns the round when this was the last answer."""
        current = self._rounds.get(probe)
        if current is None or not current.asked:
            return None
        current.shards.discard(shard)
        if current.shards:
            return None
        self._close(current)
        return current

    def shard_gone(self, shard: int) -> list[Round[Waiter]]:
        """Expect no more answers from a shard. Returns the rounds that are over now."""
        answered = (self.answered(probe, shard) for probe in list(self._rounds))
        return [current for current in answered if current is not None]

    def expired(self, now: float) -> list[Round[Waiter]]:
        """End the rounds that took too long, and return them. The caller decides without the missing answers."""
        late = [current for current in self._rounds.values() if current.deadline <= now]
        for current in late:
            self._close(current)
        return late

    def is_open(self, current: Round[Waiter]) -> bool:
        """Whether *current* is still in flight."""
        return current.probe in self._rounds

    def next_round(self, agent_id: str, now: float) -> Round[Waiter] | None:
        """Open a round for registrations that came during the last one. None without any, or when one is open."""
        if agent_id in self._by_agent:
            return None
        waiters = self._later.pop(agent_id, None)
        return None if waiters is None else self._open(agent_id, waiters, now)

    def first(self, agent_id: str) -> Waiter | None:
        """Remove and return the registration that has waited longest for a slot of the agent; None without one."""
        current = self._by_agent.get(agent_id)
        if current is not None and current.waiters:
            return current.waiters.pop(0)
        later = self._later.get(agent_id)
        if not later:
            return None
        waiter = later.pop(0)
        if not later:
            del self._later[agent_id]
        return waiter

    def take_all(self) -> list[Waiter]:
        """Remove and return all waiting registrations."""
        waiters = [w for current in self._rounds.values() for w in current.waiters]
        waiters += [w for later in self._later.values() for w in later]
        self._rounds.clear()
        self._by_agent.clear()
        self._later.clear()
        return waiters

    def _open(self, agent_id: str, waiters: list[Waiter], now: float) -> Round[Waiter]:
        opened = Round(self._next_probe, agent_id, now + self._timeout, waiters)
        self._next_probe += 1
        self._rounds[opened.probe] = self._by_agent[agent_id] = opened
        return opened

    def _close(self, current: Round[Waiter]) -> None:
        del self._rounds[current.probe]
        del self._by_agent[current.agent_id]
