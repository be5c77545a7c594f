"""A bounded history of events of the agents, the shards and the supervisor, for ``shardgate why`` and ``events``.

Pure: values in, values out; no clock and no socket. There are two views of one sequence of numbered events:

- *by time* (`since`), in rings, for readers that poll. Numbers have no gaps, so a reader learns how many events it
  missed. Each shard has its own ring: a shard that keeps dying pushes out only its own events. Refusals of unknown
  agents have their own ring too: a flood of made-up ids pushes out only other such refusals.
- *by agent* (`story`): the last events of its connections, and its refusals. There is one entry for each reason, with
  a count and times. So a flood of refusals under an agent's id changes numbers, and pushes nothing out.

**Eviction** when there is no room for another agent. A peer can make up any number of ids, and these must not evict
real agents. The order is:

1. *strangers*: agents that were never accepted. They have a limit of their own, and each peer has a small part of it;
2. *visitors*: accepted agents that are not connected, and never were for `VISIT` seconds. A rule may admit made-up ids;
3. *away*: other agents that are not connected;
4. *connected* agents, when no others are left.
"""

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from enum import IntEnum
from itertools import islice, takewhile

import msgspec

from supervisor.history_rows import NO_SHARD, Event, Page, Refusals, Story

VISIT = 60.0
"""Seconds that one connection must last so that its agent is no visitor any more."""

LONGEST_TEXT = 200

_AGENT_BYTES = 240
_EVENT_BYTES = 216
"""Memory of one agent, and of each of its events without the text. Measured with tracemalloc."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The bounds of the history. With the defaults it takes at most 32 MiB by agent, and some 5 MB in the rings."""

    agents: int = 20_000
    strangers: int = 4096
    strangers_of_a_peer: int = 64
    events_of_an_agent: int = 16
    bytes_by_agent: int = 32 * 1024 * 1024
    events: int = 8192
    """Size of the ring of known agents' events. Strangers and the supervisor have a quarter, a shard a sixty-fourth."""


class _Tier(IntEnum):
    STRANGER = 0
    VISITOR = 1
    AWAY = 2
    CONNECTED = 3


# The lookup of an enumeration's member takes 100 ns on Python 3.11. Every event of an agent needs one.
_VISITOR, _AWAY, _CONNECTED = _Tier.VISITOR, _Tier.AWAY, _Tier.CONNECTED


class _Past:
    """The history of one agent."""

    __slots__ = ("bytes", "events", "peer", "refusals", "stayed", "tier")

    def __init__(self, tier: _Tier, peer: str) -> None:
        self.tier = tier
        self.peer = peer
        self.events: list[Event] = []
        # Most agents are never refused.
        self.refusals: dict[str, Refusals] | None = None
        self.stayed = False
        self.bytes = _AGENT_BYTES


class History:
    """The history of one supervisor. *began* is the number before its first event.

    *is_connected* returns whether an agent has a connection now. The caller must update its own count before it notes
    an event here.
    """

    def __init__(self, began: int, is_connected: Callable[[str], bool], limits: Limits | None = None) -> None:
        self._limits = limits = limits or Limits()
        self._events_of_an_agent = limits.events_of_an_agent
        self._began = self._n = began
        self._is_connected = is_connected
        self._agents: dict[str, _Past] = {}
        # The same agents in the order in which they are evicted within their tier.
        self._tiers: dict[_Tier, dict[str, _Past]] = {tier: {} for tier in _Tier}
        self._by_peer: dict[str, dict[str, None]] = {}
        self._bytes = 0
        size = self._limits.events
        self._of_agents: deque[Event] = deque(maxlen=size)
        self._of_strangers: deque[Event] = deque(maxlen=max(1, size // 4))
        self._of_supervisor: deque[Event] = deque(maxlen=max(1, size // 4))
        self._of_shards: dict[int, deque[Event]] = {}

    def __len__(self) -> int:
        """How many agents have a history."""
        return len(self._agents)

    @property
    def bytes_by_agent(self) -> int:
        """Approximate memory of the agents' histories."""
        return self._bytes

    # Events of agents.

    def registered(self, now: float, agent_id: str, number: int, shard: int, seconds: float) -> None:
        """Note that a connection was accepted, after *seconds*, and is on *shard*."""
        self._n += 1
        self._note(Event(self._n, now, "registered", agent_id, number, shard, "", "", seconds))

    def adopted(self, now: float, agent_id: str, number: int, shard: int) -> None:
        """Note that *shard* holds a connection that an earlier supervisor accepted."""
        self._n += 1
        self._note(Event(self._n, now, "adopted", agent_id, number, shard))

    def moved(self, now: float, agent_id: str, number: int, source: int, shard: int) -> None:
        """Note that a connection went from one shard to another."""
        self._n += 1
        self._note(Event(self._n, now, "moved", agent_id, number, shard, "", f"from shard {source}"))

    def closed(
        self, now: float, agent_id: str, number: int, shard: int, code: str, seconds: float = 0.0, text: str = ""
    ) -> None:
        """Note that a connection ended after *seconds*, for the reason *code*."""
        self._n += 1
        event = Event(self._n, now, "closed", agent_id, number, shard, code, text[:LONGEST_TEXT], seconds)
        self._note(event, stayed=seconds >= VISIT)

    def refused(self, now: float, agent_id: str | None, peer: str, code: str, text: str) -> None:
        """Note that a registration was refused. *agent_id* is None when no id had been read.

        *peer* is the other end with its port or pid, as ``192.0.2.1:50000`` or ``uid 1000 pid 4711``.
        """
        self._n += 1
        text = text[:LONGEST_TEXT]
        event = Event(self._n, now, "refused", agent_id or "", 0, NO_SHARD, code, text, 0.0, peer)
        past = None if agent_id is None else self._agents.get(agent_id)
        if past is None or past.tier is _Tier.STRANGER:
            self._of_strangers.append(event)
        else:
            self._of_agents.append(event)
        if agent_id is None:
            return
        if past is None:
            past = self._meet_stranger(agent_id, peer_key(peer))
        if past.refusals is None:
            past.refusals = {}
        earlier = past.refusals.get(code)
        if earlier is None:
            past.refusals[code] = Refusals(code, 1, now, now, text, peer)
            self._weigh(past, _EVENT_BYTES + len(text) + len(peer))
        else:
            self._weigh(past, len(text) + len(peer) - len(earlier.text) - len(earlier.peer))
            past.refusals[code] = Refusals(code, earlier.times + 1, earlier.first_at, now, text, peer)

    # Events of the processes.

    def shard(self, now: float, shard: int, code: str, text: str) -> None:
        """Note an event of a shard's process. *code* is one word for it."""
        self._n += 1
        ring = self._of_shards.get(shard)
        if ring is None:
            ring = self._of_shards[shard] = deque(maxlen=max(1, self._limits.events // 64))
        ring.append(Event(self._n, now, "shard", "", 0, shard, code, text[:LONGEST_TEXT]))

    def supervisor(self, now: float, code: str, text: str) -> None:
        """Note an action of the supervisor, or a command to it."""
        self._n += 1
        self._of_supervisor.append(Event(self._n, now, "supervisor", "", 0, NO_SHARD, code, text[:LONGEST_TEXT]))

    # Queries.

    def story(self, agent_id: str) -> Story | None:
        """The history of an agent; None without one."""
        past = self._agents.get(agent_id)
        if past is None:
            return None
        refusals = sorted((past.refusals or {}).values(), key=lambda refusals: refusals.last_at)
        return Story(agent_id=agent_id, events=list(past.events), refusals=refusals)

    def agent_ids(self) -> Iterator[str]:
        """All agents with a history, strangers last."""
        for tier in reversed(_Tier):
            yield from self._tiers[tier]

    def since(self, after: int | None, limit: int, *, agent_id: str | None = None, shard: int | None = None) -> Page:
        """At most *limit* events with a number above *after*; the last ones when *after* is None.

        *agent_id* and *shard* select events. *lost* counts forgotten events of all agents and shards.
        """
        rings = [self._of_agents, self._of_strangers, self._of_supervisor, *self._of_shards.values()]
        if after is None:
            tails: Iterable[Iterable[Event]] = (
                islice((event for event in reversed(ring) if _concerns(event, agent_id, shard)), limit)
                for ring in rings
            )
            newest_first = heapq.merge(*tails, key=lambda event: event.n, reverse=True)
            return Page(events=list(islice(newest_first, limit))[::-1], next=self._n, lost=0, began=self._began)
        known = max(after, self._began)
        fresh = heapq.merge(*(_after(ring, known) for ring in rings), key=lambda event: event.n)
        events: list[Event] = []
        seen, last = 0, known
        for event in fresh:
            if len(events) == limit:
                break
            seen, last = seen + 1, event.n
            if _concerns(event, agent_id, shard):
                events.append(event)
        else:
            last = max(self._n, known)
        return Page(events=events, next=last, lost=last - known - seen, began=self._began)

    # Inside.

    def _note(self, event: Event, *, stayed: bool = False) -> None:
        """Keep an event of an agent that was accepted."""
        self._of_agents.append(event)
        agent_id = event.agent_id
        past = self._agents.get(agent_id)
        if past is None:
            past = self._meet(agent_id, _CONNECTED, "")
        if stayed:
            past.stayed = True
        events = past.events
        events.append(event)
        weight = _EVENT_BYTES + len(event.text)
        if len(events) > self._events_of_an_agent:
            weight -= _EVENT_BYTES + len(events.pop(0).text)
        tier = _CONNECTED
        if event.kind == "closed" and not self._is_connected(agent_id):
            tier = _AWAY if past.stayed else _VISITOR
        if tier is not past.tier:
            self._change_tier(agent_id, past, tier)
        if weight:
            self._weigh(past, weight)

    def _meet_stranger(self, agent_id: str, peer: str) -> _Past:
        others = self._by_peer.setdefault(peer, {})
        if len(others) >= self._limits.strangers_of_a_peer:
            self._forget(next(iter(others)))
            others = self._by_peer.setdefault(peer, {})
        if len(self._tiers[_Tier.STRANGER]) >= self._limits.strangers:
            self._forget(next(iter(self._tiers[_Tier.STRANGER])))
        self._by_peer.setdefault(peer, {})[agent_id] = None
        return self._meet(agent_id, _Tier.STRANGER, peer)

    def _meet(self, agent_id: str, tier: _Tier, peer: str) -> _Past:
        past = self._agents[agent_id] = self._tiers[tier][agent_id] = _Past(tier, peer)
        self._bytes += past.bytes
        if tier is not _Tier.STRANGER:
            self._make_room(agent_id)
        return past

    def _change_tier(self, agent_id: str, past: _Past, tier: _Tier) -> None:
        del self._tiers[past.tier][agent_id]
        was_stranger = past.tier is _Tier.STRANGER
        past.tier = tier
        self._tiers[tier][agent_id] = past
        if was_stranger:
            self._forget_peer(agent_id, past)
            self._make_room(agent_id)

    def _weigh(self, past: _Past, weight: int) -> None:
        past.bytes += weight
        self._bytes += weight
        while self._bytes > self._limits.bytes_by_agent and len(self._agents) > 1:
            self._forget(self._first_to_go(_Tier.STRANGER, spare=None))

    def _make_room(self, newest: str) -> None:
        known = len(self._agents) - len(self._tiers[_Tier.STRANGER])
        if known > self._limits.agents:
            self._forget(self._first_to_go(_Tier.VISITOR, spare=newest))

    def _first_to_go(self, lowest: _Tier, spare: str | None) -> str:
        for tier in _Tier:
            if tier >= lowest:
                for agent_id in self._tiers[tier]:
                    if agent_id != spare:
                        return agent_id
        raise AssertionError("nobody is left to give way")

    def _forget(self, agent_id: str) -> None:
        past = self._agents.pop(agent_id)
        del self._tiers[past.tier][agent_id]
        self._bytes -= past.bytes
        if past.tier is _Tier.STRANGER:
            self._forget_peer(agent_id, past)

    def _forget_peer(self, agent_id: str, past: _Past) -> None:
        others = self._by_peer[past.peer]
        del others[agent_id]
        if not others:
            del self._by_peer[past.peer]

    def check_invariants(self) -> None:
        """Raise AssertionError unless all limits are kept and all counts are right."""
        limits, strangers = self._limits, self._tiers[_Tier.STRANGER]
        assert {name: past for tier in self._tiers.values() for name, past in tier.items()} == self._agents
        assert all(past.tier is tier for tier, pasts in self._tiers.items() for past in pasts.values())
        assert len(self._agents) - len(strangers) <= limits.agents, "too many agents"
        assert len(strangers) <= limits.strangers, "too many strangers"
        by_peer = {name for names in self._by_peer.values() for name in names}
        assert by_peer == strangers.keys(), "a stranger without a peer"
        assert all(0 < len(ids) <= limits.strangers_of_a_peer for ids in self._by_peer.values()), "too many of a peer"
        assert self._bytes == sum(past.bytes for past in self._agents.values()), "the bytes are wrong"
        assert self._bytes <= limits.bytes_by_agent or len(self._agents) == 1, "too many bytes"
        assert all(len(past.events) <= limits.events_of_an_agent for past in self._agents.values()), "too many events"


def peer_key(peer: str) -> str:
    """The key under which a peer is counted: a uid, an IPv4 address, or the /64 of an IPv6 address."""
    if peer.startswith("uid "):
        return peer.partition(" pid ")[0]
    host = peer.rpartition(":")[0]
    if not host.startswith("["):
        return host
    head, gap, _ = host.strip("[]").partition("::")
    groups = head.split(":")
    return ":".join(groups[:4]) + (gap if len(groups) < 4 else "")


def _concerns(event: Event, agent_id: str | None, shard: int | None) -> bool:
    return (agent_id is None or event.agent_id == agent_id) and (shard is None or event.shard == shard)


def _after(ring: deque[Event], n: int) -> list[Event]:
    """The events of a ring with a number above *n*, oldest first. Takes time in proportion to their number."""
    return list(takewhile(lambda event: event.n > n, reversed(ring)))[::-1]
