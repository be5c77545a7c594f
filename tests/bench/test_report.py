"""What rounds say together."""

import pytest

from bench.measure import Memory, Round
from bench.report import Budget, budgets, ratios, summaries, table

PRODUCT, PLAIN = "shardgate", "streams on asyncio"


def a_round(target: str, per_s: float, *, in_handshake: int = 16, cpu_us: float = 50, ms: float = 1) -> Round:
    return Round(
        target=target,
        in_handshake=in_handshake,
        registrations=100,
        per_s=per_s,
        cpu_us=cpu_us,
        close_cpu_us=1,
        p50_ms=ms,
        p99_ms=ms,
        max_ms=ms,
        generator_cpu_us=1,
        generator_busy=0.1,
        connect_retries=0,
    )


def test_summary_holds_medians_and_the_largest_maximum() -> None:
    (summary,) = summaries([a_round(PRODUCT, per_s, ms=per_s / 10) for per_s in (10, 90, 20)])

    assert (summary.per_s, summary.p99_ms, summary.max_ms) == (20, 2, 9)


def test_summaries_keep_one_order_of_targets_whoever_went_first() -> None:
    rounds = [a_round(t, 1, in_handshake=k) for k, t in [(16, PRODUCT), (16, PLAIN), (128, PLAIN), (128, PRODUCT)]]

    found = [(s.in_handshake, s.target) for s in summaries(rounds)]

    assert found == [(16, PRODUCT), (16, PLAIN), (128, PRODUCT), (128, PLAIN)]


def test_ratio_compares_rounds_that_ran_side_by_side() -> None:
    """A disturbance that halves both leaves the ratio as it was; the ratio of medians would be 4."""
    rounds = [
        a_round(PRODUCT, 400),
        a_round(PLAIN, 100),
        a_round(PLAIN, 50),
        a_round(PRODUCT, 250),
        a_round(PRODUCT, 600),
        a_round(PLAIN, 100),
    ]

    (ratio,) = ratios(rounds)

    assert (ratio.other, ratio.median, ratio.lowest, ratio.highest) == (PLAIN, 5, 4, 6)


def test_ratio_refuses_rounds_without_a_partner() -> None:
    with pytest.raises(ValueError, match="zip"):
        ratios([a_round(PRODUCT, 1), a_round(PLAIN, 1), a_round(PLAIN, 1)])


@pytest.mark.parametrize(
    ("speed", "cpu_us", "p99_ms", "idle", "missed"),
    [
        (1.5, 90, 4.0, 2000, set()),
        (1.4, 90, 4.0, 2000, {"speed against plain asyncio, 16 in handshake"}),
        (1.5, 91, 4.0, 2000, {"CPU of a registration, 16 in handshake"}),
        (1.5, 90, 4.1, 2000, {"p99, 16 in handshake"}),
        (1.5, 90, 4.0, 2001, {"memory of an idle connection"}),
    ],
)
def test_budget_is_missed_beyond_its_bound(
    speed: float, cpu_us: float, p99_ms: float, idle: float, missed: set[str]
) -> None:
    rounds = [a_round(PRODUCT, speed * 1000, cpu_us=cpu_us, ms=p99_ms), a_round(PLAIN, 1000, cpu_us=999, ms=999)]
    memory = [Memory(PRODUCT, 10, 0, 0, idle), Memory(PLAIN, 10, 0, 0, 9999)]

    found = budgets(summaries(rounds), ratios(rounds), memory)

    assert {b.what for b in found if not b.kept} == missed
    assert len(found) == 4


def test_budget_asks_for_more_speed_with_128_in_handshake() -> None:
    rounds = [a_round(PRODUCT, 1900, in_handshake=128), a_round(PLAIN, 1000, in_handshake=128)]

    (speed, _) = budgets(summaries(rounds), ratios(rounds), [])

    assert speed == Budget("speed against plain asyncio, 128 in handshake", "at least 2 times", "1.9 times", kept=False)


def test_table_is_aligned_markdown() -> None:
    assert table(["name", "n"], [["a", "10 µs"], ["longer", "5 µs"]]).splitlines() == [
        "| name   |     n |",
        "| ------ | ----: |",
        "| a      | 10 µs |",
        "| longer |  5 µs |",
    ]
