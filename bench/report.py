"""What the rounds say together: medians, ratios of the rounds that ran side by side, budgets, tables.

Values in, values out. Medians, because two noisy cores make single rounds worthless; ratios within a round first
and their median then, because a disturbance lasts for seconds and hits neighbours alike.
"""

from collections.abc import Callable, Sequence
from statistics import median

import msgspec

from bench.measure import Memory, Round

__all__ = ["Budget", "Ratio", "Summary", "budgets", "ratios", "summaries", "table"]

PRODUCT, PLAIN = "shardgate", "streams on asyncio"

#: By how many are in handshake: times the registrations/s of the plain listener, as a floor that shows a regression.
#: Four and six times were the first aim, when a plain listener took 190 µs of CPU for each. It takes 75 to 98 today, so
#: that six times would leave 25 µs of two cores for everything, generator included: less than one process needs that
#: hands no descriptor on.
SPEED_AGAINST_PLAIN = {16: 1.5, 128: 2.0}
CPU_US = 90.0
P99_IN_HANDSHAKE, P99_MS = 16, 4.0
IDLE_CONNECTION_KB = 2.0


class Summary(msgspec.Struct, frozen=True):
    """Medians over the rounds of one target; `max_ms` is the largest of all rounds."""

    target: str
    in_handshake: int
    per_s: float
    cpu_us: float
    close_cpu_us: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    generator_cpu_us: float
    generator_busy: float


class Ratio(msgspec.Struct, frozen=True):
    """The product's registrations/s over another target's, round by round: median, lowest, highest."""

    other: str
    in_handshake: int
    median: float
    lowest: float
    highest: float


class Budget(msgspec.Struct, frozen=True):
    """One figure beside what it has to keep."""

    what: str
    bound: str
    measured: str
    kept: bool

    @classmethod
    def at_least(cls, what: str, bound: float, measured: float, unit: str) -> "Budget":
        """A figure that may not be lower."""
        return cls(what, f"at least {bound:g} {unit}", f"{measured:.1f} {unit}", measured >= bound)

    @classmethod
    def at_most(cls, what: str, bound: float, measured: float, unit: str) -> "Budget":
        """A figure that may not be higher."""
        return cls(what, f"at most {bound:g} {unit}", f"{measured:.1f} {unit}", measured <= bound)


def summaries(rounds: Sequence[Round]) -> list[Summary]:
    """One summary for each number in handshake and target; targets in the order of their first round."""
    return [
        Summary(
            target=target,
            in_handshake=in_handshake,
            per_s=_median(rounds, target, in_handshake, lambda r: r.per_s),
            cpu_us=_median(rounds, target, in_handshake, lambda r: r.cpu_us),
            close_cpu_us=_median(rounds, target, in_handshake, lambda r: r.close_cpu_us),
            p50_ms=_median(rounds, target, in_handshake, lambda r: r.p50_ms),
            p99_ms=_median(rounds, target, in_handshake, lambda r: r.p99_ms),
            max_ms=max(r.max_ms for r in _of(rounds, target, in_handshake)),
            generator_cpu_us=_median(rounds, target, in_handshake, lambda r: r.generator_cpu_us),
            generator_busy=_median(rounds, target, in_handshake, lambda r: r.generator_busy),
        )
        for in_handshake in dict.fromkeys(r.in_handshake for r in rounds)
        for target in dict.fromkeys(r.target for r in rounds)
    ]


def ratios(rounds: Sequence[Round]) -> list[Ratio]:
    """The product against each other target. The n-th round of one belongs to the n-th round of the other."""
    found = []
    for other, in_handshake in dict.fromkeys((r.target, r.in_handshake) for r in rounds if r.target != PRODUCT):
        pairs = zip(_of(rounds, PRODUCT, in_handshake), _of(rounds, other, in_handshake), strict=True)
        each = [ours.per_s / theirs.per_s for ours, theirs in pairs]
        found.append(Ratio(other, in_handshake, median(each), min(each), max(each)))
    return found


def budgets(figures: Sequence[Summary], against: Sequence[Ratio], memory: Sequence[Memory]) -> list[Budget]:
    """What registration may cost: the project's budgets beside the figures."""
    found = [
        Budget.at_least(f"speed against plain asyncio, {r.in_handshake} in handshake", bound, r.median, "times")
        for r in against
        if r.other == PLAIN and (bound := SPEED_AGAINST_PLAIN.get(r.in_handshake))
    ]
    for figure in figures:
        if figure.target != PRODUCT:
            continue
        with_k = f"{figure.in_handshake} in handshake"
        found.append(Budget.at_most(f"CPU of a registration, {with_k}", CPU_US, figure.cpu_us, "µs"))
        if figure.in_handshake == P99_IN_HANDSHAKE:
            found.append(Budget.at_most(f"p99, {with_k}", P99_MS, figure.p99_ms, "ms"))
    found += [
        Budget.at_most("memory of an idle connection", IDLE_CONNECTION_KB, m.bytes_per_connection / 1e3, "KB")
        for m in memory
        if m.target == PRODUCT
    ]
    return found


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An aligned Markdown table, the first column to the left and the others to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]

    def line(cells: Sequence[str]) -> str:
        padded = [cells[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))]
        return f"| {' | '.join(padded)} |"

    return "\n".join(map(line, [header, rule, *rows]))


def _of(rounds: Sequence[Round], target: str, in_handshake: int) -> list[Round]:
    return [r for r in rounds if (r.target, r.in_handshake) == (target, in_handshake)]


def _median(rounds: Sequence[Round], target: str, in_handshake: int, figure: Callable[[Round], float]) -> float:
    return median(map(figure, _of(rounds, target, in_handshake)))
