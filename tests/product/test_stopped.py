"""A supervisor that is stopped for longer than anything may take, and goes on."""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from support.agents import Agent, registration
from support.product import Product, StartProduct, environment
from support.waiting import wait_for

from dialout import Dialect, encode_frame

# The limits are shorter than in earnest, and a stop is longer than each of them.
LIMIT, STOP = 3.5, 5.0

WITH_SHORT_LIMITS = f"""
import runpy, sys
import supervisor.care
supervisor.care.REPLACE_AFTER = {LIMIT}
supervisor.care.SILENCE_LIMIT = 1.2
sys.argv[:] = sys.argv[4:]
runpy.run_module("shardgate", run_name="__main__")
"""


def start(start_product: StartProduct, *options: str, **more: Any) -> Product:
    """A product that replaces a shard after `LIMIT` seconds of silence."""
    return start_product(*options, shards=2, prefix=(sys.executable, "-P", "-c", WITH_SHORT_LIMITS), **more)


def stopped(pid: int, seconds: float) -> None:
    """Stop a process for so long."""
    began = time.monotonic()
    os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: time.monotonic() - began > seconds, "the time to pass", timeout=seconds + 10)
    os.kill(pid, signal.SIGCONT)


BUSY = """
import sys, threading, time

def patch():
    while "shards.connection" not in sys.modules or not hasattr(sys.modules["shards.connection"], "Connection"):
        time.sleep(0.01)
    connection = sys.modules["shards.connection"].Connection
    serve = connection._serve

    def slow(self, frame_type, payload):
        if b"burn" in payload:
            end = time.monotonic() + 5
            while time.monotonic() < end:
                pass
        serve(self, frame_type, payload)

    connection._serve = slow

if "--epoch" in sys.orig_argv:
    threading.Thread(target=patch, daemon=True).start()
"""
"""A shard in which a frame with "burn" in it takes the processor for 5 seconds."""


def said(log: Path, text: str) -> bool:
    """Whether the log says so."""
    return text in log.read_text()


def test_a_supervisor_that_was_stopped_replaces_no_shard_and_refuses_no_agent(start_product: StartProduct) -> None:
    product = start(start_product, "--handshake-timeout", "1s")
    pids = product.pids()
    with Agent(product.socket) as before, Agent(product.socket) as silent, Agent(product.socket) as new:
        assert before.register("before").accepted
        wait_for(lambda: product.query("status")["supervisor"]["handshakes"] == 2, "the handshakes")
        os.kill(product.process.pid, signal.SIGSTOP)
        silent.send(registration("silent"))
        stopped(product.process.pid, STOP)
        assert silent.answer().accepted, "its registration was there, unread"
        assert new.register("new").accepted
        turns = product.query("status")["supervisor"]["uptime_s"]
        wait_for(lambda: product.query("status")["supervisor"]["uptime_s"] > turns + 2, "more looks at the shards")
        assert product.pids() == pids
        assert [row["restarts"] for row in product.query("status")["shards"]] == [0, 0]
        assert not said(product.log, "shard is silent")
        assert before.ping(Dialect.SDK) is not None


def test_a_shard_that_is_stopped_while_its_supervisor_runs_is_replaced(start_product: StartProduct) -> None:
    product = start(start_product)
    victim = product.shard_pid(0)
    os.kill(victim, signal.SIGSTOP)
    wait_for(lambda: said(product.log, "replacing a silent shard"), "the end of the stopped shard", timeout=20)
    wait_for(lambda: product.shard_pid(0) not in (victim, 0) if len(product.pids()) == 3 else None, "another one")


def test_a_shard_that_works_on_a_frame_is_told_from_one_that_hangs_and_the_log_names_the_agent(
    start_product: StartProduct, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(BUSY)
    path = f"{tmp_path}:{environment()['PYTHONPATH']}"
    product = start(start_product, variables={"PYTHONPATH": path})
    with Agent(product.socket, timeout=30) as agent:
        connection_id = agent.register("waf-1").assigned_id
        assert agent.ping(Dialect.SDK) is not None
        agent.send(encode_frame(Dialect.SDK.ping_type, b'{"burn":1}'))
        wait_for(lambda: said(product.log, "shard answers again"), "the end of its work", timeout=25)
        [line] = [line for line in product.log.read_text().splitlines() if "silent shard works" in line]
        assert json.loads(line)["on"] == f"frames of {connection_id}"
        assert agent.ping(Dialect.SDK) is not None
        assert [row["restarts"] for row in product.query("status")["shards"]] == [0, 0]
