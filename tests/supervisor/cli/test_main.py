"""The entry point, usage, and what happens to errors and broken output."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.product import environment

from ipc.version import __version__

Cli = Callable[..., "subprocess.CompletedProcess[str]"]

COMMAND = [sys.executable, "-P", "-m", "shardgate"]


def test_version_is_the_packages(cli_process: Cli) -> None:
    done = cli_process("--version")

    assert (done.returncode, done.stdout, done.stderr) == (0, f"shardgate {__version__}\n", "")


def test_help_lists_what_there_is_and_every_command_explains_itself(cli: Cli) -> None:
    done = cli("-h")

    assert done.returncode == 0
    listed = [line.split()[0] for line in done.stdout.partition("Commands:\n")[2].partition("\n\n")[0].splitlines()]
    assert listed == [
        *("run", "check", "token", "status", "agents", "connections", "send", "agent"),
        *("drain", "restart", "scale", "rebalance", "reload", "stop"),
    ]
    for name in listed:
        assert cli(name, "-h").stdout.startswith(f"Usage: shardgate {name}")


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["status", "--nonsense"],
        ["status", "extra"],
        ["status", "--timeout", "0"],
        ["status", "--timeout", "soon"],
        ["status", "--watch=-1"],
        ["check"],
        ["run", "--shards", "many"],
        ["run", "--log-level", "loud"],
        ["connections", "--shard", "-1"],
        [],
    ],
)
def test_wrong_usage_exits_2_with_a_hint_and_starts_nothing(arguments: list[str], cli: Cli) -> None:
    done = cli(*arguments)

    assert (done.returncode, done.stdout) == (2, "")
    assert "Usage: shardgate" in done.stderr


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "not its own"),
        ("PROJECT = 'another'", "not its own"),
        ("import no_such_module", "ModuleNotFoundError"),
    ],
)
def test_shardgate_refuses_to_start_when_supervisor_is_anothers_package(
    content: str, complaint: str, tmp_path: Path
) -> None:
    import shardgate

    package = tmp_path / "other" / "supervisor"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(content)
    (tmp_path / "other" / "shardgate.py").write_text(Path(shardgate.__file__).read_text())
    env = environment() | {"PYTHONPATH": str(tmp_path / "other")}

    done = subprocess.run([*COMMAND, "--version"], capture_output=True, text=True, env=env, check=False)

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("shardgate cannot start: ")
    assert done.stderr.count("\n") == 1
    assert complaint in done.stderr
    assert "environment of its own" in done.stderr


def test_shardgate_says_what_is_missing_when_a_dependency_is(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("raise ImportError('No module named click')")
    path = f"{tmp_path}:{environment()['PYTHONPATH']}"

    done = subprocess.run(
        [*COMMAND, "--version"], capture_output=True, text=True, env=environment() | {"PYTHONPATH": path}, check=False
    )

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("shardgate cannot start: No module named click; ")


def test_unexpected_errors_are_one_line_and_a_traceback_only_when_asked_for(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        plain, debug = (
            subprocess.run(
                [*COMMAND, "token", "new"], stdout=full, stderr=subprocess.PIPE, text=True, env=environment() | extra,
                check=False,
            )
            for extra in ({}, {"SHARDGATE_DEBUG": "1"})
        )  # fmt: skip

    assert plain.returncode == debug.returncode == 1
    assert plain.stderr.startswith("shardgate: unexpected OSError: ")
    assert plain.stderr.count("\n") == 1
    assert "Traceback" in debug.stderr


def test_a_reader_that_leaves_is_no_news() -> None:
    with subprocess.Popen(
        [*COMMAND, "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()

        assert process.stderr.read() == ""
        assert process.wait(10) == 1


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-"])
def test_commands_work_when_started_with_a_closed_stream(closed: str, rundir: Path) -> None:
    script = f'exec "$@" {closed}'
    done: Any = subprocess.run(
        ["/bin/sh", "-c", script, "sh", *COMMAND, "status", "--json", "--runtime-dir", str(rundir)],
        capture_output=True, text=True, env=environment(), check=False,
    )  # fmt: skip

    assert done.returncode == 4
    assert "Traceback" not in done.stderr
