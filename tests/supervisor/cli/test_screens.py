"""What terminals show that are small, or obey nothing: 80 columns of 24 lines, and ``TERM=dumb``."""

import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

StandIn = Callable[..., "subprocess.Popen[str]"]
Answers = Callable[..., dict[str, Any]]
Terminal = Callable[..., tuple[str, int]]

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
LONG = "waf-" + "x" * 124
"""The longest id that an agent may have."""


@pytest.fixture
def full(rundir: Path, stand_in: StandIn, supervisor_answers: Answers, shard_answer: Answers) -> Path:
    """A shardgate with 40 shards, one of them down, and agents whose ids are as long as can be."""
    entries = [
        {
            "n": n, "connection_id": f"{LONG}-conn-{n}", "agent_id": LONG, "transport": "tcp",
            "peer": "2001:db8:1111:2222:3333:4444:5555:6666", "dialect": "core", "connected_at": 1.7e9 + n,
            "in_flight": 0,
        }
        for n in range(1, 4)
    ]  # fmt: skip
    agents = [[f"{LONG[:-2]}{n:02}", 3, 1, True] for n in range(30)]
    busiest = [[f"{LONG[:-2]}{n:02}", 3, 1, 90 * n] for n in range(30)]
    shard = stand_in(0, shard_answer(0) | {"connections": entries, "agents": agents, "busiest": busiest})
    rows = [
        {
            "id": n, "pid": shard.pid, "state": "running", "connections": n, "last_event": "started pid 1234567",
            "last_event_at": "2026-01-01T00:00:00.000Z", "descriptors": 12345, "descriptor_limit": 1 << 20,
        }
        for n in range(40)
    ]  # fmt: skip
    rows[17] |= {"pid": None, "state": "down"}
    listeners = [{"kind": "tcp", "address": f"10.0.0.{n}:9090"} for n in range(9)]
    events = [[n, time.time(), "refused", LONG, 0, -1, "connection_limit", "too many " * 30] for n in range(9)]
    stand_in(
        "supervisor",
        supervisor_answers(*rows, listeners=listeners, descriptors=9999, descriptor_limit=1 << 20, rss_bytes=1 << 30)
        | {"events": {"events": events, "next": 9, "lost": 0, "began": 0}},
    )
    return rundir


@pytest.mark.parametrize("command", ["status", "agents", "connections", "events"])
def test_no_line_of_a_table_is_wider_than_80_columns(command: str, full: Path, on_terminal: Terminal) -> None:
    shown, _ = on_terminal(command, "--runtime-dir", full, columns=80, rows=24)

    lines = ESCAPES.sub("", shown).splitlines()
    assert len(lines) > 3
    assert max(map(len, lines)) <= 80, shown
    if command == "connections":
        # Which of an agent's connections a line is about stays.
        assert [line.split()[0][-6:] for line in lines[1:]] == ["conn-1", "conn-2", "conn-3"]


def test_events_that_are_followed_are_a_line_each(full: Path, on_terminal: Terminal) -> None:
    shown, _ = on_terminal("events", "--follow", "--runtime-dir", full, columns=80, rows=24, until="refused")

    assert max(len(line) for line in ESCAPES.sub("", shown).splitlines() if "refused" in line) <= 80


@pytest.mark.parametrize(("command", "last"), [(("status", "--watch", "1s"), "not shown"), (("top",), "q ends")])
def test_screen_of_24_lines_has_what_does_not_run_and_its_last_line(
    command: tuple[str, ...], last: str, full: Path, on_terminal: Terminal
) -> None:
    shown, code = on_terminal(*command, "--runtime-dir", full, columns=80, rows=24, until=last)

    assert code == 0
    drawn = shown.split("\x1b[H")[-1]
    lines = [line.rstrip() for line in ESCAPES.sub("", drawn).splitlines()]
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    assert any(re.match(r" +17 +down", line) for line in lines), shown
    assert any(line.startswith("total") for line in lines)
    assert re.search(r"not shown: \d+ shards with less to do", drawn)


@pytest.mark.parametrize("command", [("status", "--watch", "50ms"), ("top", "--interval", "50ms")], ids=" ".join)
@pytest.mark.parametrize("term", ["dumb", ""])
def test_terminal_that_obeys_nothing_shows_one_below_the_other(
    command: tuple[str, ...], term: str, rundir: Path, stand_in: StandIn, supervisor_answers: Answers,
    on_terminal: Terminal,
) -> None:  # fmt: skip
    row = {"id": 0, "pid": os.getpid(), "state": "running", "last_event": "started"}
    stand_in("supervisor", supervisor_answers(row))

    shown, code = on_terminal(*command, "--runtime-dir", rundir, term=term, until="LAST EVENT")

    assert code == 0
    assert "\x1b" not in shown
    assert "running" in shown
