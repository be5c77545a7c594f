"""What log lines cost: two products side by side, one that logs every outcome and one that logs warnings only.

Both register and close the same connections in turns, 16 and 128 in handshake. CPU is that of all their processes, for
a registration and its close together, since each has its line, or is counted in one that sums up. Raises
`NotMeasuredError` when one is in neither: a product that drops lines would be cheap.
"""

import contextlib
import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import msgspec

from bench import loadgen
from bench.measure import WARM_UP, NotMeasuredError, Round, measure_round, warm_up
from bench.report import Budget, table
from bench.targets import PER_AGENT, POLL_S, Shardgate, shardgate

__all__ = ["LogCost", "LogCosts", "as_text", "budgets", "log_cost", "measure"]

#: The part of the CPU that log lines may take.
MOST = 0.15
LOUD, QUIET = "info", "warning"
SUMS_WITHIN_S = 5.0
_SUMS = re.compile(rb'"n":(\d+),"most":[^\n]*"event":"more (?:registrations accepted|connections closed)"')


class LogCost(msgspec.Struct, frozen=True):
    """CPU for a registration and its close, with lines and without, and the median of their ratios round by round."""

    in_handshake: int
    registrations: int
    with_us: float
    without_us: float
    part: float


class LogCosts(msgspec.Struct, frozen=True):
    """All that one run found."""

    costs: list[LogCost]
    budgets: list[Budget]


def measure(rounds: int, registrations: int, in_handshake: Sequence[int]) -> list[Round]:
    """All rounds of both products; the one that goes first changes."""
    found = []
    with contextlib.ExitStack() as stack:
        pairs = []
        for level in (LOUD, QUIET):
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="shardgate-bench-")))
            target = stack.enter_context(shardgate(directory, log_level=level))
            target.name = level
            pairs.append((target, stack.enter_context(loadgen.start(target.address, per_id=PER_AGENT))))
        for target, generator in pairs:
            before = _outcomes(target)
            warm_up(target, generator)
            _require_outcomes(target, before, WARM_UP)
        for busy in in_handshake:
            for _ in range(rounds):
                for target, generator in pairs:
                    before = _outcomes(target)
                    found.append(measure_round(target, generator, registrations, busy))
                    _require_outcomes(target, before, registrations)
                pairs.reverse()
    return found


def log_cost(rounds: Sequence[Round]) -> list[LogCost]:
    """What the rounds say, for each number in handshake."""
    found = []
    for busy in dict.fromkeys(r.in_handshake for r in rounds):
        loud, quiet = (
            [r.cpu_us + r.close_cpu_us for r in rounds if r.target == level and r.in_handshake == busy]
            for level in (LOUD, QUIET)
        )
        parts = [1 - without / with_lines for with_lines, without in zip(loud, quiet, strict=True)]
        total = sum(r.registrations for r in rounds if r.target == LOUD and r.in_handshake == busy)
        found.append(LogCost(busy, total, median(loud), median(quiet), median(parts)))
    return found


def budgets(costs: Sequence[LogCost]) -> list[Budget]:
    """The bound, beside what was measured."""
    return [
        Budget.at_most(f"log lines, {cost.in_handshake} in handshake", 100 * MOST, 100 * cost.part, "% of the CPU")
        for cost in costs
    ]


def as_text(costs: Sequence[LogCost]) -> str:
    """The table, ready for a README."""
    return table(
        ["in handshake", "registrations", "CPU with log lines", "CPU without", "the lines' part"],
        [
            [
                str(cost.in_handshake),
                f"{cost.registrations:,}",
                f"{cost.with_us:.1f} µs",
                f"{cost.without_us:.1f} µs",
                f"{cost.part:.1%}",
            ]
            for cost in costs
        ],
    )


def _outcomes(target: Shardgate) -> int:
    """The outcomes in a product's log, in lines of their own or summed up: two for each registration."""
    text = target.log.read_bytes()
    lines = text.count(b'"event":"registration accepted"') + text.count(b'"event":"connection closed"')
    return lines + sum(int(number) for number in _SUMS.findall(text))


def _require_outcomes(target: Shardgate, before: int, registrations: int) -> None:
    expected = 2 * registrations if target.name == LOUD else 0
    # What was left out is summed up a second later.
    deadline = time.monotonic() + SUMS_WITHIN_S
    while (told := _outcomes(target) - before) < expected and time.monotonic() < deadline:
        time.sleep(POLL_S)
    if told != expected:
        raise NotMeasuredError(f"{target.name}: {told} outcomes in the log instead of {expected}")
