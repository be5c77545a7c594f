"""What the product says about its past, and how it can be told to close connections and to log less."""

import contextlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from support.agents import Agent
from support.product import Product, StartProduct
from support.waiting import wait_for

ENDED = ("closed_by_agent", "reset_by_agent")
"""A close is a reset where a ping had come that the agent did not read."""


def kinds(product: Product, agent_id: str) -> list[tuple[str, str | None]]:
    """Kind and code of the events that the product remembers of an agent."""
    why = product.ask("why", agent_id)
    return [(event["kind"], event["code"]) for event in why["events"]]


def lines(product: Product, event: str) -> list[dict[str, Any]]:
    """Log lines with this event."""
    found = [json.loads(line) for line in product.log.read_text().splitlines() if line.startswith("{")]
    return [line for line in found if line["event"] == event]


def test_why_tells_registrations_refusals_and_ends_with_their_reasons(start_product: StartProduct) -> None:
    product = start_product("--max-connections-per-agent", "1", "--allowed-agents", "waf-*")
    with Agent(product.socket) as agent:
        assert agent.register("waf-1").accepted
        with Agent(product.socket) as second:
            assert second.register("waf-1").error_code == "connection_limit"
        with Agent(product.socket) as stranger:
            assert stranger.register("evil").error_code == "not_allowed"

        why = product.ask("why", "waf-1")
        assert (why["schema"], why["connections"], why["limit"], why["healthy"]) == (1, 1, 1, True)
        [slot] = why["slots"]
        assert slot["live"]
        assert slot["peer"] == f"uid {os.getuid()} pid {os.getpid()}"
        assert [(r["code"], r["times"]) for r in why["refusals"]] == [("connection_limit", 1)]
        assert why["advice"][0].startswith("refused with connection_limit")

        text = product.command("why", "evil").stdout
        assert "no registration under this id can succeed: it is not in allowed-agents" in text
        assert "did you mean waf-1?" in product.command("why", "waf_1").stdout
    wait_for(lambda: kinds(product, "waf-1")[-1][0] == "closed", "the end to be known")
    [registered, (kind, code)] = kinds(product, "waf-1")
    assert (registered, kind) == (("registered", None), "closed")
    assert code in ENDED
    assert "the agent ended its last connection itself" in product.command("why", "waf-1").stdout


def test_each_outcome_and_each_end_is_one_log_line_with_all_that_matters(start_product: StartProduct) -> None:
    product = start_product("--max-connections-per-agent", "1")
    with Agent(product.socket) as agent:
        assert agent.register("waf-1").accepted
        with Agent(product.socket) as second:
            assert not second.register("waf-1").accepted
    [closed] = wait_for(lambda: lines(product, "connection closed"), "the line of the end")
    [accepted] = lines(product, "registration accepted")
    [refused] = lines(product, "registration refused")

    assert accepted["agent_id"] == closed["agent_id"] == refused["agent_id"] == "waf-1"
    assert accepted["connection_id"] == closed["connection_id"] == "waf-1-conn-1"
    assert accepted["shard"] == closed["shard"]
    assert closed["process"] == f"shard-{closed['shard']}"
    assert (closed["level"], accepted["transport"]) == ("info", "uds")
    assert closed["code"] in ENDED
    assert accepted["duration_s"] < 10
    assert closed["duration_s"] < 10
    assert 0 <= refused["duration_s"] < 10
    assert (refused["error_code"], refused["peer"]) == ("connection_limit", f"uid {os.getuid()} pid {os.getpid()}")


def test_the_line_of_an_agent_that_came_over_tcp_names_its_address(start_product: StartProduct) -> None:
    product = start_product("--tcp", "127.0.0.1:0")
    host, _, port = product.query("status")["supervisor"]["listeners"][1]["address"].rpartition(":")
    with Agent((host, int(port))) as agent:
        assert agent.register("waf-1").accepted
        [accepted] = wait_for(lambda: lines(product, "registration accepted"), "the line")
        [row] = product.connections()
    assert (accepted["transport"], accepted["peer"]) == ("tcp", row["peer"])


def test_a_flood_of_refusals_is_summed_up_and_hides_no_other_kind(start_product: StartProduct) -> None:
    product = start_product("--allowed-agents", "waf-*", "--max-connections-per-agent", "1")
    with Agent(product.socket) as waf:
        assert waf.register("waf-1").accepted
        for n in range(40):
            with Agent(product.socket) as agent:
                agent.register(f"made-up-{n}")
        with Agent(product.socket) as second:
            second.register("waf-1")
        wait_for(lambda: lines(product, "more registrations refused"), "the sum")
    refused = lines(product, "registration refused")
    summed = sum(line.get("not_allowed", 0) for line in lines(product, "more registrations refused"))
    assert sum(line["error_code"] == "not_allowed" for line in refused) + summed == 40
    assert summed > 0
    assert [line["agent_id"] for line in refused if line["error_code"] == "connection_limit"] == ["waf-1"]
    assert product.query("status")["supervisor"]["rejected_total"]["not_allowed"] == 40


def test_events_tell_of_the_death_of_a_shard_and_of_its_connections(start_product: StartProduct) -> None:
    product = start_product()
    with Agent(product.socket) as agent:
        assert agent.register("waf-1").accepted
        [row] = product.connections()
        os.kill(product.shard_pid(row["shard"]), signal.SIGKILL)
        wait_for(lambda: kinds(product, "waf-1")[-1] == ("closed", "shard_died"), "the loss to be known")
    wait_for(lambda: {s["state"] for s in product.query("status")["shards"]} == {"running"}, "a new process")

    done = product.command("events", "--shard", str(row["shard"]), "--json")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert {event["schema"] for event in events} == {1}
    assert [event["n"] for event in events] == sorted(event["n"] for event in events)
    codes = [event["code"] for event in events if event["kind"] == "shard"]
    assert codes == ["started", "running", "died", "started", "running"]
    died = next(event for event in events if event["code"] == "died")
    assert "SIGKILL" in died["reason"]
    assert "connections lost: 1" in died["reason"]
    assert {event["shard"] for event in events} == {row["shard"]}


def test_events_of_moves_tell_from_where_to_where(start_product: StartProduct) -> None:
    product = start_product()
    with Agent(product.socket) as agent:
        assert agent.register("waf-1").accepted
        [row] = product.connections()
        assert product.command("drain", str(row["shard"])).returncode == 0
        [moved] = [e for e in product.ask("why", "waf-1")["events"] if e["kind"] == "moved"]
        assert (moved["shard"], moved["reason"]) == (1 - row["shard"], f"from shard {row['shard']}")
        events = [json.loads(line) for line in product.command("events", "--json").stdout.splitlines()]
        assert "draining" in [event["code"] for event in events if event["kind"] == "shard"]
        assert any(e["code"] == "operation" and "moved 1, left 0" in e["reason"] for e in events)


def test_a_new_supervisor_tells_what_it_has_found(start_product: StartProduct) -> None:
    product = start_product()
    with Agent(product.socket) as agent:
        assert agent.register("waf-1").accepted
        product.process.kill()
        product.process.wait()
        for command in (["why", "waf-1"], ["events"], ["events", "--follow"], ["kick", "waf-1"], ["log-level", "info"]):
            done = product.command(*command)
            assert (done.returncode, done.stdout) == (4, ""), command
            assert "no supervisor is running" in done.stderr
        product.start()
        product.wait_until_running()
        assert kinds(product, "waf-1") == [("adopted", None)]


# ---- kick


def test_kick_closes_all_connections_of_an_agent_and_lets_it_register_again(start_product: StartProduct) -> None:
    product = start_product()
    with Agent(product.socket) as first, Agent(product.socket) as second, Agent(product.socket) as other:
        assert first.register("waf-1").accepted
        assert second.register("waf-1").accepted
        assert other.register("waf-2").accepted
        done = product.command("kick", "waf-1")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == "closed 2 connections of waf-1; it may register again at once\n"
        assert first.at_end()
        assert second.at_end()
        assert [row["agent_id"] for row in product.connections()] == ["waf-2"]
        with Agent(product.socket) as again:
            assert again.register("waf-1").accepted
            assert kinds(product, "waf-1")[-3:] == [("closed", "kicked"), ("closed", "kicked"), ("registered", None)]
        assert product.query("status")["supervisor"]["kicked_total"] == 2


def test_kick_closes_one_connection_by_its_id(product: Product) -> None:
    with Agent(product.socket) as first, Agent(product.socket) as second:
        kept = first.register("waf-1")
        gone = second.register("waf-1")
        told = product.ask("kick", str(gone.assigned_id))
        assert (told["kicked"], told["left"]) == ([gone.assigned_id], [])
        assert second.at_end()
        assert [row["connection_id"] for row in product.connections()] == [kept.assigned_id]
    wait_for(lambda: product.counts() == [0, 0], "the other one to be gone")


def test_kick_refuses_who_is_not_there(product: Product) -> None:
    done = product.command("kick", "nobody-conn-5")
    assert done.returncode == 5
    assert "'shardgate why nobody' says what became of it" in done.stderr


# ---- log-level


def test_log_level_reaches_supervisor_shards_and_shards_that_start_later(start_product: StartProduct) -> None:
    product = start_product()

    def visit(agent_id: str) -> None:
        before = product.query("status", 0)["report"], product.query("status", 1)["report"]
        with Agent(product.socket) as agent:
            assert agent.register(agent_id).accepted
        # Field 6 of the report is closed_total.
        total = before[0][6] + before[1][6]
        wait_for(lambda: sum(product.query("status", n)["report"][6] for n in (0, 1)) > total, "the end")

    assert product.command("log-level", "warning").stdout == "log level is warning\n"
    wait_for(lambda: len(lines(product, "log level set")) == 3, "all three to have heard")
    visit("quiet-1")
    os.kill(product.shard_pid(0), signal.SIGKILL)
    wait_for(lambda: len(lines(product, "shard ended, starting it again")) == 1, "the death")
    product.wait_until_running()
    for n in range(6):
        visit(f"quiet-2-{n}")
    assert product.query("status")["supervisor"]["log_level"] == "warning"
    assert product.command("log-level", "info").returncode == 0
    wait_for(lambda: [line["log_level"] for line in lines(product, "log level set")].count("info") == 3, "info")
    for n in range(4):
        visit(f"loud-{n}")
    wait_for(lambda: len(lines(product, "connection closed")) == 4, "the ends of the loud ones")
    told = lines(product, "registration accepted") + lines(product, "connection closed")
    agents = {line["agent_id"] for line in told}
    assert agents == {f"loud-{n}" for n in range(4)}


def test_log_level_takes_only_levels(product: Product) -> None:
    assert product.command("log-level", "loud").returncode == 2


def test_a_log_that_nobody_reads_stops_nothing(start_product: StartProduct, tmp_path: Path) -> None:
    fifo = tmp_path / "log"
    os.mkfifo(fifo)
    # Both ends: an open for writing alone would wait for a reader.
    ours = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(ours, b"x" * 4096)
    try:
        product = start_product(prefix=("sh", "-c", f'exec "$@" 2>{fifo}', "sh"))
        with Agent(product.socket) as agent:
            assert agent.register("waf-1").accepted
        wait_for(lambda: product.counts() == [0, 0], "the end")
        read = bytearray()

        def has_come() -> bool:
            with contextlib.suppress(BlockingIOError):
                read.extend(os.read(ours, 1 << 20))
            return b'"connection closed"' in read

        wait_for(has_come, "the lines that had to wait")
    finally:
        os.close(ours)


@pytest.mark.parametrize("form", ["json", "text"])
def test_lines_for_the_journal_begin_with_their_priority(start_product: StartProduct, form: str) -> None:
    # The variable names the very file that standard error is, as systemd sets it.
    journal = 'export JOURNAL_STREAM="$(stat -L -c %d:%i /proc/self/fd/2)"; exec "$@"'
    product = start_product("--log-format", form, prefix=("sh", "-c", journal, "sh"))
    with Agent(product.socket) as agent:
        assert agent.register("waf-1").accepted
    wait_for(lambda: "connection closed" in product.log.read_text(), "the end")
    text = product.log.read_text().splitlines()
    assert all(line.startswith(("<3>", "<4>", "<6>")) for line in text), text
    if form == "json":
        assert {json.loads(line[3:])["level"] for line in text if line.startswith("<6>")} == {"info"}
