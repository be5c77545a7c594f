"""How many connections rules, peers, and all together may have."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipc.peers import NOBODY, Owner, key_of
from supervisor.care import Care, capacity_of
from supervisor.ledger import Ledger
from supervisor.quotas import Holdings, LimitReached, Quotas, Scope

RULES = {"waf-*": None, "auth": None}


def filled(quotas: Quotas, owner: Owner, most: int = 1000) -> tuple[int, LimitReached | None]:
    """How many slots an owner gets out of an empty ledger, and why no more."""
    ledger = Ledger(1)
    ledger.quotas = quotas
    return fill(ledger, owner, most)


def fill(ledger: Ledger, owner: Owner, most: int = 1000) -> tuple[int, LimitReached | None]:
    for n in range(most):
        try:
            ledger.reserve(f"{owner.rule}-{owner.peer}-{n}", owner)
        except LimitReached as reached:
            ledger.check_invariants()
            return n, reached
    return most, None


def test_without_limits_nobody_is_refused() -> None:
    assert filled(Quotas(), Owner("waf-*", "uid 0")) == (1000, None)


@pytest.mark.parametrize(
    ("quotas", "scope", "most", "is_full"),
    [
        (Quotas(max_connections=5), Scope.TOTAL, 5, True),
        (Quotas(capacity=5, per_peer=9), Scope.TOTAL, 5, True),
        (Quotas(per_peer=5), Scope.PEER, 5, False),
        (Quotas(rules={"waf-*": 5}), Scope.RULE, 5, False),
        (Quotas(rules={"waf-*": 5, "auth": None}, max_connections=100, per_peer=6), Scope.RULE, 5, False),
        (Quotas(rules=RULES, max_connections=16), Scope.RULE, 14, True),
        (Quotas(rules=RULES, max_connections=2), Scope.RULE, 1, True),
        (Quotas(rules={"waf-*": None}, max_connections=16), Scope.TOTAL, 16, True),
        (Quotas(capacity=32), Scope.PEER, 30, True),
        (Quotas(capacity=32, max_connections=8), Scope.TOTAL, 8, True),
    ],
)
def test_the_narrowest_limit_is_the_one_that_counts(quotas: Quotas, scope: Scope, most: int, is_full: bool) -> None:
    got, reached = filled(quotas, Owner("waf-*", "uid 0"))

    assert got == most
    assert reached is not None
    assert (reached.scope, reached.most, reached.is_full) == (scope, most, is_full)


def test_agents_of_another_rule_and_another_peer_find_a_place_when_one_has_filled_up() -> None:
    ledger = Ledger(1)
    ledger.quotas = Quotas(rules=RULES, capacity=160)
    assert fill(ledger, Owner("waf-*", "uid 0"))[0] == 140
    assert fill(ledger, Owner("auth", "uid 0"))[0] == 10
    assert fill(ledger, Owner("auth", "192.0.2.1"))[0] == 10


def test_connections_of_which_nobody_has_told_the_owner_count_in_the_total_alone() -> None:
    ledger = Ledger(100)
    ledger.quotas = Quotas(rules={"": 1, "a": 1}, per_peer=1, max_connections=5)
    for number in range(4):
        ledger.adopt("old", number + 1, 0)
    ledger.reserve("new", Owner("a", "b"))
    with pytest.raises(LimitReached) as caught:
        ledger.reserve("newer", NOBODY)
    assert caught.value.scope is Scope.TOTAL


def test_single_place_is_not_reserved_away() -> None:
    assert filled(Quotas(rules=RULES, max_connections=1), Owner("waf-*", "uid 0"))[0] == 1
    assert filled(Quotas(capacity=1), Owner("waf-*", "uid 0"))[0] == 1


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("abc"), st.sampled_from("xy")), max_size=40))
def test_counts_are_those_of_the_slots_that_are_left(steps: list[tuple[bool, str, str]]) -> None:
    ledger, held = Ledger(40), dict[int, tuple[str, Owner]]()
    for is_new, rule, peer in steps:
        if is_new or not held:
            owner = Owner(rule, peer)
            held[ledger.reserve(peer, owner)] = (peer, owner)
        else:
            number, (agent_id, _) = held.popitem()
            ledger.release(agent_id, number)
        ledger.check_invariants()
        assert ledger.owned == Holdings(owner for _, owner in held.values())


@pytest.mark.parametrize(
    ("host", "key"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("::1", "::/64"),
        ("fe80::1%eth0", "fe80::%eth0/64"),
        ("", ""),
    ],
)
def test_peers_are_an_ipv4_address_or_the_64_of_an_ipv6_one(host: str, key: str) -> None:
    assert key_of(host) == key


def test_capacity_is_what_all_shards_say_and_one_that_is_away_counts_with_what_it_had() -> None:
    cares = [Care(0), Care(1), Care(2)]
    assert capacity_of(cares, lambda _: 0) is None
    cares[0].capacity = 100
    assert capacity_of(cares, lambda _: 0) == 300
    cares[1].capacity = 50
    cares[2].capacity = 70
    assert capacity_of(cares, lambda _: 0) == 220
    cares[2].draining = True
    assert capacity_of(cares, lambda _: 7) == 157
