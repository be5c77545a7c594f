"""The entry point, usage, and what happens to errors and broken output."""

import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from support.product import environment

from ipc.version import __version__
from supervisor.cli import tokens
from supervisor.cli.main import _COMMANDS, shardgate
from supervisor.cli.man import commands

Cli = Callable[..., "subprocess.CompletedProcess[str]"]

COMMAND = [sys.executable, "-P", "-m", "shardgate"]


def every_command() -> Iterator[tuple[tuple[str, ...], click.Context]]:
    """All commands, each with its names."""
    root = click.Context(shardgate, info_name="shardgate", **shardgate.context_settings)
    return commands(shardgate, root, ("shardgate",))


def test_version_is_the_packages(cli_process: Cli) -> None:
    done = cli_process("--version")

    assert (done.returncode, done.stdout, done.stderr) == (0, f"shardgate {__version__}\n", "")


def test_help_lists_what_there_is_and_every_command_explains_itself(cli: Cli) -> None:
    done = cli("-h")

    assert done.returncode == 0
    headings = ("Run it", "See what it does", "Change it while it runs", "Use it")
    listed = []
    for heading in headings:
        section = done.stdout.partition(f"{heading}:\n")[2].partition("\n\n")[0]
        listed += [line.split()[0] for line in section.splitlines()]
    assert listed[:6] == ["run", "check", "config", "token", "doctor", "status"]
    assert {"top", "why", "events", "kick", "log-level", "drain", "reload", "stop", "completion", "man"} < {*listed}
    for name in listed:
        assert cli(name, "-h").stdout.startswith(f"Usage: shardgate {name}")


def test_help_of_every_command_has_examples_that_the_command_line_takes(cli: Cli) -> None:
    seen = 0
    for names, context in every_command():
        if isinstance(context.command, click.Group) and len(names) == 1:
            continue
        text = cli(*names[1:], "-h").stdout
        assert "Examples:" in text, names
        for line in text.partition("Examples:\n")[2].splitlines():
            if not line.strip().startswith("shardgate "):
                continue
            seen += 1
            # A shell takes redirections out, and click the rest: what it refuses, it says.
            words = shlex.split(line.partition(" > ")[0].partition(" < ")[0])[1:]
            with click.Context(shardgate, **shardgate.context_settings) as top:
                _name, command, rest = shardgate.resolve_command(top, words)
                assert command is not None
                while isinstance(command, click.Group) and rest:
                    _name, command, rest = command.resolve_command(top, rest)
                    assert command is not None
                command.make_context("it", rest, parent=top)
    assert seen > 30


def test_man_pages_say_the_same_and_are_sound(cli: Cli, tmp_path: Path) -> None:
    done = cli("man", tmp_path / "man")

    pages = {path.name: path.read_text() for path in (tmp_path / "man").iterdir()}
    assert (done.returncode, done.stderr) == (0, "")
    assert set(pages) == {f"{'-'.join(names)}.1" for names, _ in every_command()}
    assert ".SH EXAMPLES" in pages["shardgate-why.1"]
    if shutil.which("groff") is None:
        pytest.skip("groff is not installed here")
    for name in pages:
        made = subprocess.run(
            ["groff", "-man", "-Tutf8", "-ww", "-z", tmp_path / "man" / name],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (made.returncode, made.stderr) == (0, ""), name


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_that_its_shell_understands(shell: str, cli: Cli) -> None:
    done = cli("completion", shell)

    assert (done.returncode, done.stderr) == (0, "")
    assert "_SHARDGATE_COMPLETE" in done.stdout
    if shutil.which(shell) is not None:
        checked = subprocess.run([shell, "-n"], input=done.stdout, capture_output=True, text=True, check=False)
        assert (checked.returncode, checked.stderr) == (0, "")


def test_completion_completes_commands_and_options() -> None:
    env = environment() | {"_SHARDGATE_COMPLETE": "bash_complete", "COMP_CWORD": "1", "COMP_WORDS": "shardgate conn"}
    done = subprocess.run(COMMAND, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "plain,connections\n")

    env |= {"COMP_CWORD": "2", "COMP_WORDS": "shardgate kick --n"}
    done = subprocess.run(COMMAND, env=env, capture_output=True, text=True, check=False)
    assert done.stdout == "plain,--now\n"


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


@pytest.mark.parametrize("name", ["dialout", "ipc", "shards"])
def test_shardgate_refuses_to_start_when_one_of_its_names_is_anothers_package(name: str, tmp_path: Path) -> None:
    package = tmp_path / name
    package.mkdir()
    (package / "__init__.py").write_text("print('a strange package runs')")
    env = environment()
    env["PYTHONPATH"] = f"{tmp_path}:{env['PYTHONPATH']}"

    done = subprocess.run([*COMMAND, "run"], capture_output=True, text=True, env=env, check=False)

    assert done.returncode == 1
    assert done.stderr.startswith(f"shardgate cannot start: the Python package '{name}' in {package}")
    assert done.stderr.count("\n") == 1
    assert "environment of its own" in done.stderr


def test_shardgate_says_what_is_missing_when_a_dependency_is(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("raise ImportError('No module named click')")
    path = f"{tmp_path}:{environment()['PYTHONPATH']}"

    done = subprocess.run(
        [*COMMAND, "--version"], capture_output=True, text=True, env=environment() | {"PYTHONPATH": path}, check=False
    )

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("shardgate cannot start: No module named click; ")


def test_unexpected_errors_are_one_line_and_a_traceback_only_when_asked_for(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> str:
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr(tokens, "new_token", fails)
    plain, debug = cli("token", "new"), cli("token", "new", env={"SHARDGATE_DEBUG": "1"})

    assert plain.returncode == debug.returncode == 1
    assert plain.stderr == "shardgate: unexpected ZeroDivisionError: two lines; SHARDGATE_DEBUG=1 shows where\n"
    assert "Traceback" in debug.stderr


@pytest.mark.parametrize(
    ("typed", "meant"), [("stauts", "status"), ("log_level", "log-level"), ("connection", "connections")]
)
def test_a_command_that_does_not_exist_has_one_that_was_meant(cli: Cli, typed: str, meant: str) -> None:
    done = cli(typed)

    assert done.returncode == 2
    assert f"No such command '{typed}'. Did you mean '{meant}'?" in done.stderr
    assert "Did you mean" not in cli("xyzzy").stderr


def test_no_command_is_listed_with_half_of_its_text(cli: Cli) -> None:
    for names, _ in every_command():
        text = cli(*names[1:], "--help").stdout
        cut = [line for line in text.splitlines() if line.endswith("...") and not line.startswith("Usage:")]
        assert cut == [], names


def test_output_that_cannot_be_written_is_said_in_a_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COMMAND, "token", "new"], stdout=full, stderr=subprocess.PIPE, env=environment(), text=True, timeout=120,
            check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "shardgate: the output cannot be written: No space left on device\n"


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


def test_help_says_of_each_command_what_it_says_of_itself() -> None:
    context = click.Context(shardgate)
    found = {name: shardgate.get_command(context, name) for name in _COMMANDS}
    told = {name: command.short_help for name, command in found.items() if command is not None}
    assert told == {name: text for name, (_, text) in _COMMANDS.items()}
