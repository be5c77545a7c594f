"""``shardgate stop`` and ``shardgate reload``, against real processes."""

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
StandIn = Callable[..., "subprocess.Popen[str]"]
Answers = Callable[..., dict[str, Any]]


def test_stop_returns_when_the_supervisor_is_gone(cli_process: Cli, rundir: Path, stand_in: StandIn) -> None:
    supervisor = stand_in("supervisor", {"stop": None})

    done = cli_process("stop", "--runtime-dir", rundir)

    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.splitlines()[-1] == "stopped"
    assert "SIGTERM" not in done.stderr
    assert supervisor.poll() == 0


def test_stop_ends_shards_that_their_supervisor_left(cli_process: Cli, rundir: Path, stand_in: StandIn) -> None:
    shards = [stand_in(0, {}), stand_in(1, {})]

    done = cli_process("stop", "--runtime-dir", rundir)

    assert done.returncode == 0
    assert "ending 2 shards" in done.stderr
    assert [shard.poll() for shard in shards] == [0, 0]


def test_stop_exits_6_when_the_supervisor_stays(cli_process: Cli, rundir: Path, stand_in: StandIn) -> None:
    supervisor = stand_in("supervisor", {"stop": None})
    supervisor.send_signal(signal.SIGSTOP)

    done = cli_process("stop", "--timeout", "300ms", "--runtime-dir", rundir)

    assert done.returncode == 6
    assert f"pid {supervisor.pid}" in done.stderr.splitlines()[-1]
    # It had the request and the signal: it ends as soon as it runs again.
    supervisor.send_signal(signal.SIGCONT)
    assert supervisor.wait(10) == 0


def test_stop_sends_a_signal_when_nobody_answers(cli_process: Cli, rundir: Path, stand_in: StandIn) -> None:
    supervisor = stand_in("supervisor", {})
    (rundir / "supervisor.query").unlink()

    done = cli_process("stop", "--runtime-dir", rundir)

    assert done.returncode == 0
    assert "SIGTERM" in done.stderr
    assert supervisor.poll() == 0


def test_stop_passes_a_refusal_on(cli_process: Cli, rundir: Path, stand_in: StandIn) -> None:
    supervisor = stand_in("supervisor", {"stop": {"refused": "an upgrade is in progress"}})

    done = cli_process("stop", "--runtime-dir", rundir)

    assert (done.returncode, supervisor.poll()) == (5, None)
    assert done.stderr.splitlines()[-1] == "shardgate: an upgrade is in progress"


def test_reload_names_what_changed(cli: Cli, rundir: Path, stand_in: StandIn) -> None:
    changes = [
        {"node": "allowed-agents", "old": [], "new": ['"waf-*"'], "needs_restart": False},
        {"node": "path", "old": ['"/a"'], "new": ['"/b"'], "needs_restart": True},
    ]
    answer = {"changed": ["allowed-agents"], "restart_needed": ["path"], "changes": changes}
    stand_in("supervisor", {"reload": answer})

    text = cli("reload", "--runtime-dir", rundir)
    assert text.returncode == 0
    assert text.stdout.splitlines() == [
        "reloaded; changed:",
        '  allowed-agents: not set -> "waf-*"',
        "needs a restart:",
        '  path: "/a" -> "/b"',
    ]
    as_json = cli("reload", "--json", "--runtime-dir", rundir)
    assert json.loads(as_json.stdout) == {"schema": 1, "dry_run": False} | answer


def test_reload_exits_5_and_prints_the_problems_when_the_file_is_bad(cli: Cli, rundir: Path, stand_in: StandIn) -> None:
    stand_in("supervisor", {"reload": {"refused": "a.kdl:1: first\na.kdl:2: \x1b[1msecond"}})

    done = cli("reload", "--runtime-dir", rundir)

    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr == "shardgate: refused:\na.kdl:1: first\na.kdl:2: \\x1b[1msecond\n"


def test_reload_says_who_still_runs_when_the_supervisor_is_down(cli: Cli, rundir: Path, stand_in: StandIn) -> None:
    stand_in(0, {})

    done = cli("reload", "--runtime-dir", rundir)

    assert done.returncode == 4
    assert "no supervisor is running" in done.stderr
    assert "1 of its shards still" in done.stderr


def test_reload_exits_6_when_the_supervisor_is_stopped(cli: Cli, rundir: Path, stand_in: StandIn) -> None:
    stand_in("supervisor", {"reload": None}).send_signal(signal.SIGSTOP)

    assert cli("reload", "--timeout", "200ms", "--runtime-dir", rundir).returncode == 6


def test_reload_says_so_when_the_answer_is_of_another_version(cli: Cli, rundir: Path, stand_in: StandIn) -> None:
    stand_in("supervisor", {"reload": {"changed": 7}})

    done = cli("reload", "--runtime-dir", rundir)

    assert done.returncode == 1
    assert "two versions" in done.stderr
