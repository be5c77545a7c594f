"""What rounds of requests say together."""

import pytest

from bench.dispatch_measure import DispatchRound
from bench.dispatch_report import budgets, ratios, summaries


def a_round(
    route: str, per_s: float, *, in_flight: int = 64, cpu_us: float = 10, client: float | None = None
) -> DispatchRound:
    return DispatchRound(
        route=route,
        in_flight=in_flight,
        requests=100,
        per_s=per_s,
        cpu_us=cpu_us,
        client_cpu_us=client,
        p50_us=1,
        p99_us=2,
        max_us=per_s,
        agent_cpu_us=1,
        agent_busy=0.1,
    )


def test_summary_holds_medians_and_the_largest_maximum() -> None:
    found = summaries([a_round("PoolClient", per_s, client=per_s / 10) for per_s in (10, 90, 20)])

    assert [(s.per_s, s.client_cpu_us, s.max_us) for s in found] == [(20, 2, 90)]


def test_summary_has_no_client_where_there_is_none() -> None:
    assert summaries([a_round("pool", 1)])[0].client_cpu_us is None


def test_ratios_compare_neighbours_and_more_is_better_in_both() -> None:
    rounds = [
        a_round("pool", 400, cpu_us=10),
        a_round("streams on uvloop", 100, cpu_us=30),
        a_round("streams on uvloop", 50, cpu_us=50),
        a_round("pool", 250, cpu_us=10),
        a_round("pool", 600, cpu_us=20),
        a_round("streams on uvloop", 100, cpu_us=80),
        a_round("pool, with cancels", 9000),
    ]

    with pytest.raises(ValueError, match="zip"):
        ratios(rounds)  # the plain pool on asyncio has no rounds
    rounds += [a_round("streams on asyncio", per_s) for per_s in (1, 2, 3)]

    found = {r.other: r for r in ratios(rounds)}

    ratio = found["streams on uvloop"]
    assert (ratio.speed, ratio.slowest, ratio.fastest, ratio.cpu) == (5, 4, 6, 4)


@pytest.mark.parametrize(
    ("per_s", "cpu_us", "missed"),
    [
        (60_000, 16, set()),
        (59_999, 16, {"requests/s: pool, 64 in flight"}),
        (60_000, 16.1, {"CPU of a request: pool, 64 in flight"}),
    ],
)
def test_budget_is_missed_beyond_its_bound(per_s: float, cpu_us: float, missed: set[str]) -> None:
    rounds = [
        a_round("pool", per_s, cpu_us=cpu_us),
        a_round("pool, with cancels", 70_000, cpu_us=1),
        a_round("pool", 1, in_flight=16, cpu_us=99),
        a_round("PoolClient", 1, cpu_us=99),
        a_round("streams on asyncio", 1, cpu_us=99),
    ]

    found = budgets(summaries(rounds))

    assert {b.what for b in found if not b.kept} == missed
    assert len(found) == 4
