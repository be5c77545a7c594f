"""Limits of connections: for each rule, for each peer, and for all together.

A *rule* admits an agent: the patterns of its token, or the pattern of the allowlist where no token is required. Agents
choose their ids, so a limit for each id does not bound a peer with many ids. The rule and the peer bound it. A peer is
an address over IPv4, a /64 over IPv6, of which a host may use every address, and a uid over a Unix socket.

**Reserve.** With several rules, no single rule can use the last eighth of all places. The agents of the other rules
find a place when one rule has filled up. No single peer can use the last sixteenth of the places that descriptors
allow, unless `max-connections-per-peer` is set.

Pure: counts go in, a verdict comes out.
"""

import sys
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Final

from ipc.peers import Owner

RESERVED_SHARE: Final = 8
"""One in this many places is out of reach of any single rule, one in twice as many of any single peer."""

_NO_LIMIT: Final = sys.maxsize


class Scope(Enum):
    """The scope of a limit."""

    AGENT = "agent"
    RULE = "rule"
    PEER = "peer"
    TOTAL = "total"


class LimitReached(Exception):
    """There are *held* connections in *scope*, and *most* are allowed.

    *is_full* says that there is no room, or only room that is reserved for others. Without it the scope's own limit is
    reached.
    """

    def __init__(self, scope: Scope, held: int, most: int, *, is_full: bool = False) -> None:
        super().__init__(f"{held} connections of the {scope.value}, {most} are allowed")
        self.scope, self.held, self.most, self.is_full = scope, held, most, is_full


class Holdings:
    """The numbers of slots of each rule, of each peer, and of all. The attributes are read only."""

    __slots__ = ("by_peer", "by_rule", "total")

    def __init__(self, owners: Iterable[Owner] = ()) -> None:
        self.total = 0
        self.by_rule: dict[str, int] = {}
        self.by_peer: dict[str, int] = {}
        for owner in owners:
            self.add(owner)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Holdings) and (self.total, self.by_rule, self.by_peer) == (
            other.total,
            other.by_rule,
            other.by_peer,
        )

    __hash__ = None  # type: ignore[assignment]  # it changes

    def add(self, owner: Owner) -> None:
        """Count one slot more."""
        rule, peer = owner
        self.total += 1
        if rule:
            self.by_rule[rule] = self.by_rule.get(rule, 0) + 1
        if peer:
            self.by_peer[peer] = self.by_peer.get(peer, 0) + 1

    def remove(self, owner: Owner) -> None:
        """Count one slot fewer."""
        self.total -= 1
        rule, peer = owner
        if rule:
            _count_less(self.by_rule, rule)
        if peer:
            # Peers come and go by the million.
            _count_less(self.by_peer, peer)


def _count_less(counts: dict[str, int], name: str) -> None:
    left = counts[name] - 1
    if left:
        counts[name] = left
    else:
        del counts[name]


class Quotas:
    """The limits beside the limit of each agent. None means no limit.

    *rules* maps the names of the rules to their limits. *capacity* is the number of connections that descriptors allow,
    None while it is unknown.
    """

    __slots__ = ("_given", "_own", "_per_rule", "_shared", "capacity", "per_peer", "total")

    def __init__(
        self,
        *,
        max_connections: int | None = None,
        per_peer: int | None = None,
        rules: Mapping[str, int | None] | None = None,
        capacity: int | None = None,
    ) -> None:
        self._given = max_connections, per_peer, rules
        self.capacity = capacity
        self.total = min(max_connections or _NO_LIMIT, capacity or _NO_LIMIT)
        has_others = rules is not None and len(rules) > 1
        self._shared = self.total - _part_of(self.total, RESERVED_SHARE) if has_others else _NO_LIMIT
        self._own = {name: most for name, most in (rules or {}).items() if most is not None}
        self._per_rule = {name: min(most, self._shared) for name, most in self._own.items()}
        if per_peer is None and capacity is not None:
            per_peer = capacity - _part_of(capacity, 2 * RESERVED_SHARE)
        self.per_peer = per_peer or _NO_LIMIT

    def with_capacity(self, capacity: int | None) -> "Quotas":
        """The same limits with another *capacity*."""
        if capacity == self.capacity:
            return self
        max_connections, per_peer, rules = self._given
        return Quotas(max_connections=max_connections, per_peer=per_peer, rules=rules, capacity=capacity)

    @property
    def most(self) -> int | None:
        """The limit of all connections together; None without a limit."""
        return self.total if self.total < _NO_LIMIT else None

    def check(self, owner: Owner, held: Holdings) -> None:
        """Raise LimitReached when *owner* may not have one more slot beside all that are *held*.

        A slot whose owner is unknown counts in the total alone.
        """
        rule, peer = owner
        if rule:
            of_rule = held.by_rule.get(rule, 0)
            if of_rule >= self._per_rule.get(rule, self._shared):
                most = self._own.get(rule, _NO_LIMIT)
                if of_rule >= most:
                    raise LimitReached(Scope.RULE, of_rule, most)
                raise LimitReached(Scope.RULE, of_rule, self._shared, is_full=True)
        if peer:
            of_peer = held.by_peer.get(peer, 0)
            if of_peer >= self.per_peer:
                raise LimitReached(Scope.PEER, of_peer, self.per_peer, is_full=self._given[1] is None)
        if held.total >= self.total:
            raise LimitReached(Scope.TOTAL, held.total, self.total, is_full=True)


def _part_of(places: int, share: int) -> int:
    """A share of *places*: at least one, and never all of them. 0 without a limit."""
    return 0 if places == _NO_LIMIT else min(max(1, places // share), places - 1)
