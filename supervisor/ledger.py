"""The ledger: the slots of each agent, and the shard of each slot.

Only the supervisor admits agents, so checking the limit and reserving the slot are one step in one process. A slot is
*reserved* until its Commit has left for the shard. Then it is *live* until the shard reports the connection gone::

    reserve ──► place ──► commit ──► release
       │          │ ▲
       │          └─┘ another shard, when this one did not take it
       └──────► release   (refused, or the agent went away)

Invariant: `reserve` never gives an agent more slots than the limit at that time. Each live connection has a slot, so
this bounds the accepted connections too. The same holds for the limits in `Quotas`: the slots of each *owner*, and all
slots. An owner is the rule that admits the agent, and the peer that it comes from. A slot keeps its owner, and the
shards' snapshots pass it on to the next supervisor. The ledger may overcount, but never undercounts: a slot is freed
only when the connection is known to be gone. When the ledger may be wrong, a shard's full snapshot replaces its belief
(`reconcile`).

A connection that moves to another shard goes back to *reserved* when its shard has let go of it (`recall`). Then it is
placed and committed like a new one. It keeps its slot and its number.

The ledger has no clock and no socket, so that tests can run it through every interleaving.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from typing import NamedTuple

from ipc.peers import NOBODY, Owner
from supervisor.quotas import Holdings, LimitReached, Quotas, Scope

__all__ = ["Ledger", "LimitReached", "Slot"]

_NOWHERE: dict[int, int] = {}


class Slot(NamedTuple):
    """The shard of one connection, None while none has been chosen, and whether the connection is live."""

    shard: int | None
    live: bool


@cache
def _slot(shard: int | None, live: bool) -> Slot:
    """One object for all equal slots: 100,000 tuples would take much memory."""
    return Slot(shard, live)


class _Agent:
    """The slots of one agent. An agent without slots has no record.

    *owner* is the owner of all its slots. When the slots have several owners, *owners* has them by number.
    """

    __slots__ = ("by_shard", "owner", "owners", "slots")

    def __init__(self, owner: Owner = NOBODY) -> None:
        self.slots: dict[int, Slot] = {}
        self.owner = owner
        self.owners: dict[int, Owner] | None = None
        # Kept from the second slot on. Most agents have one connection, and 100,000 dictionaries take much memory.
        self.by_shard: dict[int, int] | None = None

    def count_on(self, shard: int) -> int:
        if self.by_shard is None:
            return sum(slot.shard == shard for slot in self.slots.values())
        return self.by_shard.get(shard, 0)

    def owner_of(self, number: int) -> Owner:
        return self.owner if self.owners is None else self.owners[number]

    def put(self, number: int, slot: Slot, owner: Owner) -> None:
        """Add a slot. The caller must count it on its shard, if it has one."""
        if self.owners is None and owner != self.owner:
            self.owners = dict.fromkeys(self.slots, self.owner)
        if self.owners is not None:
            self.owners[number] = owner
        if self.by_shard is None and self.slots:
            self.by_shard = dict(Counter(slot.shard for slot in self.slots.values() if slot.shard is not None))
        self.slots[number] = slot

    def take_out(self, number: int) -> tuple[Slot, Owner] | None:
        slot = self.slots.pop(number, None)
        if slot is None:
            return None
        return slot, self.owner if self.owners is None else self.owners.pop(number)


class Ledger:
    """Slots of all agents. *limit* and *quotas* may be changed at any time, and apply to later reservations.

    Numbers are drawn upwards from *first_number*, each only once.
    """

    def __init__(self, limit: int, first_number: int = 1) -> None:
        self.limit = limit
        self.quotas = Quotas()
        self.owned = Holdings()
        """Numbers of slots of each rule, of each peer, and of all, reserved and live. Read only."""
        self.next_number = first_number
        self._agents: dict[str, _Agent] = {}
        self.loads: dict[int, int] = {}
        """Numbers of slots on each shard, reserved and live, of all agents. Read only."""
        self.live_total = 0
        self.changed: set[str] = set()
        """Ids of agents with changed live connections. The publisher of the counts empties it."""

    def count(self, agent_id: str) -> int:
        """Slots of the agent, reserved and live."""
        agent = self._agents.get(agent_id)
        return 0 if agent is None else len(agent.slots)

    def load(self, shard: int) -> int:
        """Slots on the shard, reserved and live, of all agents."""
        return self.loads.get(shard, 0)

    def counts_by_shard(self, agent_id: str) -> Mapping[int, int]:
        """Slots of the agent on each shard, reserved and live. Read only.

        It is empty while an agent has only had one slot. `placement` asks for a connection that has a slot already. An
        agent's only slot is then the slot of this connection: on no shard, or on one that did not take it.
        """
        agent = self._agents.get(agent_id)
        return _NOWHERE if agent is None or agent.by_shard is None else agent.by_shard

    def count_on(self, agent_id: str, shard: int) -> int:
        """Slots of the agent on the shard, reserved and live."""
        agent = self._agents.get(agent_id)
        return 0 if agent is None else agent.count_on(shard)

    def slots(self, agent_id: str) -> dict[int, Slot]:
        """A copy of the agent's slots, by connection number."""
        agent = self._agents.get(agent_id)
        return {} if agent is None else dict(agent.slots)

    def live_shards(self, agent_id: str) -> set[int]:
        """The shards that hold live connections of the agent. A probe asks these."""
        return set(self.live_counts(agent_id))

    def live_counts(self, agent_id: str) -> dict[int, int]:
        """The agent's live connections on each shard that has any."""
        agent = self._agents.get(agent_id)
        if agent is None:
            return {}
        counts: dict[int, int] = {}
        for slot in agent.slots.values():
            if slot.live and slot.shard is not None:
                counts[slot.shard] = counts.get(slot.shard, 0) + 1
        return counts

    def live_by_agent(self, shard: int) -> dict[str, list[int]]:
        """The numbers of the live connections on the shard, by agent."""
        found: dict[str, list[int]] = {}
        for agent_id, agent in self._agents.items():
            for number, slot in agent.slots.items():
                if slot.live and slot.shard == shard:
                    found.setdefault(agent_id, []).append(number)
        return found

    @property
    def agent_total(self) -> int:
        """How many agents own a slot."""
        return len(self._agents)

    def agent_ids(self) -> list[str]:
        """All agents that own a slot."""
        return list(self._agents)

    def reserved(self, agent_id: str) -> bool:
        """Whether the agent owns a slot that is not live yet."""
        agent = self._agents.get(agent_id)
        return agent is not None and any(not slot.live for slot in agent.slots.values())

    def live_numbers(self, shard: int) -> set[tuple[int, str]]:
        """The live connections on the shard, as pairs of number and agent id."""
        return {
            (number, agent_id)
            for agent_id, agent in self._agents.items()
            for number, slot in agent.slots.items()
            if slot.live and slot.shard == shard
        }

    def reserve(self, agent_id: str, owner: Owner = NOBODY) -> int:
        """Reserve a slot and return its number. `LimitReached` when the agent or its owner is at a limit."""
        agent = self._agents.get(agent_id)
        held = 0 if agent is None else len(agent.slots)
        if held >= self.limit:
            raise LimitReached(Scope.AGENT, held, self.limit)
        self.quotas.check(owner, self.owned)
        if agent is None:
            agent = self._agents[agent_id] = _Agent(owner)
        number = self.next_number
        self.next_number = number + 1
        agent.put(number, _slot(None, False), owner)
        self.owned.add(owner)
        return number

    def has_room(self, agent_id: str, owner: Owner) -> bool:
        """Whether a slot could be reserved now."""
        try:
            self.quotas.check(owner, self.owned)
        except LimitReached:
            return False
        return self.count(agent_id) < self.limit

    def place(self, agent_id: str, number: int, shard: int | None) -> None:
        """Count a reserved slot on *shard* from now on, and not on its shard before. None: on no shard."""
        agent = self._agents[agent_id]
        slot = agent.slots[number]
        if slot.live:
            raise ValueError(f"{agent_id}-conn-{number} is live and cannot be placed")
        if slot.shard is not None:
            self._count(agent, slot.shard, -1)
        agent.slots[number] = _slot(shard, False)
        if shard is not None:
            self._count(agent, shard, 1)

    def shard_of(self, agent_id: str, number: int) -> int | None:
        """The shard of a slot; None when it is on no shard, or there is no such slot."""
        agent = self._agents.get(agent_id)
        slot = None if agent is None else agent.slots.get(number)
        return None if slot is None else slot.shard

    def commit(self, agent_id: str, number: int) -> None:
        """Make a placed slot live."""
        agent = self._agents[agent_id]
        slot = agent.slots[number]
        if slot.shard is None or slot.live:
            raise ValueError(f"{agent_id}-conn-{number} is {slot} and cannot be committed")
        agent.slots[number] = _slot(slot.shard, True)
        self.live_total += 1
        self.changed.add(agent_id)

    def recall(self, agent_id: str, number: int, shard: int) -> bool:
        """Turn a live slot of *shard* into a reserved one on no shard. False when it is not live on that shard."""
        agent = self._agents.get(agent_id)
        slot = None if agent is None else agent.slots.get(number)
        if agent is None or slot is None or not slot.live or slot.shard != shard:
            return False
        agent.slots[number] = _slot(None, False)
        self._count(agent, shard, -1)
        # Not added to `changed`: the counts are published when it is on its new shard. Until then requests for it go
        # to the old one.
        self.live_total -= 1
        return True

    def release(self, agent_id: str, number: int) -> bool:
        """Free a slot. False when it is free already, so a second report of a close does no harm."""
        agent = self._agents.get(agent_id)
        if agent is None:
            return False
        taken = agent.take_out(number)
        if taken is None:
            return False
        slot, owner = taken
        self.owned.remove(owner)
        if slot.shard is not None:
            self._count(agent, slot.shard, -1)
        self.live_total -= slot.live
        self.changed.add(agent_id)
        if not agent.slots:
            del self._agents[agent_id]
        return True

    def release_live(self, agent_id: str, number: int, shard: int) -> bool:
        """Free the slot of a connection that *shard* reports as gone. False when it is not live on that shard."""
        agent = self._agents.get(agent_id)
        slot = None if agent is None else agent.slots.get(number)
        if slot is None or not slot.live or slot.shard != shard:
            return False
        return self.release(agent_id, number)

    def adopt(self, agent_id: str, number: int, shard: int, owner: Owner = NOBODY) -> None:
        """Count an existing connection of a shard that the ledger did not have. The limits do not apply."""
        agent = self._agents.get(agent_id)
        if agent is None:
            agent = self._agents[agent_id] = _Agent(owner)
        if number in agent.slots:
            raise ValueError(f"{agent_id}-conn-{number} is known already")
        agent.put(number, _slot(shard, True), owner)
        self.owned.add(owner)
        self._count(agent, shard, 1)
        self.live_total += 1
        self.changed.add(agent_id)
        self.next_number = max(self.next_number, number + 1)

    def reconcile(
        self,
        shard: int,
        believed: Iterable[tuple[int, str]],
        held: Iterable[tuple[int, str]],
        owners: Mapping[int, Owner] | None = None,
    ) -> int:
        """Replace the *believed* connections of *shard* by its *held* ones. Returns how many slots changed.

        *believed* are the live connections of the shard when the snapshot was **asked for**. A connection that became
        live later may be missing from the snapshot and exist nevertheless. *owners* are the owners of the held
        connections, by number.
        """
        held = set(held)
        changed = 0
        for number, agent_id in believed:
            if (number, agent_id) not in held:
                changed += self.release_live(agent_id, number, shard)
        for number, agent_id in held:
            agent = self._agents.get(agent_id)
            if agent is None or number not in agent.slots:
                self.adopt(agent_id, number, shard, (owners or {}).get(number, NOBODY))
                changed += 1
        return changed

    def drop_shard(self, shard: int) -> set[tuple[int, str]]:
        """Free every live slot of a shard after the end of its process. Returns them as `live_numbers` does."""
        gone = self.live_numbers(shard)
        for number, agent_id in gone:
            self.release(agent_id, number)
        return gone

    def check_invariants(self) -> None:
        """Raise AssertionError unless every count agrees with its slots."""
        slots = [(number, slot) for agent in self._agents.values() for number, slot in agent.slots.items()]
        assert len({number for number, _ in slots}) == len(slots), "a number was drawn twice"
        assert all(number < self.next_number for number, _ in slots), "a number in use would be drawn again"
        assert all(slot.shard is not None for _, slot in slots if slot.live), "a live slot is on no shard"
        assert self.live_total == sum(slot.live for _, slot in slots), "live_total is wrong"
        load = Counter(slot.shard for _, slot in slots if slot.shard is not None)
        assert Counter(self.loads) == load, "the load of a shard is wrong"
        for agent in self._agents.values():
            assert agent.slots, "an agent without slots was kept"
            assert agent.by_shard is not None or len(agent.slots) == 1, "a second slot is not counted by shard"
            by_shard = Counter(slot.shard for slot in agent.slots.values() if slot.shard is not None)
            assert agent.by_shard is None or Counter(agent.by_shard) == by_shard, "an agent's count on a shard is wrong"
            assert agent.owners is None or agent.owners.keys() == agent.slots.keys(), "a slot has no owner, or is gone"
        owners = [agent.owner_of(number) for agent in self._agents.values() for number in agent.slots]
        assert self.owned == Holdings(owners), "the count of a rule, of a peer, or of all is wrong"

    def _count(self, agent: _Agent, shard: int, by: int) -> None:
        self.loads[shard] = self.loads.get(shard, 0) + by
        if agent.by_shard is not None:
            agent.by_shard[shard] = agent.by_shard.get(shard, 0) + by
