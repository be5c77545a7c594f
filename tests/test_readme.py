"""README keeps its word: its blocks run as they stand there."""

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.product import environment
from support.waiting import wait_for

README = Path(__file__).parent.parent / "README.md"
TOUR = "/tmp/shardgate-tour"


def block(name: str) -> str:
    """The block of README behind the mark *name*."""
    found = re.search(rf"<!-- {name} -->\n```\w+\n(.*?)```", README.read_text(), re.DOTALL)
    assert found, name
    return found[1]


@pytest.fixture
def tour() -> Iterator[Path]:
    """A folder in place of the tour's, in which the environment is the one that runs the tests."""
    folder = Path(tempfile.mkdtemp(prefix="sg-"))
    (folder / "env" / "bin").mkdir(parents=True)
    launcher = folder / "env" / "bin" / "shardgate"
    launcher.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P -m shardgate "$@"\n')
    launcher.chmod(0o755)
    python = folder / "env" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P "$@"\n')
    python.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def start(script: str, tour: Path) -> "subprocess.Popen[str]":
    """Run a block of README, with the tour's folder moved."""
    return subprocess.Popen(
        ["bash", "-euc", f"cd {README.parent}\n" + script.replace(TOUR, str(tour))],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
        process_group=0,
    )


def ran(script: str, tour: Path) -> str:
    """What a block printed, which must have succeeded."""
    process = start(script, tour)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    return output


def test_readme_tour_and_commands_run_as_they_are_written(tour: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    listener = start(block("tour: listener").replace("9180", port), tour)
    agent = None
    try:
        wait_for((tour / "run" / "agents.sock").exists, "the listener's socket", timeout=20)
        agent = start(block("tour: agent"), tour)
        assert agent.stdout is not None
        connected = 0
        while connected < 4:
            line = agent.stdout.readline()
            assert line, "the agent ended"
            connected += " connected as demo-agent-conn-" in line
        request = block("tour: request")
        # The same terminal.
        exports = request.splitlines()[0] + "\n"

        output = ran(request, tour)
        assert "allow" in output
        assert '"block"' in output
        assert all(f"demo-agent-conn-{n}" in output for n in range(1, 5))

        output = ran("set -o pipefail\n" + block("tour: look").replace("9180", port), tour)
        for part in ('"status": "ready"', 'registrations_total{result="accepted"} ', '"listeners"', '"demo-agent"'):
            assert part in output

        client = block("proxy: client").join([f"{sys.executable} -P - <<'EOF'\n", "EOF\n"])
        output = ran(client, tour)
        assert "Block(status=403" in output
        assert "by demo-agent-conn-" in output

        # What the doctor finds is this host's matter.
        commands = block("operating: commands").replace("shardgate doctor\n", "shardgate doctor || [ $? = 1 ]\n")
        output = ran(exports + commands, tour)
        assert "demo-agent: 4 of 4 connections, healthy" in output
        assert "closed 4 connections of demo-agent" in output
        assert "import names: ours alone" in output

        ran(exports + block("tour: stop"), tour)
        assert listener.wait(20) == 0
    finally:
        for process in (listener, agent):
            if process is not None:
                if process.poll() is None:
                    os.killpg(process.pid, 15)
                process.communicate(timeout=120)


def test_readme_agent_is_the_example() -> None:
    example = (README.parent / "examples" / "agent.py").read_text()
    program = block("agent: program")
    assert example.endswith(f'"""\n\n{program}')
    assert sum(bool(line.strip()) for line in program.splitlines()) <= 20


@pytest.mark.parametrize("spelling", ["true", "#true"])
def test_readme_configuration_is_accepted(tmp_path: Path, spelling: str) -> None:
    file = tmp_path / "listener.kdl"
    file.write_text(block("config: all").replace(" true", f" {spelling}"))
    done = subprocess.run(
        [sys.executable, "-P", "-m", "shardgate", "check", "--file-only", str(file)],
        capture_output=True, text=True, env=environment(), check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_readme_names_files_that_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README.read_text()):
        if not target.startswith("http") and (README.parent / "pyproject.toml").exists():
            path = README.parent / target
            if path.parts[len(README.parent.parts)] in ("examples", "deploy", "dialout", "bench", "tests"):
                assert path.exists(), target


def test_readme_names_every_command_and_every_code() -> None:
    from ipc.events import CloseCode
    from supervisor.cli.main import _COMMANDS

    text = README.read_text()
    assert [name for name in _COMMANDS if name not in text] == []
    assert [code.value for code in CloseCode if f"`{code.value}`" not in text] == []


def test_readme_says_what_the_list_of_agents_is_over_http() -> None:
    from supervisor.admin.agents import MOST, AgentList
    from supervisor.admin.server import PAGE_AGENTS

    (row,) = (line for line in README.read_text().splitlines() if line.startswith("| `/agents.json` |"))
    assert [name for name in AgentList.__struct_fields__ if f"`{name}`" not in row] == []
    assert f"({PAGE_AGENTS}, at most {MOST})" in row
