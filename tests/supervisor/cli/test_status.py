"""``shardgate status``, asked of real processes."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.product import environment

from ipc.rundir import ProcessRecord, RuntimeDir, record_of_this_process

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
StandIn = Callable[..., "subprocess.Popen[str]"]
Answers = Callable[..., dict[str, Any]]
Terminal = Callable[..., tuple[str, int]]


def row(number: int, pid: int | None, state: str = "running", **numbers: Any) -> dict[str, Any]:
    return {"id": number, "pid": pid, "state": state} | numbers


def test_status_says_that_nothing_runs_when_the_directory_is_empty(cli: Cli, rundir: Path) -> None:
    done = cli("status", "--runtime-dir", rundir)

    expected = f"no shardgate is running in {rundir}; start one with 'shardgate run'\n"
    assert (done.returncode, done.stdout, done.stderr) == (4, "", f"shardgate: {expected}")


def test_status_json_can_be_parsed_when_the_directory_is_missing(cli: Cli, tmp_path: Path) -> None:
    done = cli("status", "--json", env={"SHARDGATE_RUNTIME_DIR": str(tmp_path / "none")})

    assert done.returncode == 4
    assert json.loads(done.stdout) == {"schema": 1, "supervisor": None, "shards": []}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
def test_status_says_permission_denied_when_the_directory_is_anothers(rundir: Path) -> None:
    # The other user may not be allowed to read this checkout, so the imports come before the change of the user.
    code = "import os, sys; from supervisor.cli.main import main; import supervisor.cli.status; os.setuid(65534);"
    code += f"sys.exit(main(['status', '--runtime-dir', {str(rundir)!r}]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=False)

    assert done.returncode == 4
    assert done.stderr == f"shardgate: {rundir}: permission denied; ask as the user that runs shardgate\n"


def test_status_shows_fresh_numbers_and_exits_0_when_all_run(
    cli: Cli, rundir: Path, stand_in: StandIn, supervisor_answers: Answers, shard_answer: Answers
) -> None:
    first, second = stand_in(0, {"status": shard_answer(0, 3)}), stand_in(1, {"status": shard_answer(1, 4)})
    rows = [row(0, first.pid, restarts=2, stale_s=0.7), row(1, second.pid, "draining", last_event="drain asked for")]
    supervisor = stand_in("supervisor", supervisor_answers(*rows))

    as_json = cli("status", "--json", "--runtime-dir", rundir)
    told = json.loads(as_json.stdout)
    assert (as_json.returncode, as_json.stderr) == (0, "")
    assert told["supervisor"]["pid"] == supervisor.pid
    assert [(s["id"], s["state"], s["connections"], s["restarts"], s["stale_s"]) for s in told["shards"]] == [
        (0, "running", 3, 2, 0),
        (1, "draining", 4, 0, 0),
    ]
    assert all(shard["rss_bytes"] > 1_000_000 for shard in told["shards"])

    text = cli("status", "--runtime-dir", rundir)
    lines = [line.split() for line in text.stdout.splitlines()]
    assert text.returncode == 0
    assert lines[0][:3] == ["supervisor", "pid", f"{supervisor.pid},"]
    assert "uds /run/a.sock, tcp [::1]:9090" in text.stdout
    assert "accepted   1,234; refused 9 (auth_failed 7, connection_limit 2)" in text.stdout
    headings = "SHARD STATE PID UPTIME CONNECTIONS AGENTS IN-FLIGHT REQ/S LAG FDS RSS CPU% RESTARTS LAST EVENT"
    assert " ".join(lines[-4]) == headings
    assert lines[-3][:10] == ["0", "running", str(first.pid), "1", "m", "00", "s", "3", "2", "1"]
    assert lines[-2][-3:] == ["drain", "asked", "for"]
    assert lines[-1] == ["total", "7", "2", "0", "0.0", "ms", "0", *lines[-1][7:9], "25.0", "2"]
    assert "\x1b" not in text.stdout


def test_status_is_quick_and_shows_old_numbers_when_a_shard_is_stopped(
    cli: Cli, rundir: Path, stand_in: StandIn, supervisor_answers: Answers, shard_answer: Answers
) -> None:
    stopped, running = stand_in(0, {"status": shard_answer(0)}), stand_in(1, {"status": shard_answer(1)})
    rows = [row(0, stopped.pid, "unhealthy", connections=17, stale_s=4.2), row(1, running.pid)]
    stand_in("supervisor", supervisor_answers(*rows))
    stopped.send_signal(signal.SIGSTOP)

    done = cli("status", "--runtime-dir", rundir, "--timeout", "200ms")

    assert done.returncode == 3
    silent, answering = done.stdout.splitlines()[-3:-1]
    assert "unhealthy, stale 4 s" in silent
    assert " 17 " in silent
    assert "stale" not in answering


def test_status_lists_the_shards_when_the_supervisor_is_down(
    cli: Cli, rundir: Path, stand_in: StandIn, shard_answer: Answers
) -> None:
    answering, silent = stand_in(0, {"status": shard_answer(0, 5)}), stand_in(1, {"status": shard_answer(1)})
    gone = stand_in(2, {})
    gone.kill()
    gone.wait()
    silent.send_signal(signal.SIGSTOP)

    as_json = cli("status", "--json", "--runtime-dir", rundir, "--timeout", "0.2")
    told = json.loads(as_json.stdout)
    assert as_json.returncode == 3
    assert told["supervisor"] is None
    assert [(shard["pid"], shard["state"], shard["connections"]) for shard in told["shards"]] == [
        (answering.pid, "running", 5),
        (silent.pid, "unhealthy", 0),
        (None, "down", 0),
    ]

    text = cli("status", "--runtime-dir", rundir, "--timeout", "0.2")
    assert text.returncode == 3
    assert text.stdout.startswith("supervisor is down in ")
    # What nobody knows is not shown as 0.
    cells = re.split(" {2,}", text.stdout.splitlines()[-3].strip())
    assert (cells[4:10], cells[11:]) == (["?"] * 6, ["?", "?", "does not answer"])


def test_status_says_that_the_supervisor_is_silent_when_it_is_stopped(
    cli: Cli, rundir: Path, stand_in: StandIn, supervisor_answers: Answers
) -> None:
    stand_in("supervisor", supervisor_answers()).send_signal(signal.SIGSTOP)

    done = cli("status", "--runtime-dir", rundir, "--timeout", "100ms")

    assert done.returncode == 3
    assert "does not answer" in done.stdout


def test_status_takes_a_recycled_pid_for_a_dead_shard(cli: Cli, rundir: Path) -> None:
    record = record_of_this_process("epoch", "0")
    RuntimeDir(rundir).write_shard(0, ProcessRecord(record.pid, record.create_time - 100, "epoch", "0"))

    done = cli("status", "--json", "--runtime-dir", rundir)

    assert done.returncode == 4
    assert [(shard["pid"], shard["state"]) for shard in json.loads(done.stdout)["shards"]] == [(None, "down")]


def test_status_escapes_what_a_terminal_would_obey(
    cli: Cli, rundir: Path, stand_in: StandIn, supervisor_answers: Answers
) -> None:
    evil = "\x1b[2J[red]\x9b31m\nforged line é"
    rows = [row(0, None, "down", last_event=evil)]
    stand_in("supervisor", supervisor_answers(*rows, config_file=evil, config_error=f"{evil}\nsecond", version=evil))

    text = cli("status", "--runtime-dir", rundir).stdout
    assert text.isascii()
    assert all(c.isprintable() or c == "\n" for c in text)
    assert "\\x1b[2J[red]\\x9b31m" in text
    assert "not reloaded: second" in text

    as_json = cli("status", "--json", "--runtime-dir", rundir).stdout
    assert as_json.rstrip("\n").isprintable()
    assert as_json.isascii()
    assert json.loads(as_json)["shards"][0]["last_event"] == evil


@pytest.mark.parametrize("columns", [60, 90, 200])
def test_status_fits_the_terminal_and_keeps_what_matters(
    columns: int, on_terminal: Terminal, rundir: Path, stand_in: StandIn, supervisor_answers: Answers
) -> None:
    rows = [row(0, os.getpid(), last_event="started"), row(1, None, "down", last_event="killed by signal 9 " * 9)]
    stand_in("supervisor", supervisor_answers(*rows))

    shown, code = on_terminal("status", "--runtime-dir", rundir, columns=columns)

    assert code == 3
    assert "\x1b[32mrunning" in shown
    plain = shown.replace("\x1b[32m", "").replace("\x1b[31m", "").replace("\x1b[0m", "").split("\r\n")
    start = next(i for i, line in enumerate(plain) if line.startswith("SHARD"))
    assert all(len(line) <= columns for line in plain[start:])
    assert {"SHARD", "STATE", "CONNECTIONS", "IN-FLIGHT"} <= set(plain[start].split())
    assert ("LAG" in plain[start]) is (columns == 200)


def test_status_has_no_colour_when_asked_for_none(
    on_terminal: Terminal, rundir: Path, stand_in: StandIn, supervisor_answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in("supervisor", supervisor_answers(row(0, None, "down"), config_error="bad"))
    monkeypatch.setenv("NO_COLOR", "1")

    shown, _ = on_terminal("status", "--runtime-dir", rundir)

    assert "down" in shown
    assert "\x1b" not in shown


def test_status_watch_draws_again_until_ctrl_c(
    on_terminal: Terminal, rundir: Path, stand_in: StandIn, supervisor_answers: Answers
) -> None:
    stand_in("supervisor", supervisor_answers(row(0, os.getpid())))

    shown, code = on_terminal("status", "--watch", "50ms", "--runtime-dir", rundir, until="LAST EVENT")

    assert code == 0
    # The alternate screen is left, and the cursor is back.
    assert shown.rindex("\x1b[?1049l") > shown.rindex("\x1b[?1049h")
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")
    assert "Traceback" not in shown


def test_status_watch_prints_one_object_a_line_and_ends_quietly_when_its_reader_leaves(
    rundir: Path, stand_in: StandIn, supervisor_answers: Answers, tmp_path: Path
) -> None:
    stand_in("supervisor", supervisor_answers(row(0, os.getpid())))
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "shardgate", "status", "--watch=20ms", "--json", "--runtime-dir", str(rundir)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdout as stdout, process.stderr as stderr:
        told = [json.loads(stdout.readline()) for _ in range(2)]
        stdout.close()
        assert [list(one) for one in told] == [["schema", "supervisor", "shards"]] * 2
        assert process.wait(10) == 1
        assert stderr.read() == ""


def test_status_does_not_pay_for_what_only_daemons_need(rundir: Path) -> None:
    code = "import sys; from supervisor.cli.main import main; main(['status']);"
    code += "print([m for m in ('structlog', 'uvloop', 'rich', 'ckdl') if m in sys.modules])"
    env = environment() | {"SHARDGATE_RUNTIME_DIR": str(rundir)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)

    assert done.stdout == "[]\n"


def test_help_is_no_dearer_than_status_since_it_imports_no_command(rundir: Path) -> None:
    def imported(*arguments: str) -> set[str]:
        code = "import sys; from supervisor.cli.main import main; main(sys.argv[1:]); print('::', *sys.modules)"
        command = [sys.executable, "-c", code, *arguments]
        env = environment() | {"SHARDGATE_RUNTIME_DIR": str(rundir)}
        done = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
        dear = ("supervisor", "ipc", "dialout", "shards", "msgspec", "psutil", "zmq", "asyncio")
        return {name for name in done.stdout.rpartition("::")[2].split() if name.partition(".")[0] in dear}

    assert imported("--help") - imported("status") == set()
