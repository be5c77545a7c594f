"""Registration beside a busy admin endpoint: how much slower agents register while many ask for metrics.

    python -m bench.admin                      less than a minute
    python -m bench.admin --quick              some seconds, for a first look
    python -m bench.admin --check              exit code 3 when a budget is missed
    python -m bench.admin --path /status.json  another path than /metrics

One product with an admin endpoint. Rounds of registrations, as in `bench.registration`, take turns: a quiet one, and
one during which 30 clients ask the endpoint again as soon as they have their answer. The CPU of a registration is that
of all processes of the product, what the endpoint uses included. The clients have no CPU to themselves, so the rate
shows their work too.

Exit codes: 0 measured · 1 not measured, and why (see `bench.registration`; or the clients got no answers) · 2 usage ·
3 a budget was missed, with --check.
"""

import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import click
import msgspec

from bench import loadgen
from bench.children import Child, ChildError
from bench.command import Machine, benchmark, or_exit, say, show
from bench.measure import NotMeasuredError, Round, measure_round, warm_up
from bench.report import Budget, table
from bench.targets import PER_AGENT, Shardgate, shardgate

CLIENTS = 30
IN_HANDSHAKE = 16
LEAST_ANSWERS = 20
ANSWER_TIMEOUT_S = 30.0
#: What the endpoint may have saved up is used by then; a round is too short to carry it.
SAVED_UP_S = 1.0
#: The part of the quiet rate that is left beside busy clients, and the CPU that is added to a registration.
RATE, CPU = 0.75, 1.3


class Pair(msgspec.Struct, frozen=True):
    """A quiet round and the busy one after it, with the answers that the clients got meanwhile."""

    quiet: Round
    busy: Round
    answers: int


class Figures(msgspec.Struct, frozen=True):
    """All that one run found."""

    machine: Machine
    path: str
    pairs: list[Pair]
    rate: float
    cpu: float
    budgets: list[Budget]


def run_pairs(rounds: int, registrations: int, path: str) -> list[Pair]:
    """All rounds. Raises `NotMeasuredError`."""
    with (
        tempfile.TemporaryDirectory(prefix="shardgate-bench-") as directory,
        shardgate(Path(directory), options=("--admin", "127.0.0.1:0")) as target,
        loadgen.start(target.address, per_id=PER_AGENT) as generator,
        Child.start("admin clients", [sys.executable, "-m", "bench.admin_clients", admin_address(target)]) as clients,
    ):
        warm_up(target, generator)
        return [_pair(target, generator, clients, registrations, path) for _ in range(rounds)]


def admin_address(target: Shardgate) -> str:
    """Where the endpoint of a product is, by its log."""
    found = re.findall(r'"address":"([^"]+)","event":"admin endpoint"', target.log.read_text())
    if not found:
        raise NotMeasuredError("the product has no admin endpoint")
    return str(found[-1])


def summarise(machine: Machine, path: str, pairs: Sequence[Pair]) -> Figures:
    """Everything that follows from the rounds: medians of the ratios of neighbouring rounds."""
    rate = median(pair.busy.per_s / pair.quiet.per_s for pair in pairs)
    cpu = median(pair.busy.cpu_us / pair.quiet.cpu_us for pair in pairs)
    budgets = [
        Budget.at_least(f"rate beside {CLIENTS} busy clients", RATE, rate, "times the quiet one"),
        Budget.at_most(f"CPU beside {CLIENTS} busy clients", CPU, cpu, "times the quiet one"),
    ]
    return Figures(machine, path, list(pairs), rate, cpu, budgets)


def as_text(figures: Figures) -> str:
    """The table, ready for a README."""
    rows = [
        [
            name,
            f"{median(one.per_s for one in rounds):,.0f}",
            f"{median(one.cpu_us for one in rounds):.0f} µs",
            f"{median(one.p99_ms for one in rounds):.1f} ms",
            f"{answers:,}",
        ]
        for name, rounds, answers in (
            ("quiet", [pair.quiet for pair in figures.pairs], 0),
            (f"{CLIENTS} ask for {figures.path}", [pair.busy for pair in figures.pairs], _answers(figures.pairs)),
        )
    ]
    header = ["admin endpoint", "registrations/s", "CPU each", "p99", "answers"]
    return f"{table(header, rows)}\n\nrate {figures.rate:.2f} times, CPU {figures.cpu:.2f} times the quiet one"


def _answers(pairs: Sequence[Pair]) -> int:
    return sum(pair.answers for pair in pairs)


def _pair(target: Shardgate, generator: loadgen.LoadGenerator, clients: Child, registrations: int, path: str) -> Pair:
    quiet = measure_round(target, generator, registrations, IN_HANDSHAKE)
    try:
        clients.ask(f"start {CLIENTS} {path}", ANSWER_TIMEOUT_S)
        time.sleep(SAVED_UP_S)
        busy = measure_round(target, generator, registrations, IN_HANDSHAKE)
        answers = int(clients.ask("stop", ANSWER_TIMEOUT_S))
    except ChildError as silent:
        raise NotMeasuredError(str(silent)) from silent
    if answers < LEAST_ANSWERS:
        raise NotMeasuredError(f"{CLIENTS} clients got only {answers} answers for {path}")
    say(
        f"quiet {quiet.per_s:,.0f}/s, {quiet.cpu_us:.0f} µs; busy {busy.per_s:,.0f}/s, {busy.cpu_us:.0f} µs, "
        f"{answers} answers"
    )
    return Pair(quiet, busy, answers)


@benchmark(__doc__)
@click.option("--rounds", type=click.IntRange(1), help="Rounds of each kind. [default: 5]")
@click.option("--registrations", type=click.IntRange(64), help="Registrations in a round. [default: 6000]")
@click.option("--path", default="/metrics", show_default=True, help="What the clients ask for.")
@click.option("--quick", is_flag=True, help="Defaults of 1 round, 2000 registrations.")
def main(
    rounds: int | None, registrations: int | None, path: str, quick: bool, json_file: Path | None, check: bool
) -> None:
    """Runs the benchmark."""
    machine = Machine.this()
    with or_exit():
        pairs = run_pairs(rounds or (1 if quick else 5), registrations or (2000 if quick else 6000), path)
    figures = summarise(machine, path, pairs)
    show(as_text(figures), figures, json_file, check=check)


if __name__ == "__main__":
    main()
