"""The command line as a process of its own, and processes that it can ask."""

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.product import environment, short_folder
from support.waiting import PATIENCE

from ipc.status import ShardReport
from supervisor.cli.main import main

STAND_IN = Path(__file__).with_name("stand_in.py")

Cli = Callable[..., subprocess.CompletedProcess[str]]
StandIn = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def rundir() -> Iterator[Path]:
    """A runtime directory with nothing in it."""
    with short_folder() as folder:
        yield folder


@pytest.fixture
def cli_process(tmp_path: Path) -> Cli:
    """Run ``shardgate ARGUMENTS`` as a process of its own and return it finished, with its output."""

    def run(*arguments: str | Path, cwd: Path = tmp_path) -> Any:
        return subprocess.run(
            [sys.executable, "-P", "-m", "shardgate", *map(str, arguments)],
            stdin=subprocess.DEVNULL, env=environment(), cwd=cwd, capture_output=True, text=True, timeout=120,
            check=False,
        )  # fmt: skip

    return run


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    """Run ``shardgate ARGUMENTS`` in this process, which saves the start of an interpreter; else as `cli_process`."""

    def run(*arguments: str | Path, stdin: str = "", env: dict[str, str] | None = None) -> Any:
        capfd.readouterr()
        with monkeypatch.context() as patch:
            for name in [name for name in os.environ if name.startswith("SHARDGATE_")]:
                patch.delenv(name)
            for name, value in (env or {}).items():
                patch.setenv(name, value)
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode("utf-8", "surrogateescape"))))
            code = main(list(map(str, arguments)))
        return subprocess.CompletedProcess(arguments, code, *capfd.readouterr())

    return run


@pytest.fixture
def on_terminal(tmp_path: Path) -> Callable[..., tuple[str, int]]:
    """Run ``shardgate ARGUMENTS`` in a terminal of so many columns and rows; return what it shows, and the exit code.

    *until* is a text after which it gets a Ctrl-C.
    """

    def run(
        *arguments: str | Path,
        columns: int = 200,
        rows: int = 40,
        term: str = "xterm",
        until: str | None = None,
        typed: str = "",
    ) -> tuple[str, int]:
        ours, theirs = pty.openpty()
        try:
            # rich believes COLUMNS and LINES more than the terminal.
            env = environment() | {"TERM": term, "COLUMNS": str(columns), "LINES": str(rows)}
            termios.tcsetwinsize(theirs, (rows, columns))
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "shardgate", *map(str, arguments)],
                stdin=theirs, stdout=theirs, stderr=theirs, env=env, cwd=tmp_path, start_new_session=True,
            )  # fmt: skip
        finally:
            os.close(theirs)
        shown = b""
        deadline = time.monotonic() + PATIENCE
        try:
            while time.monotonic() < deadline and select.select([ours], [], [], deadline - time.monotonic())[0]:
                try:
                    got = os.read(ours, 65536)
                except OSError:  # EIO: the other end is closed
                    break
                if not got:
                    break
                shown += got
                if typed and b": " in shown:
                    os.write(ours, typed.encode())
                    typed = ""
                if until is not None and until.encode() in shown:
                    process.send_signal(signal.SIGINT)
                    until = None
            return shown.decode(), process.wait(PATIENCE)
        finally:
            process.kill()
            process.wait()
            os.close(ours)

    return run


@pytest.fixture
def stand_in(rundir: Path) -> Iterator[StandIn]:
    """Start a process that answers queries for a role: ``stand_in(role, {method: result})``."""
    started: list[subprocess.Popen[str]] = []

    def start(role: str | int, results: dict[str, Any]) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, str(STAND_IN), str(rundir), str(role)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(), text=True,
        )  # fmt: skip
        started.append(process)
        assert process.stdin is not None
        assert process.stdout is not None
        with process.stdin as stdin:
            json.dump(results, stdin)
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


SUPERVISOR: dict[str, Any] = {
    "pid": "PID", "state": "running", "uptime_s": 3725.0, "version": "9.9.9",
    "listeners": [{"kind": "uds", "address": "/run/a.sock"}, {"kind": "tcp", "address": "[::1]:9090"}],
    "accepted_total": 1234, "rejected_total": {"auth_failed": 7, "timeout": 0, "connection_limit": 2},
    "handshakes": 0, "held_descriptors": 0, "config_file": "/etc/shardgate.kdl",
    "config_loaded_at": "2026-11-22T08:53:01Z", "config_error": None, "max_connections_per_agent": 4,
}  # fmt: skip


@pytest.fixture
def supervisor_answers() -> Callable[..., dict[str, Any]]:
    """The results of a supervisor's ``status``: its own fields changed as asked, and shard rows."""

    def answers(*shards: dict[str, Any], **changes: Any) -> dict[str, Any]:
        return {"status": {"supervisor": SUPERVISOR | changes, "shards": list(shards)}}

    return answers


@pytest.fixture
def shard_answer() -> Callable[..., dict[str, Any]]:
    """The result of a shard's ``status``, with so many connections."""

    def answer(number: int, connections: int = 3) -> dict[str, Any]:
        counted = {"connections": connections, "agents": 2, "in_flight": 1, "cpu_percent": 12.5, "uptime_s": 60.0}
        fields = msgspec.structs.fields(ShardReport)
        empty: dict[Any, Any] = {int: 0, float: 0, list[str]: []}
        report: list[Any] = [counted.get(field.name, empty.get(field.type, {})) for field in fields]
        return {"shard": number, "pid": "PID", "epoch": "epoch", "report": report}

    return answer
