"""Times in what the commands print: one zone, which is named, and the date where the clock alone would mislead."""

import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from supervisor.merge import rfc3339

CLOCK = re.compile(r"(\d{4}-\d\d-\d\d )?\d\d:\d\d:\d\d(?:\.\d{3})?(Z?)")

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
StandIn = Callable[..., "subprocess.Popen[str]"]
Answers = Callable[..., dict[str, Any]]


def connection(n: int, at: float) -> dict[str, Any]:
    """A connection of waf-1, as its shard tells of it."""
    return {
        "n": n, "connection_id": f"waf-1-conn-{n}", "agent_id": "waf-1", "transport": "tcp", "peer": "10.0.0.1",
        "dialect": "sdk", "connected_at": at, "in_flight": 0,
    }  # fmt: skip


@pytest.mark.parametrize("command", [("status",), ("events",), ("why", "waf-1"), ("connections",)], ids=" ".join)
def test_all_times_are_of_one_zone_with_their_date_when_older_than_a_day(
    command: tuple[str, ...], cli: Cli, rundir: Path, stand_in: StandIn, supervisor_answers: Answers
) -> None:
    # Not at a clock time that both could have.
    now = time.time()
    lately, long_ago = now - 3600.5, now - 3 * 86_400.25
    events = [[1, long_ago, "registered", "waf-1", 1], [2, lately, "closed", "waf-1", 1, 0, "closed_by_agent"]]
    refusals = [["connection_limit", 2, long_ago, lately, "too many", "10.0.0.1"]]
    story = {"agent_id": "waf-1", "events": events, "refusals": refusals}
    slots = [{"connection_id": f"waf-1-conn-{n}", "shard": 0, "live": True} for n in (2, 3)]
    shards: list[dict[str, Any]] = [
        {"id": n, "pid": os.getpid(), "state": "running", "last_event": "started", "last_event_at": rfc3339(at)}
        for n, at in enumerate((lately, long_ago))
    ]
    answers = supervisor_answers(*shards, config_loaded_at=rfc3339(long_ago)) | {
        "events": {"events": events, "next": 3, "lost": 0, "began": 1},
        "why": {
            "agent_id": "waf-1", "limit": 4, "slots": slots, "objection": None, "similar": None, "story": story,
            "uptime_s": 9e5,
        },
    }  # fmt: skip
    stand_in("supervisor", answers)
    stand_in(0, {"connections": [connection(2, lately), connection(3, long_ago)], "agents": [["waf-1", 2, 0, True]]})

    for zone in ("UTC", "Asia/Kolkata"):
        done = cli(*command, "--runtime-dir", rundir, env={"TZ": zone})
        text = done.stdout
        assert (done.returncode, done.stderr) == (0, ""), done
        found = CLOCK.findall(text)
        assert {mark for _, mark in found} == {"Z"}, text
        assert {bool(date) for date, _ in found} == {True, False}, text
        assert time.strftime("%H:%M:%S", time.gmtime(lately)) in text
        assert time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(long_ago)) in text
