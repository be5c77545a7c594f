"""The choice among connections, for every strategy."""

from collections import Counter
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from dialout import RequestHeaders, ResponseHeaders
from ipc.options import Strategy
from shards.balance import choose, is_usable

FULL_AT = 1000


class Candidate:
    """What `choose` looks at, and nothing else."""

    def __init__(
        self,
        *,
        open_: bool = True,
        in_flight: int = 0,
        limit: int = 4,
        waiting_bytes: int = 0,
        errors: int = 0,
        receivable: frozenset[type] = frozenset({RequestHeaders}),
    ) -> None:
        self.open = open_
        self.in_flight = in_flight
        self.limit = limit
        self.waiting_bytes = waiting_bytes
        self.errors = errors
        self.receivable = receivable

    def __repr__(self) -> str:
        return str(vars(self))


CANDIDATES = st.lists(
    st.builds(
        Candidate,
        open_=st.sampled_from([True, True, True, False]),
        in_flight=st.integers(0, 5),
        limit=st.sampled_from([0, 1, 4, 9, 9, 9]),
        waiting_bytes=st.sampled_from([0, 0, 0, FULL_AT, FULL_AT + 1]),
        errors=st.integers(0, 3),
        receivable=st.sampled_from([frozenset({RequestHeaders}), frozenset({RequestHeaders, ResponseHeaders})]),
    ),
    max_size=6,
)


def pick(strategy: Strategy, candidates: Sequence[Candidate], kind: type = RequestHeaders) -> Candidate | None:
    return choose(strategy, candidates, kind, FULL_AT)


def usable_by_hand(candidate: Candidate, kind: type) -> bool:
    """What the documentation calls usable, said in another way than the code says it."""
    reasons_against = [
        not candidate.open,
        candidate.limit - candidate.in_flight <= 0,
        not any(kind is taken for taken in candidate.receivable),
        candidate.waiting_bytes > FULL_AT,
    ]
    return sum(reasons_against) == 0


@given(st.sampled_from(Strategy), CANDIDATES, st.sampled_from([RequestHeaders, ResponseHeaders]))
def test_choice_is_a_usable_one_whenever_there_is_any(
    strategy: Strategy, candidates: list[Candidate], kind: type
) -> None:
    usable = [candidate for candidate in candidates if usable_by_hand(candidate, kind)]
    assert usable == [candidate for candidate in candidates if is_usable(candidate, kind, FULL_AT)]
    chosen = pick(strategy, candidates, kind)
    if not usable:
        assert chosen is None
    else:
        assert any(chosen is candidate for candidate in usable)


@given(CANDIDATES)
def test_least_connections_takes_the_first_of_the_least_loaded(candidates: list[Candidate]) -> None:
    usable = [candidate for candidate in candidates if usable_by_hand(candidate, RequestHeaders)]
    expected = min(usable, key=lambda candidate: candidate.in_flight, default=None)
    assert pick(Strategy.LEAST_CONNECTIONS, candidates) is expected


@given(CANDIDATES)
def test_round_robin_takes_the_usable_one_that_was_used_longest_ago(candidates: list[Candidate]) -> None:
    usable = [candidate for candidate in candidates if usable_by_hand(candidate, RequestHeaders)]
    assert pick(Strategy.ROUND_ROBIN, candidates) is (usable[0] if usable else None)


@given(CANDIDATES)
def test_health_based_takes_the_one_with_fewest_errors_and_of_these_the_least_loaded(
    candidates: list[Candidate],
) -> None:
    chosen = pick(Strategy.HEALTH_BASED, candidates)
    for other in candidates:
        if chosen is not None and usable_by_hand(other, RequestHeaders):
            assert chosen.errors < other.errors or (
                chosen.errors == other.errors and chosen.in_flight <= other.in_flight
            )


def test_random_takes_each_usable_one_sooner_or_later() -> None:
    candidates = [Candidate(), Candidate(open_=False), Candidate(in_flight=3), Candidate(errors=2)]
    counts = Counter(candidates.index(pick(Strategy.RANDOM, candidates) or candidates[1]) for _ in range(400))
    assert set(counts) == {0, 2, 3}, "one in 10^50 runs misses one of three"


@given(st.sampled_from([Strategy.LEAST_CONNECTIONS, Strategy.ROUND_ROBIN]), st.integers(1, 5), st.integers(1, 4))
def test_order_of_last_use_shares_idle_connections_evenly(strategy: Strategy, count: int, rounds: int) -> None:
    order = [Candidate() for _ in range(count)]
    names = {id(candidate): name for name, candidate in enumerate(order)}
    used = []
    for _ in range(count * rounds):
        chosen = pick(strategy, order)
        assert chosen is not None
        order.remove(chosen)
        order.append(chosen)
        used.append(names[id(chosen)])
    assert used == list(range(count)) * rounds


def test_health_based_prefers_health_to_idleness() -> None:
    tired, busy, busier = Candidate(errors=1), Candidate(in_flight=2), Candidate(in_flight=3)
    assert pick(Strategy.HEALTH_BASED, [tired, busier, busy]) is busy
