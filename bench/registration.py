"""The registration benchmark: shardgate beside a plain asyncio listener, in one run on one machine.

    python -m bench.registration                     about a minute
    python -m bench.registration --quick             some seconds, for a first look
    python -m bench.registration --check             exit code 3 when a budget is missed
    python -m bench.registration --json figures.json every round, with the machine it ran on
    python -m bench.registration --logs              what log lines cost, for 200,000 registrations each: some minutes

Agents of four connections each register over a Unix socket, 16 or 128 of them in handshake at any moment, and hold
their connections; all are closed and the pool is empty before the next round. In each round the product, the plain
listener on asyncio and the same on uvloop take turns, and the turn that goes first changes. CPU is that of all
processes of the product together, until its pool has been seen full. The load generator is a C program; its own
CPU stands in the table, so that one can see that nobody waited for it.

Memory of an idle connection is measured on a product started afresh, see `bench.measure.measure_memory`.

Exit codes: 0 measured · 1 not measured, and why (the pool did not hold what was registered, an answer was not an
acceptance, a process was replaced, a shard was not used) · 2 usage · 3 a budget was missed, with --check.
"""

import contextlib
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import click
import msgspec

from bench import loadgen, log_cost
from bench.command import Machine, benchmark, or_exit, say, show
from bench.measure import Memory, Round, measure_memory, measure_round, warm_up
from bench.report import Budget, Ratio, Summary, budgets, ratios, summaries, table
from bench.targets import PER_AGENT, Target, shardgate, streams

IN_HANDSHAKE = (16, 128)


class Figures(msgspec.Struct, frozen=True):
    """All that one run found, as `--json` writes it."""

    machine: Machine
    summaries: list[Summary]
    ratios: list[Ratio]
    memory: list[Memory]
    budgets: list[Budget]
    rounds: list[Round]


def run_rounds(rounds: int, registrations: int) -> list[Round]:
    """All rounds of all targets, each target running from the first round to the last."""
    found = []
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="shardgate-bench-")))
        targets: list[Target] = [
            stack.enter_context(shardgate(directory)),
            stack.enter_context(streams(directory, "asyncio")),
            stack.enter_context(streams(directory, "uvloop")),
        ]
        pairs = [(t, stack.enter_context(loadgen.start(t.address, per_id=PER_AGENT))) for t in targets]
        for target, generator in pairs:
            warm_up(target, generator)
        for in_handshake in IN_HANDSHAKE:
            for _ in range(rounds):
                for target, generator in pairs:
                    found.append(measure_round(target, generator, registrations, in_handshake))
                    _progress(found[-1])
                pairs = pairs[1:] + pairs[:1]
    return found


def run_memory(connections: int) -> list[Memory]:
    """The memory of idle connections on each target, started afresh and alone."""
    starts: list[Callable[[Path], AbstractContextManager[Target]]] = [
        shardgate,
        lambda directory: streams(directory, "asyncio"),
        lambda directory: streams(directory, "uvloop"),
    ]
    found = []
    for start in starts:
        with (
            tempfile.TemporaryDirectory(prefix="shardgate-bench-") as directory,
            start(Path(directory)) as target,
            loadgen.start(target.address, per_id=PER_AGENT) as generator,
        ):
            found.append(measure_memory(target, generator, connections))
        say(f"{found[-1].target}: {found[-1].bytes_per_connection:.0f} bytes for an idle connection")
    return found


def as_text(figures: Figures) -> str:
    """The tables, ready for a README."""
    speed = table(
        ["listener", "in handshake", "registrations/s", "CPU each", "p50", "p99", "max", "CPU of closing", "generator"],
        [
            [
                s.target,
                str(s.in_handshake),
                f"{s.per_s:,.0f}",
                f"{s.cpu_us:.0f} µs",
                f"{s.p50_ms:.1f} ms",
                f"{s.p99_ms:.1f} ms",
                f"{s.max_ms:.1f} ms",
                f"{s.close_cpu_us:.0f} µs",
                f"{s.generator_cpu_us:.0f} µs, {s.generator_busy:.0%} busy",
            ]
            for s in figures.summaries
        ],
    )
    against = table(
        ["shardgate against", "in handshake", "registrations/s", "lowest", "highest"],
        [
            [r.other, str(r.in_handshake), f"{r.median:.1f} times", f"{r.lowest:.1f} times", f"{r.highest:.1f} times"]
            for r in figures.ratios
        ],
    )
    idle = table(
        ["listener", "idle connections", "memory each"],
        [[m.target, f"{m.connections:,}", f"{m.bytes_per_connection / 1e3:.2f} KB"] for m in figures.memory],
    )
    kept = table(
        ["budget", "bound", "measured", ""],
        [[b.what, b.bound, b.measured, "ok" if b.kept else "missed"] for b in figures.budgets],
    )
    return f"{speed}\n\n{against}\n\n{idle}\n\n{kept}"


def _progress(done: Round) -> None:
    say(
        f"{done.target}, {done.in_handshake} in handshake: {done.per_s:,.0f}/s, {done.cpu_us:.0f} µs CPU each, "
        f"p99 {done.p99_ms:.1f} ms"
    )


@benchmark(__doc__)
@click.option("--rounds", type=click.IntRange(1), help="Rounds of each target and number in handshake. [default: 5]")
@click.option("--registrations", type=click.IntRange(8), help="Registrations in a round. [default: 6000]")
@click.option("--idle", type=click.IntRange(8), help="Idle connections to measure memory with. [default: 10000]")
@click.option("--quick", is_flag=True, help="Defaults of 1 round, 1000 registrations, 2000 idle connections.")
@click.option("--logs", is_flag=True, help="Measure the cost of log lines instead, with and without.")
def main(
    rounds: int | None,
    registrations: int | None,
    idle: int | None,
    quick: bool,
    json_file: Path | None,
    logs: bool,
    check: bool,
) -> None:
    """Runs the benchmark."""
    machine = Machine.this()
    if logs:
        measure_logs(
            rounds or (1 if quick else 20), registrations or (1000 if quick else 10_000), json_file, check=check
        )
        return
    with or_exit():
        done = run_rounds(rounds or (1 if quick else 5), registrations or (1000 if quick else 6000))
        memory = run_memory(idle or (2000 if quick else 10_000))
    figures = summarise(machine, done, memory)
    show(as_text(figures), figures, json_file, check=check)


def measure_logs(rounds: int, registrations: int, json_file: Path | None, *, check: bool) -> None:
    """Measure what log lines cost, and print it."""
    with or_exit():
        costs = log_cost.log_cost(log_cost.measure(rounds, registrations, IN_HANDSHAKE))
    show(log_cost.as_text(costs), log_cost.LogCosts(costs, log_cost.budgets(costs)), json_file, check=check)


def summarise(machine: Machine, done: Sequence[Round], memory: Sequence[Memory]) -> Figures:
    """Everything that follows from the rounds."""
    figures, against = summaries(done), ratios(done)
    return Figures(machine, figures, against, list(memory), budgets(figures, against, memory), list(done))


if __name__ == "__main__":
    main()
