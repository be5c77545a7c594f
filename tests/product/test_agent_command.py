"""``shardgate agent`` against ``shardgate run``."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from support.product import Product, StartProduct, environment
from support.sending import decided
from support.waiting import wait_for

COMMAND = [sys.executable, "-P", "-m", "shardgate", "agent"]


@contextmanager
def agent(product: Product, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """A running demonstration agent that knows no address but the runtime directory's."""
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment() | {"SHARDGATE_RUNTIME_DIR": str(product.runtime_dir)},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_agent_finds_the_default_listener_serves_it_and_sums_up(start_product: StartProduct) -> None:
    product = start_product(uds=False)
    with agent(product, "--block-uri", "/admin*", "--connections", "3", "--delay", "5ms") as process:
        wait_for(lambda: sum(product.counts()) == 3, "three connections", timeout=20)
        assert decided(product, "demo-agent", "--uri", "/admin/x")["decision"]["block"]["status"] == 403
        assert decided(product, "demo-agent", "--uri", "/x")["decision"] == "allow"
        process.terminate()
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert "demo-agent: 2 requests in " in output
    assert "1 allowed, 1 blocked" in output
    assert "Traceback" not in output


def test_agent_without_a_listener_says_so_and_keeps_trying(start_product: StartProduct) -> None:
    product = start_product(uds=False, wait=False)
    product.process.kill()
    product.process.wait()
    with agent(product, "--connections", "1") as process:
        assert process.stdout is not None
        line = ""
        while " waiting " not in line:
            line = process.stdout.readline()
            assert line, "the agent ended"
        assert "agents.sock" in line or "could not be dialled" in line
        product.start()
        product.wait_until_running()
        wait_for(lambda: sum(product.counts()) == 1, "its connection", timeout=40)


def test_agent_has_a_help_and_refuses_nonsense() -> None:
    done = subprocess.run([*COMMAND, "--help"], capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0
    assert all(
        option in done.stdout
        for option in ("--connect", "--id", "--connections", "--block-uri", "--delay", "--auth-token-file", "--dialect")
    )
    done = subprocess.run([*COMMAND, "--id", "a b"], capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert os.linesep in done.stderr
