"""What the rounds of the dispatch benchmark say together: medians, ratios of neighbouring rounds, budgets.

Values in, values out; see `bench.report` for why medians, and why ratios are taken round by round.
"""

import itertools
from collections.abc import Callable, Sequence
from statistics import median

import msgspec

from bench.dispatch_measure import DispatchRound
from bench.report import Budget

__all__ = ["DispatchRatio", "DispatchSummary", "budgets", "ratios", "summaries"]

POOL, POOL_WITH_CANCELS = "pool", "pool, with cancels"
#: The plain pool sends no cancels, so it is compared with the product's that sends none.
PLAIN = ("streams on asyncio", "streams on uvloop")

IN_FLIGHT, PER_S, CPU_US = 64, 60_000.0, 16.0


class DispatchSummary(msgspec.Struct, frozen=True):
    """Medians over the rounds of one route; `max_us` is the largest of all rounds."""

    route: str
    in_flight: int
    per_s: float
    cpu_us: float
    client_cpu_us: float | None
    p50_us: float
    p99_us: float
    max_us: float
    agent_cpu_us: float
    agent_busy: float


class DispatchRatio(msgspec.Struct, frozen=True):
    """The product's pool over a plain one, round by round: times as fast, and times less CPU (both: more is better)."""

    other: str
    in_flight: int
    speed: float
    slowest: float
    fastest: float
    cpu: float


def summaries(rounds: Sequence[DispatchRound]) -> list[DispatchSummary]:
    """One summary for each number in flight and route; routes in the order of their first round."""
    by_name: dict[tuple[int, str], list[DispatchRound]] = {}
    for one in rounds:
        by_name.setdefault((one.in_flight, one.route), []).append(one)
    numbers, routes = ([*dict.fromkeys(names)] for names in zip(*by_name, strict=True))
    return [_summary(by_name[name]) for name in itertools.product(numbers, routes) if name in by_name]


def ratios(rounds: Sequence[DispatchRound]) -> list[DispatchRatio]:
    """The pool against each plain one. The n-th round of one belongs to the n-th round of the other."""
    found = []
    for in_flight in dict.fromkeys(r.in_flight for r in rounds):
        ours = [r for r in rounds if (r.route, r.in_flight) == (POOL, in_flight)]
        for other in PLAIN:
            theirs = [r for r in rounds if (r.route, r.in_flight) == (other, in_flight)]
            pairs = list(zip(ours, theirs, strict=True))
            speeds = [mine.per_s / plain.per_s for mine, plain in pairs]
            cpu = median(plain.cpu_us / mine.cpu_us for mine, plain in pairs)
            found.append(DispatchRatio(other, in_flight, median(speeds), min(speeds), max(speeds), cpu))
    return found


def budgets(figures: Sequence[DispatchSummary]) -> list[Budget]:
    """What a request may cost in one shard: the project's budgets beside the figures, with and without cancels."""
    found = []
    for figure in figures:
        if figure.in_flight == IN_FLIGHT and figure.route in {POOL, POOL_WITH_CANCELS}:
            what = f"{figure.route}, {IN_FLIGHT} in flight"
            found.append(Budget.at_least(f"requests/s: {what}", PER_S / 1e3, figure.per_s / 1e3, "k/s"))
            found.append(Budget.at_most(f"CPU of a request: {what}", CPU_US, figure.cpu_us, "µs"))
    return found


def _summary(rounds: Sequence[DispatchRound]) -> DispatchSummary:
    def middle(figure: Callable[[DispatchRound], float]) -> float:
        return median(map(figure, rounds))

    client = [r.client_cpu_us for r in rounds if r.client_cpu_us is not None]
    return DispatchSummary(
        route=rounds[0].route,
        in_flight=rounds[0].in_flight,
        per_s=middle(lambda r: r.per_s),
        cpu_us=middle(lambda r: r.cpu_us),
        client_cpu_us=median(client) if client else None,
        p50_us=middle(lambda r: r.p50_us),
        p99_us=middle(lambda r: r.p99_us),
        max_us=max(r.max_us for r in rounds),
        agent_cpu_us=middle(lambda r: r.agent_cpu_us),
        agent_busy=middle(lambda r: r.agent_busy),
    )
