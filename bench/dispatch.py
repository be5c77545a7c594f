"""The dispatch benchmark: requests to agents and their decisions back, beside a plain asyncio-streams pool.

    python -m bench.dispatch                     about three minutes
    python -m bench.dispatch --quick             some seconds, for a first look
    python -m bench.dispatch --check             exit code 3 when a budget is missed
    python -m bench.dispatch --json figures.json every round, with the machine it ran on

One agent with 4 connections answers every request with "allow"; 1, 16 or 64 requests are in flight, each answer
followed by the next request. Three routes, each with a load generator of its own for its agent: the pool in a shard's
process, driven there (event, agent, decision); the product with one shard, asked by a proxy in another process through
PoolClient; and a plain pool on streams, on asyncio and on uvloop, which does the same as the first. "With cancels" are
agents that declare cancellation, as those of the Go SDK do: the pool tells them after each request to forget it.

CPU is that of all processes of ours, as the kernel accounts for it, the client's part of it beside; the agents' own
stands apart. Routes take turns, and the turn that goes first changes. One request in 64 must get its own URI back.

Exit codes: 0 measured · 1 not measured, and why (an answer was missing, no allow, or another request's; the agents
counted other frames; a connection was lost; a process was replaced) · 2 usage · 3 a budget was missed, with --check.
"""

import contextlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from bench.command import Machine, benchmark, or_exit, request_options, say, show
from bench.dispatch_measure import DispatchRound, measure_round, warm_up
from bench.dispatch_report import DispatchRatio, DispatchSummary, budgets, ratios, summaries
from bench.dispatch_targets import Route, client_route, pool_route, streams_route
from bench.report import Budget, table

IN_FLIGHT = (1, 16, 64)
#: With one in flight a request takes several times as long, most of it waiting: fewer of them say as much.
ONE_BY_ONE_SHARE = 4


class Figures(msgspec.Struct, frozen=True):
    """All that one run found, as `--json` writes it."""

    machine: Machine
    summaries: list[DispatchSummary]
    ratios: list[DispatchRatio]
    budgets: list[Budget]
    rounds: list[DispatchRound]


def run_rounds(rounds: int, requests: int, each_in_flight: Sequence[int]) -> list[DispatchRound]:
    """All rounds on all routes, each route alive from the first round to the last."""
    found = []
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="shardgate-bench-")))
        routes: list[Route] = [
            stack.enter_context(pool_route(directory, cancels=False)),
            stack.enter_context(pool_route(directory, cancels=True)),
            stack.enter_context(client_route(directory, cancels=False)),
            stack.enter_context(client_route(directory, cancels=True)),
            stack.enter_context(streams_route(directory, "asyncio")),
            stack.enter_context(streams_route(directory, "uvloop")),
        ]
        for route in routes:
            warm_up(route)
        for in_flight in each_in_flight:
            for _ in range(rounds):
                for route in routes:
                    count = requests // ONE_BY_ONE_SHARE if in_flight == 1 else requests
                    found.append(measure_round(route, count, in_flight))
                    _progress(found[-1])
                routes = routes[1:] + routes[:1]
    return found


def as_text(figures: Figures) -> str:
    """The tables, ready for a README."""
    speed = table(
        ["route", "in flight", "requests/s", "CPU each", "client's part", "p50", "p99", "max", "agents"],
        [
            [
                s.route,
                str(s.in_flight),
                f"{s.per_s:,.0f}",
                f"{s.cpu_us:.1f} µs",
                "-" if s.client_cpu_us is None else f"{s.client_cpu_us:.1f} µs",
                f"{s.p50_us:,.0f} µs",
                f"{s.p99_us:,.0f} µs",
                f"{s.max_us / 1e3:.1f} ms",
                f"{s.agent_cpu_us:.1f} µs, {s.agent_busy:.0%} busy",
            ]
            for s in figures.summaries
        ],
    )
    against = table(
        ["pool against", "in flight", "requests/s", "lowest", "highest", "less CPU"],
        [
            [r.other, str(r.in_flight)] + [f"{times:.1f} times" for times in (r.speed, r.slowest, r.fastest, r.cpu)]
            for r in figures.ratios
        ],
    )
    kept = table(
        ["budget", "bound", "measured", ""],
        [[b.what, b.bound, b.measured, "ok" if b.kept else "missed"] for b in figures.budgets],
    )
    return f"{speed}\n\n{against}\n\n{kept}"


def summarise(machine: Machine, done: Sequence[DispatchRound]) -> Figures:
    """Everything that follows from the rounds."""
    figures = summaries(done)
    return Figures(machine, figures, ratios(done), budgets(figures), list(done))


def _progress(done: DispatchRound) -> None:
    say(
        f"{done.route}, {done.in_flight} in flight: {done.per_s:,.0f}/s, {done.cpu_us:.1f} µs CPU each, "
        f"p99 {done.p99_us / 1e3:.1f} ms"
    )


@benchmark(__doc__)
@request_options("route", 400)
def main(
    rounds: int | None,
    requests: int | None,
    in_flight: tuple[int, ...],
    quick: bool,
    json_file: Path | None,
    check: bool,
) -> None:
    """Runs the benchmark."""
    machine = Machine.this()
    with or_exit():
        done = run_rounds(
            rounds or (1 if quick else 5), requests or (4000 if quick else 30_000), in_flight or IN_FLIGHT
        )
    figures = summarise(machine, done)
    show(as_text(figures), figures, json_file, check=check)


if __name__ == "__main__":
    main()
