"""What signals do: the table, and that no moment of a start is without it."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.product import environment

from ipc import signals
from ipc.signals import TABLE, Kind, Role

SIGNALS_MD = Path(__file__).parents[2] / "deploy" / "SIGNALS.md"

DEADLY = {
    *("HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM"),
    *("STKFLT", "XCPU", "XFSZ", "VTALRM", "PROF", "IO", "PWR", "SYS"),
}
"""Signals whose default ends a process (signal(7)), SIGKILL apart."""

ENDS = {signal.SIGTERM, signal.SIGINT}
"""What ends a process that is still starting."""


def without_effect(role: Role) -> list[int]:
    """What a process survives while it is still starting: all but errors, what ends it and what stops it."""
    return [
        number
        for number in signals.numbers()
        if signals.meaning(number, role).kind is not Kind.DEFAULT
        and not (number in ENDS and signals.meaning(number, role).kind is Kind.ACT)
    ]


def test_the_table_for_operators_is_the_one_in_force() -> None:
    rows = [
        tuple(cell.strip() for cell in line.strip("|").split("|"))
        for line in SIGNALS_MD.read_text().splitlines()
        if line.startswith("| SIG")
    ]
    assert rows == [(name, *(meaning.text for meaning in meanings)) for name, meanings in TABLE.items()]


@pytest.mark.parametrize("role", Role)
def test_no_signal_is_left_at_a_deadly_default_but_the_errors_of_a_program(role: Role) -> None:
    left = {
        signals.name_of(number).removeprefix("SIG")
        for number in signals.numbers()
        if signals.meaning(number, role).kind is Kind.DEFAULT
    }
    assert left & DEADLY == {"ABRT", "BUS", "FPE", "ILL", "SEGV", "SYS", "TRAP"}


def test_every_signal_has_a_row_of_its_own() -> None:
    named = {getattr(signal, name, None) for name in TABLE}
    real_time = set(range(signal.SIGRTMIN, signal.SIGRTMAX + 1))
    # The number of SIGSTKFLT has a name since Python 3.11.
    assert {number for number in signals.numbers() if number not in named | real_time} == set()


SIGNALS_AT_IMPORT = """
import os, signal, sys
for number in {numbers}:
    os.kill(os.getpid(), number)
    for _ in range(10):
        pass  # The handler runs between two instructions.
os.write(1, b"survived")
os._exit(7)
"""


@pytest.mark.parametrize(
    ("role", "command", "first"),
    [(Role.SUPERVISOR, ["shardgate", "run"], "click"), (Role.SHARD, ["shards"], "msgspec")],
    ids=["supervisor", "shard"],
)
def test_a_process_survives_signals_while_it_still_imports_what_it_needs(
    tmp_path: Path, role: Role, command: list[str], first: str
) -> None:
    (tmp_path / f"{first}.py").write_text(SIGNALS_AT_IMPORT.format(numbers=without_effect(role)))
    env = environment()
    env["PYTHONPATH"] = f"{tmp_path}:{env['PYTHONPATH']}"
    done = subprocess.run(
        [sys.executable, "-P", "-m", *command], env=env, capture_output=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (7, b"survived"), done.stderr


LEFT_BY_A_PARENT = """
import os, signal, sys
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGUSR1):
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
os.execv(sys.executable, [sys.executable, "-P", "-c", sys.argv[1]])
"""

DECIDES = """
import os, signal
from ipc import signals
signals.decide(signals.Role.SUPERVISOR)
blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
print(sorted(blocked), signal.getsignal(signal.SIGCHLD) is signals._handle, flush=True)
os.kill(os.getpid(), signal.SIGTERM)
print("not ended")
"""


def test_what_a_parent_has_ignored_or_blocked_counts_for_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c", LEFT_BY_A_PARENT, DECIDES],
        env=environment(), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "[] True\n"), done.stderr


def test_signals_are_held_back_from_a_process_until_it_has_decided() -> None:
    with signals.held_back():
        child = subprocess.Popen(
            [sys.executable, "-P", "-c", "from ipc import signals; signals.decide(signals.Role.SHARD); input()"],
            stdin=subprocess.PIPE, env=environment(),
        )  # fmt: skip
    for number in without_effect(Role.SHARD):
        child.send_signal(number)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
    child.communicate(b"\n", timeout=120)
    assert child.returncode == 0
