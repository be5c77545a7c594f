"""Signals to the processes of a running shardgate, and standard streams that are closed."""

import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from support.agents import Agent
from support.product import StartProduct
from support.waiting import wait_for

from ipc import signals
from ipc.signals import Kind, Role


def logged(log: Path, event: str, process: str) -> list[dict[str, Any]]:
    """The lines of *event* that a process has logged."""
    entries = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    return [entry for entry in entries if entry["event"] == event and entry["process"] == process]


def test_signals_without_a_meaning_cost_no_agent_its_connection(start_product: StartProduct) -> None:
    product = start_product(shards=1)
    pids = {Role.SUPERVISOR: product.process.pid, Role.SHARD: product.shard_pid(0)}
    with Agent(product.socket) as agent:
        assert agent.register("waf-1").accepted
        for role, pid in pids.items():
            process = "supervisor" if role is Role.SUPERVISOR else "shard-0"
            noted = set()
            for number in signals.numbers():
                kind = signals.meaning(number, role).kind
                if kind in (Kind.NOTE, Kind.IGNORE, Kind.STACKS):
                    os.kill(pid, number)
                if kind is Kind.NOTE:
                    noted.add(signals.name_of(number))

            def all_noted(process: str = process, noted: set[str] = noted) -> bool:
                lines = logged(product.log, "signal without a meaning here", process)
                return {line["signal"] for line in lines} == noted and bool(logged(product.log, "stack", process))

            wait_for(all_noted, "all signals to be noted, and the stacks")
            [main] = [line for line in logged(product.log, "stack", process) if line.get("thread") == "MainThread"]
            assert any("run" in frame for frame in main["stack"])
            assert [line for line in logged(product.log, "stack", process) if "task" in line]
        assert product.pids() == list(pids.values())
        agent.sock.setblocking(False)
        # The shards' first pings may be there, and no end.
        with contextlib.suppress(BlockingIOError):
            while True:
                assert agent.sock.recv(4096) != b""


IGNORE_AND_BLOCK = """
import os, signal, sys
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_a_parent_that_ignores_and_blocks_signals_changes_nothing(start_product: StartProduct) -> None:
    product = start_product(shards=1, prefix=(sys.executable, "-c", IGNORE_AND_BLOCK))
    product.process.send_signal(signal.SIGHUP)
    wait_for(lambda: logged(product.log, "configuration reloaded", "supervisor"), "the reload")
    shard = product.shard_pid(0)
    os.kill(shard, signal.SIGTERM)
    wait_for(lambda: product.shard_pid(0) != shard if product.query("status")["shards"][0]["pid"] else None, "another")
    [ended] = wait_for(lambda: logged(product.log, "shard ended, starting it again", "supervisor"), "its line")
    assert ended["how"] == "exit status 0"


@pytest.mark.parametrize("closed", ["2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_are_nowhere_and_never_an_agents_socket(
    start_product: StartProduct, closed: str
) -> None:
    product = start_product(shards=1, prefix=("/bin/sh", "-c", f'exec "$@" {closed}', "sh"))
    for pid in (product.process.pid, product.shard_pid(0)):
        assert {n: os.readlink(f"/proc/{pid}/fd/{n}") for n in (0, 2)} == dict.fromkeys((0, 2), "/dev/null")  # noqa: PTH115
    with Agent(product.socket) as agent:
        assert agent.register("waf-1").accepted
