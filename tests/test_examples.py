"""The examples run: real proxies, real agents, and an orderly end."""

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.agents import Agent, registration
from support.product import StartProduct, environment, short_folder
from support.sending import decided
from support.waiting import wait_for

from dialout import Dialect, ErrorCode
from supervisor.config.tokens import hash_token

EXAMPLES = Path(__file__).parents[1] / "examples"
AGENT = Path(__file__).parent / "support" / "agent_script.py"


class Example:
    """A running example, and what it logs."""

    def __init__(self, folder: Path, name: str, *arguments: str) -> None:
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", str(EXAMPLES / name), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment(),
            )

    def lines(self, event: str) -> list[dict[str, Any]]:
        """What it logged under this name."""
        complete = self.log.read_text().rpartition("\n")[0].splitlines()
        return [line for line in map(json.loads, complete) if line["event"] == event]

    def wait_for(self, event: str, n: int = 1) -> list[dict[str, Any]]:
        """Wait until it has logged that *n* times."""

        def found() -> list[dict[str, Any]]:
            assert self.process.poll() is None, self.log.read_text()
            lines = self.lines(event)
            return lines if len(lines) >= n else []

        return list(wait_for(found, f"{n} lines {event!r}", timeout=20))

    def end(self) -> None:
        """Wait for its end, which must be a success and leave no error behind."""
        assert self.process.wait(20) == 0, self.log.read_text()
        assert "Traceback" not in self.log.read_text()


@contextlib.contextmanager
def running(folder: Path, name: str, *arguments: str) -> Iterator[Example]:
    """An example that is gone afterwards, whatever happens."""
    example = Example(folder, name, *arguments)
    try:
        yield example
    finally:
        example.process.kill()
        example.process.wait()
        print(example.log.read_text())


@contextlib.contextmanager
def agent(*arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """An agent in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-P", str(AGENT), *arguments], stdout=subprocess.PIPE, text=True, env=environment()
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def first_line(process: "subprocess.Popen[str]") -> str:
    """The first line that an agent prints."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_simple_loop_accepts_agents_of_every_dialect_and_sees_their_decisions_until_it_is_stopped(
    number: signal.Signals,
) -> None:
    with short_folder() as folder, running(folder, "simple_accept_loop.py", str(folder / "s")) as example:
        example.wait_for("listening")
        with contextlib.ExitStack() as agents:
            processes = [
                agents.enter_context(agent(str(folder / "s"), f"waf-{dialect}", dialect.value)) for dialect in Dialect
            ]
            assert {first_line(process).rpartition("-")[0] for process in processes} == {
                f"waf-{dialect}-conn" for dialect in Dialect
            }
            decisions = example.wait_for("decision", len(Dialect))
            assert {line["agent_id"]: line["decision"] for line in decisions} == {
                f"waf-{dialect}": {"block": {"status": 403, "body": "no"}} for dialect in Dialect
            }
            with Agent(folder / "s") as late:  # It has not said anything yet.
                example.process.send_signal(number)
                assert late.answer().error_code == ErrorCode.SHUTTING_DOWN
            example.end()
            assert [process.wait(20) for process in processes] == [0, 0, 0]
        assert not (folder / "s").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_production_loop_checks_tokens_and_ids_decides_and_stops_in_order(
    number: signal.Signals, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"* sha256:{hash_token('open sesame').hex()}\n")
    with running(tmp_path, "production_accept_loop.py", "127.0.0.1:0", str(tokens)) as example:
        address = example.wait_for("listening")[0]["address"]
        with (
            agent(address, "waf-1", "core", "open sesame") as good,
            agent(address, "waf-2", "sdk", "guessed") as without_token,
            agent(address, "ratelimit-1", "sdk", "open sesame") as not_listed,
        ):
            assert first_line(good).startswith("waf-1-conn-")
            assert first_line(without_token) == "refused: auth_failed"
            assert first_line(not_listed) == "refused: not_allowed"
            (decision,) = example.wait_for("decision")
            assert decision["agent_id"] == "waf-1"
            assert decision["decision"] == {"block": {"status": 403, "body": "no"}}
            example.process.send_signal(number)
            example.end()
            assert good.wait(20) == 0
        (stopped,) = example.lines("stopped")
        assert stopped["accepted"] == 1
        assert {code: n for code, n in stopped["rejected"].items() if n} == {"auth_failed": 1, "not_allowed": 1}


def test_production_loop_says_in_one_line_what_is_wrong_with_its_tokens(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.touch()
    with running(tmp_path, "production_accept_loop.py", "127.0.0.1:0", str(tokens)) as example:
        assert example.process.wait(20) == 1
        assert example.log.read_text() == "require_auth: no agent could register: there is no token; pass tokens=\n"


def test_simple_loop_serves_on_when_an_agent_hangs_up_before_it_is_asked() -> None:
    with short_folder() as folder, running(folder, "simple_accept_loop.py", str(folder / "s")) as example:
        example.wait_for("listening")
        with Agent(folder / "s") as hasty:
            hasty.send(registration("hasty"))
        with agent(str(folder / "s"), "waf-1", "sdk"):
            decisions = example.wait_for("decision")
            assert [line["agent_id"] for line in decisions] == ["waf-1"]
        example.process.terminate()
        example.end()


def test_agent_serves_a_running_listener_until_it_is_stopped(start_product: StartProduct, tmp_path: Path) -> None:
    product = start_product()
    with running(tmp_path, "agent.py", str(product.socket), "demo-agent") as example:
        wait_for(lambda: sum(product.counts()) == 4, "its connections", timeout=20)
        blocked = decided(product, "demo-agent", "--uri", "/admin")
        assert blocked["decision"] == {"block": {"status": 403, "body": "not for you"}}
        allowed = decided(product, "demo-agent", "--uri", "/")
        assert allowed["decision"] == "allow"
        assert allowed["request_headers"] == [{"operation": "set", "name": "x-checked-by", "value": "demo-agent"}]
        example.process.terminate()
        example.end()
        assert "demo-agent connection 4: connected as demo-agent-conn-" in example.log.read_text()
