"""What other agents notice of hostile ones: latency of requests, quiet and beside connections that flood the shard.

    python -m bench.hostile                     about two minutes
    python -m bench.hostile --quick             some seconds, for a first look
    python -m bench.hostile --check             exit code 3 when a budget is missed
    python -m bench.hostile --json FILE         every round, with the machine it ran on

One agent with 4 connections answers a proxy that asks one request after the other, through the product with one shard.
Each attack (`bench.attackers`) is done by four connections of other agents in the same shard, which send without a
pause and dial again when they are closed. Quiet rounds and rounds under attack take turns, so that a busy machine hits
both.

The attackers' own processor time is that of a process beside: on two cores part of what is measured is that they run.

Exit codes: 0 measured · 1 not measured, and why (an answer was missing or another request's, a connection of the agent
was lost, a process was replaced, the attackers were not let in or sent nothing) · 2 usage · 3 a budget was missed, with
--check.
"""

import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

import click
import msgspec

from bench.attackers import ATTACKS, AttackReport
from bench.children import Child, ChildError
from bench.command import Machine, benchmark, or_exit, say, show
from bench.dispatch_measure import DispatchRound, measure_round, warm_up
from bench.dispatch_targets import Route, client_route
from bench.measure import NotMeasuredError
from bench.report import Budget, table
from bench.targets import START_TIMEOUT_S

HOSTILE = 4
"""Connections of an attack."""

MOST_TIMES = 3.0
"""The median latency under attack, in quiet ones."""

MOST_MS = 250.0
"""The longest request under attack."""

ANSWER_S = 20.0


class Attacked(msgspec.Struct, frozen=True):
    """An attack, and what another agent noticed: medians of the rounds, and the longest request of all of them."""

    attack: str
    quiet_p50_us: float
    p50_us: float
    times: float
    quiet_max_ms: float
    max_ms: float
    sent_mb: float
    closed: int


class Figures(msgspec.Struct, frozen=True):
    """All that one run found, as `--json` writes it."""

    machine: Machine
    attacks: list[Attacked]
    budgets: list[Budget]


@contextlib.contextmanager
def attackers(address: str, attack: str) -> Iterator[Child]:
    """Four connections' worth of one attack, at rest."""
    options = ["--uds", address, "--only", attack, "--connections", str(HOSTILE)]
    with Child.start("attackers", [sys.executable, "-m", "bench.attackers", *options]) as child:
        child.read_line(START_TIMEOUT_S)
        yield child


def _rounds(route: Route, requests: int, seconds: float) -> list[DispatchRound]:
    """Rounds of so many requests, for so long."""
    end = time.monotonic() + seconds
    found = [measure_round(route, requests, 1)]
    while time.monotonic() < end:
        found.append(measure_round(route, requests, 1))
    return found


def measure_attack(route: Route, address: str, attack: str, rounds: int, requests: int, seconds: float) -> Attacked:
    """Latency beside one attack, and before it. Raises `NotMeasuredError` when the attack was none."""
    quiet: list[DispatchRound] = []
    hostile: list[DispatchRound] = []
    sent = accepted = closed = 0
    with attackers(address, attack) as child:
        for _ in range(rounds):
            quiet += _rounds(route, requests, seconds / 2)
            child.ask("attack", ANSWER_S)
            hostile += _rounds(route, requests, seconds)
            child.ask("rest", ANSWER_S)
            done = msgspec.json.decode(child.ask("report", ANSWER_S), type=AttackReport)
            sent += sum(done.sent.values())
            accepted += done.accepted
            closed += done.closed
    if accepted < HOSTILE or not sent:
        raise NotMeasuredError(f"{attack}: {accepted} connections were let in, and sent {sent} bytes")
    quiet_p50, p50 = median(one.p50_us for one in quiet), median(one.p50_us for one in hostile)
    return Attacked(
        attack,
        quiet_p50,
        p50,
        p50 / quiet_p50,
        max(one.max_us for one in quiet) / 1e3,
        max(one.max_us for one in hostile) / 1e3,
        sent / 1e6,
        closed,
    )


def run(attacks: Sequence[str], rounds: int, requests: int, seconds: float) -> list[Attacked]:
    """Every attack, on one product."""
    found = []
    with (
        tempfile.TemporaryDirectory(prefix="shardgate-bench-") as folder,
        client_route(Path(folder), cancels=False) as route,
    ):
        warm_up(route)
        for attack in attacks:
            try:
                done = measure_attack(route, route.address, attack, rounds, requests, seconds)
            except ChildError as silent:
                raise NotMeasuredError(str(silent)) from silent
            found.append(done)
            say(f"{attack}: p50 {done.p50_us:,.0f} µs, quiet {done.quiet_p50_us:,.0f}, max {done.max_ms:.1f} ms")
    return found


def budgets(attacks: Sequence[Attacked]) -> list[Budget]:
    """The figures to keep, of the worst attack each."""
    slowest = max(attacks, key=lambda one: one.times)
    longest = max(attacks, key=lambda one: one.max_ms)
    return [
        Budget.at_most(f"median latency ({slowest.attack})", MOST_TIMES, slowest.times, "quiet ones"),
        Budget.at_most(f"longest request ({longest.attack})", MOST_MS, longest.max_ms, "ms"),
    ]


def as_text(figures: Figures) -> str:
    """The tables, ready for a README."""
    rows = [
        [
            one.attack,
            f"{one.quiet_p50_us:,.0f} µs",
            f"{one.p50_us:,.0f} µs",
            f"{one.times:.2f}",
            f"{one.quiet_max_ms:.1f} ms",
            f"{one.max_ms:.1f} ms",
            f"{one.sent_mb:,.1f} MB",
            str(one.closed),
        ]
        for one in figures.attacks
    ]
    kept = [[b.what, b.bound, b.measured, "ok" if b.kept else "missed"] for b in figures.budgets]
    head = ["four connections send", "p50 quiet", "p50", "times", "max quiet", "max", "sent", "times closed"]
    return f"{table(head, rows)}\n\n{table(['budget', 'bound', 'measured', ''], kept)}"


@benchmark(__doc__)
@click.option("--quick", is_flag=True, help="One round of one second.")
@click.option("--attack", "attacks", type=click.Choice(sorted(ATTACKS)), multiple=True, help="Only this; repeatable.")
@click.option("--rounds", type=click.IntRange(1), help="Of each attack, each after a quiet one. [default: 3]")
@click.option("--seconds", type=click.FloatRange(0.1), help="Of each round under attack. [default: 3]")
@click.option("--requests", type=click.IntRange(64), default=8192, show_default=True, help="Between two looks.")
def main(
    quick: bool,
    attacks: tuple[str, ...],
    rounds: int | None,
    seconds: float | None,
    requests: int,
    json_file: Path | None,
    check: bool,
) -> None:
    """Runs the benchmark."""
    machine = Machine.this()
    with or_exit():
        found = run(attacks or list(ATTACKS), rounds or (1 if quick else 3), requests, seconds or (1 if quick else 3))
    figures = Figures(machine, found, budgets(found))
    show(as_text(figures), figures, json_file, check=check)


if __name__ == "__main__":
    main()
