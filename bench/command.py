"""What the benchmarks' command lines have in common: options, the machine, progress, results and exit codes."""

import contextlib
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Protocol, TypeVar

import click
import msgspec

from bench.accounting import ProcessGoneError
from bench.loadgen import LoadGeneratorError
from bench.measure import NotMeasuredError
from bench.report import Budget
from bench.targets import TargetError

EXIT_NOT_MEASURED, EXIT_BUDGET_MISSED = 1, 3

_Main = TypeVar("_Main", bound=Callable[..., None])


class Machine(msgspec.Struct, frozen=True):
    """Where the figures come from, and how busy it was before."""

    cpus: int
    kernel: str
    python: str
    uvloop: str
    load_before: float

    @classmethod
    def this(cls) -> "Machine":
        """The machine and interpreter that run this; says so when it is too busy for figures."""
        load, _, _ = os.getloadavg()
        machine = cls(os.cpu_count() or 1, platform.release(), platform.python_version(), version("uvloop"), load)
        if load > machine.cpus / 4:
            say(f"the load was {load:.1f} before the start: ratios will hold better than figures")
        return machine


class Measured(Protocol):
    """All that one run found."""

    @property
    def budgets(self) -> Sequence[Budget]:
        """What it has to keep."""


def benchmark(doc: str | None) -> Callable[[_Main], click.Command]:
    """Make a command of a function: *doc* is its help, and ``--json`` and ``--check`` are among its options."""

    def decorate(main: _Main) -> click.Command:
        check = click.option("--check", is_flag=True, help="Exit with 3 when a budget is missed.")
        file = click.Path(dir_okay=False, path_type=Path)
        as_json = click.option("--json", "json_file", type=file, help="Write all figures there.")
        text = "\n\n".join(f"\b\n{part}" for part in (doc or "").split("\n\n"))
        return click.command(help=text)(as_json(check(main)))

    return decorate


def request_options(who: str, most_in_flight: int) -> Callable[[_Main], _Main]:
    """The options of a benchmark of requests; *who* takes turns in a round."""

    def decorate(main: _Main) -> _Main:
        for option in (
            click.option("--quick", is_flag=True, help="Defaults of 1 round, 4000 requests."),
            click.option(
                "--in-flight", type=click.IntRange(1, most_in_flight), multiple=True, help="Only so many; repeatable."
            ),
            click.option("--requests", type=click.IntRange(256), help="Requests in a round. [default: 30000]"),
            click.option(
                "--rounds", type=click.IntRange(1), help=f"Rounds of each {who} and number in flight. [default: 5]"
            ),
        ):
            main = option(main)
        return main

    return decorate


def say(line: str) -> None:
    """Tell the progress, on stderr, so that stdout can be pasted."""
    click.echo(line, err=True)


@contextlib.contextmanager
def or_exit() -> Iterator[None]:
    """Say why a figure could not be measured, and exit with 1."""
    try:
        yield
    except (NotMeasuredError, ProcessGoneError, TargetError, LoadGeneratorError, OSError) as why:
        say(f"not measured: {why}")
        sys.exit(EXIT_NOT_MEASURED)


def show(text: str, figures: Measured, json_file: Path | None = None, *, check: bool) -> None:
    """Print the tables, write all figures, and exit with 3 when a budget was missed that is to be checked."""
    click.echo(text)
    if json_file:
        json_file.write_bytes(msgspec.json.format(msgspec.json.encode(figures)))
    if check and not all(budget.kept for budget in figures.budgets):
        sys.exit(EXIT_BUDGET_MISSED)
