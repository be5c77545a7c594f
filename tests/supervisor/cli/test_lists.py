"""``shardgate agents`` and ``shardgate connections``, asked of real processes."""

import base64
import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
StandIn = Callable[..., "subprocess.Popen[str]"]
Answers = Callable[..., dict[str, Any]]


def connection(n: int, agent_id: str, metadata: bytes = b"") -> dict[str, Any]:
    return {
        "n": n, "connection_id": f"{agent_id}-conn-{n}", "agent_id": agent_id, "transport": "tcp",
        "peer": "10.0.0.1:5", "dialect": "json", "connected_at": 1700000000.25, "in_flight": 2,
        "metadata": base64.b64encode(metadata).decode(), "frames": 8, "frames_ignored": 1,
    }  # fmt: skip


def test_agents_are_added_up_over_shards_and_pages(
    cli: Cli, rundir: Path, stand_in: StandIn, supervisor_answers: Answers
) -> None:
    # Two full pages and a part of one, a full page and an empty one, and nothing.
    many = [[f"agent-{number:05}", 1, 0, True] for number in range(2500)]
    stand_in(0, {"agents": many})
    stand_in(1, {"agents": many[:1000]})
    stand_in(7, {"agents": []})
    stand_in("supervisor", supervisor_answers(max_connections_per_agent=6))

    done = cli("agents", "--json", "--runtime-dir", rundir)

    rows = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (0, "")
    assert [row["agent_id"] for row in rows] == [entry[0] for entry in many]
    first = {"agent_id": "agent-00000", "connections": 2, "limit": 6, "shards": {"0": 1, "1": 1}}
    assert rows[0] == first | {"in_flight": 0, "healthy": True}
    assert rows[1000]["shards"] == {"0": 1}


def test_agents_have_no_limit_and_are_listed_when_the_supervisor_is_down(
    cli: Cli, rundir: Path, stand_in: StandIn
) -> None:
    stand_in(0, {"agents": [["auth", 1, 5, False], ["waf-1", 2, 0, True], ["waf-2", 1, 0, True]]})

    as_json = cli("agents", "--json", "waf-*", "--runtime-dir", rundir)
    assert [(row["agent_id"], row["limit"]) for row in json.loads(as_json.stdout)] == [("waf-1", None), ("waf-2", None)]

    text = cli("agents", "--runtime-dir", rundir)
    assert [line.split() for line in text.stdout.splitlines()] == [
        ["AGENT", "CONNECTIONS", "LIMIT", "IN-FLIGHT", "HEALTHY", "SHARD:CONNECTIONS"],
        ["auth", "1", "-", "5", "no", "0:1"],
        ["waf-1", "2", "-", "0", "yes", "0:2"],
        ["waf-2", "1", "-", "0", "yes", "0:1"],
    ]

    none = cli("agents", "x*", "--runtime-dir", rundir)
    assert (none.returncode, none.stdout, none.stderr) == (0, "", "no agent matches x*\n")


@pytest.mark.parametrize("command", ["agents", "connections"])
def test_lists_print_what_they_have_and_exit_6_when_a_shard_is_silent(
    command: str, cli: Cli, rundir: Path, stand_in: StandIn
) -> None:
    results = {"agents": [["waf", 1, 0, True]], "connections": [connection(1, "waf")]}
    stand_in(0, results)
    stand_in(1, results).send_signal(signal.SIGSTOP)

    done = cli(command, "--json", "--timeout", "200ms", "--runtime-dir", rundir)

    assert done.returncode == 6
    assert "from shard 1" in done.stderr
    assert [row["agent_id"] for row in json.loads(done.stdout)] == ["waf"]


@pytest.mark.parametrize("command", ["agents", "connections", "reload", "stop"])
def test_commands_exit_4_when_nothing_runs(command: str, cli: Cli, rundir: Path) -> None:
    done = cli(command, "--runtime-dir", rundir)

    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr == f"shardgate: no shardgate is running in {rundir}; start one with 'shardgate run'\n"


def test_agents_refuse_a_pattern_that_can_match_nothing(cli: Cli, rundir: Path) -> None:
    done = cli("agents", "waf ?", "--runtime-dir", rundir)

    assert done.returncode == 2
    assert "AGENT-PATTERN" in done.stderr


def test_connections_carry_what_the_agent_sent_and_nothing_that_a_terminal_obeys(
    cli: Cli, rundir: Path, stand_in: StandIn
) -> None:
    metadata = {"version": "1.2", "name": "\x9b2J\x7f\U0001f600é"}
    stand_in(0, {"connections": [connection(1, "b", json.dumps(metadata).encode()), connection(2, "a")]})
    stand_in(3, {"connections": [connection(1, "a", b"broken")]})

    as_json = cli("connections", "--json", "--runtime-dir", rundir)
    rows = json.loads(as_json.stdout)
    assert as_json.stdout.rstrip("\n").isprintable()
    assert as_json.stdout.isascii()
    assert [(row["agent_id"], row["shard"], row["metadata"]) for row in rows] == [
        ("a", 0, None), ("a", 3, None), ("b", 0, metadata),
    ]  # fmt: skip
    assert rows[2] == {
        "connection_id": "b-conn-1", "agent_id": "b", "shard": 0, "transport": "tcp", "peer": "10.0.0.1:5",
        "dialect": "json", "connected_at": "2023-11-14T22:13:20.250Z", "in_flight": 2, "metadata": metadata,
        "frames": 8, "frames_ignored": 1,
    }  # fmt: skip

    text = cli("connections", "--runtime-dir", rundir).stdout
    assert text.isascii()
    assert "\\x9b2J\\x7f" in text


def test_connections_are_those_of_the_agent_and_the_shard_asked_for(cli: Cli, rundir: Path, stand_in: StandIn) -> None:
    stand_in(0, {"connections": [connection(n, "ab"[n % 2]) for n in range(1, 4)]})
    stand_in(2, {"connections": [connection(9, "a")]})

    def ids(*options: str) -> list[tuple[str, int]]:
        done = cli("connections", "--json", "--runtime-dir", rundir, *options)
        assert done.returncode == 0
        return [(row["connection_id"], row["shard"]) for row in json.loads(done.stdout)]

    assert ids("--agent", "a") == [("a-conn-2", 0), ("a-conn-9", 2)]
    assert ids("--shard", "2") == [("a-conn-9", 2)]
    assert ids("--agent", "b", "--shard", "2") == []

    wrong = cli("connections", "--shard", "1", "--runtime-dir", rundir)
    assert wrong.returncode == 4
    assert wrong.stderr == "shardgate: shard 1 is not running; running shards: 0, 2\n"
