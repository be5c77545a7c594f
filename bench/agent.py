"""The agent benchmark: dialout's agent loop, beside an agent by hand on asyncio streams.

    python -m bench.agent                     about a minute
    python -m bench.agent --quick             some seconds, for a first look
    python -m bench.agent --check             exit code 3 when a budget is missed
    python -m bench.agent --json figures.json every round, with the machine it ran on

Every agent has one connection and decides about the same requests, of 0.5 KB each: one in 64 is blocked, the others are
allowed. A proxy that does nothing else keeps 1, 64 or 1,000 of them unanswered and checks each answer. Agents take
turns, and the one that goes first changes. CPU is the agent's process, as the kernel accounts for it.

Exit codes: 0 measured · 1 not measured, and why (an answer was missing, or another one; the agent counted other
decisions; its connection was lost) · 2 usage · 3 a budget was missed, with --check.
"""

import contextlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import msgspec

from bench.agent_measure import AgentRound, agent_target, measure_round
from bench.command import Machine, benchmark, or_exit, request_options, say, show
from bench.report import Budget, table

IN_FLIGHT = (1, 64, 1000)
#: With one in flight a request takes several times as long, most of it waiting: fewer of them say as much.
ONE_BY_ONE_SHARE = 4
WARM_UP = 2000
#: The one that is compared, and what it is compared with.
OURS, PLAIN = "dialout, plain hook, asyncio", "streams, asyncio"
#: Of the CPU that the plain one takes for a request, with 64 in flight. Not requests/s: a proxy in Python is as busy as
#: the agents, and what waits for whom depends on how answers are joined.
MOST_CPU_AGAINST_PLAIN = 0.85


class AgentSummary(msgspec.Struct, frozen=True):
    """Medians over the rounds of one agent and number in flight; `against_plain` is that of the rounds' CPU ratios."""

    agent: str
    in_flight: int
    per_s: float
    cpu_us: float
    busy: float
    p50_us: float
    p99_us: float
    against_plain: float


class Figures(msgspec.Struct, frozen=True):
    """All that one run found, as `--json` writes it."""

    machine: Machine
    summaries: list[AgentSummary]
    budgets: list[Budget]
    rounds: list[AgentRound]


def run_rounds(rounds: int, requests: int, each_in_flight: Sequence[int]) -> list[AgentRound]:
    """All rounds of all agents, each agent alive from the first round to the last."""
    found = []
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="shardgate-bench-")))
        targets = [
            stack.enter_context(agent_target(directory, "plain", "asyncio")),
            stack.enter_context(agent_target(directory, "plain", "uvloop")),
            stack.enter_context(agent_target(directory, "async", "asyncio")),
            stack.enter_context(agent_target(directory, "async", "uvloop")),
            stack.enter_context(agent_target(directory, "streams", "asyncio")),
            stack.enter_context(agent_target(directory, "streams", "uvloop")),
        ]
        for target in targets:
            measure_round(target, WARM_UP, 16)
        for in_flight in each_in_flight:
            for _ in range(rounds):
                for target in targets:
                    count = requests // ONE_BY_ONE_SHARE if in_flight == 1 else requests
                    found.append(measure_round(target, count, in_flight))
                    done = found[-1]
                    say(f"{done.agent}, {in_flight} in flight: {done.per_s:,.0f}/s, {done.cpu_us:.1f} µs CPU each")
                targets = targets[1:] + targets[:1]
    return found


def summaries(rounds: Sequence[AgentRound]) -> list[AgentSummary]:
    """One summary for each number in flight and agent, in the order of their first rounds."""

    def of(agent: str, in_flight: int, figure: Callable[[AgentRound], float]) -> list[float]:
        return [figure(r) for r in rounds if (r.agent, r.in_flight) == (agent, in_flight)]

    found = []
    for in_flight in dict.fromkeys(r.in_flight for r in rounds):
        plain = of(PLAIN, in_flight, lambda r: r.cpu_us)
        for agent in sorted({r.agent for r in rounds}):
            cpu = of(agent, in_flight, lambda r: r.cpu_us)
            found.append(
                AgentSummary(
                    agent=agent,
                    in_flight=in_flight,
                    per_s=median(of(agent, in_flight, lambda r: r.per_s)),
                    cpu_us=median(cpu),
                    busy=median(of(agent, in_flight, lambda r: r.busy)),
                    p50_us=median(of(agent, in_flight, lambda r: r.p50_us)),
                    p99_us=median(of(agent, in_flight, lambda r: r.p99_us)),
                    against_plain=median(ours / theirs for ours, theirs in zip(cpu, plain, strict=True)),
                )
            )
    return found


def budgets(figures: Sequence[AgentSummary]) -> list[Budget]:
    """What the agent's loop has to keep."""
    return [
        Budget.at_most("CPU against streams by hand, 64 in flight", MOST_CPU_AGAINST_PLAIN, s.against_plain, "times")
        for s in figures
        if (s.agent, s.in_flight) == (OURS, 64)
    ]


def as_text(figures: Figures) -> str:
    """The tables, ready for a README."""
    speed = table(
        ["agent", "in flight", "requests/s", "CPU each", "against streams", "p50", "p99", "busy"],
        [
            [
                s.agent,
                f"{s.in_flight:,}",
                f"{s.per_s:,.0f}",
                f"{s.cpu_us:.1f} µs",
                f"{s.against_plain:.2f} times",
                f"{s.p50_us:,.0f} µs",
                f"{s.p99_us:,.0f} µs",
                f"{s.busy:.0%}",
            ]
            for s in figures.summaries
        ],
    )
    kept = table(
        ["budget", "bound", "measured", ""],
        [[b.what, b.bound, b.measured, "ok" if b.kept else "missed"] for b in figures.budgets],
    )
    return f"{speed}\n\n{kept}"


@benchmark(__doc__)
@request_options("agent", 10_000)
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
    found = summaries(done)
    figures = Figures(machine, found, budgets(found), done)
    show(as_text(figures), figures, json_file, check=check)


if __name__ == "__main__":
    main()
