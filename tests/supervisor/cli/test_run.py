"""``shardgate run`` and its companions, with the real product."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.product import Product, environment
from support.waiting import wait_for

from ipc.rundir import RuntimeDir

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
StartProduct = Callable[..., Product]

CONFIG = """
reverse-listener {
    path "file.sock"
    runtime-dir "run"
    shards 3
    max-connections-per-agent 7
    max-handshakes 99
}
"""


@pytest.fixture
def configured(rundir: Path) -> Iterator[Path]:
    """A folder with a configuration; what was started with it is stopped at the end."""
    (rundir / "a.kdl").write_text(CONFIG)
    yield rundir
    directory = RuntimeDir(rundir / "run")
    records = [directory.read_supervisor(), *map(directory.read_shard, directory.recorded_shards())]
    for record in records:
        if record is not None and record.is_alive():
            os.kill(record.pid, signal.SIGKILL)


def status(folder: Path) -> Any:
    """What ``status --json`` prints once all shards run."""
    told: list[Any] = []

    def running() -> bool:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "shardgate", "status", "--json", "--runtime-dir", str(folder / "run")],
            capture_output=True, text=True, env=environment(), check=False,
        )  # fmt: skip
        told[:] = [json.loads(done.stdout)]
        return done.returncode == 0

    wait_for(running, "all to run", timeout=20)
    return told[0]


def test_run_takes_options_above_environment_above_file_above_defaults(configured: Path, cli: Cli) -> None:
    env = environment() | {
        "SHARDGATE_SHARDS": "1",
        "SHARDGATE_UDS": str(configured / "environment.sock"),
        "SHARDGATE_TCP": "127.0.0.1:0",
        "SHARDGATE_CONFIG": "a.kdl",
    }
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "shardgate", "run", "--uds", "option.sock"],
        cwd=configured, env=env, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        told = status(configured)
        supervisor = told["supervisor"]
        assert supervisor["pid"] == process.pid
        assert [(one["kind"], Path(one["address"]).name.partition(":")[0]) for one in supervisor["listeners"]] == [
            ("uds", "option.sock"),
            ("tcp", "127.0.0.1"),
        ]
        assert len(told["shards"]) == 1
        assert supervisor["max_connections_per_agent"] == 7
        assert supervisor["config_file"] == str(configured / "a.kdl")

        # A reload reads the file again, with the same options and environment above it.
        (configured / "a.kdl").write_text(CONFIG.replace("agent 7", "agent 8").replace("shards 3", "shards 5"))
        done = cli("reload", "--json", "--runtime-dir", configured / "run")
        assert (done.returncode, json.loads(done.stdout)["restart_needed"]) == (0, [])
        assert status(configured)["supervisor"]["max_connections_per_agent"] == 8

        (configured / "a.kdl").write_text(CONFIG.replace("agent 7", "agent 0"))
        done = cli("reload", "--runtime-dir", configured / "run")
        assert done.returncode == 5
        assert "max-connections-per-agent: expected 1 to" in done.stderr
        shown = cli("status", "--runtime-dir", configured / "run")
        assert shown.returncode == 0
        assert "not reloaded: " in shown.stdout

        done = cli("stop", "--runtime-dir", configured / "run")
        assert done.returncode == 0
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
    assert cli("stop", "--runtime-dir", configured / "run").returncode == 4


@pytest.mark.parametrize(
    ("options", "complaints"),
    [
        (["--config", "a.kdl", "--shards", "0", "--tcp", "x"], ["--shards: ", "--tcp: "]),
        (["--require-auth"], ["no agent could register"]),
        (["--config", "none.kdl"], ["cannot be read"]),
        (["--token-file", "none"], ["none: cannot be read"]),
    ],
)
def test_run_prints_all_problems_and_starts_nothing_when_the_configuration_is_bad(
    options: list[str], complaints: list[str], configured: Path, cli_process: Cli
) -> None:
    done = cli_process("run", "--runtime-dir", configured / "run", *options, cwd=configured)

    assert (done.returncode, done.stdout) == (78, "")
    lines = done.stderr.splitlines()
    assert len(lines) == len(complaints)
    assert all(any(complaint in line for line in lines) for complaint in complaints)
    assert not (configured / "run").exists()


def test_run_refuses_a_directory_in_use_and_stop_ends_the_shards_of_a_killed_supervisor(
    start_product: StartProduct,
) -> None:
    product = start_product(shards=2)
    pids = product.pids()
    second = product.command("run", "--uds", str(product.folder / "other.sock"))
    assert second.returncode == 1
    assert f"(pid {product.process.pid})" in second.stderr

    product.process.kill()
    product.process.wait()

    shown = product.command("status", "--json")
    assert shown.returncode == 3
    told = json.loads(shown.stdout)
    assert told["supervisor"] is None
    assert [(shard["id"], shard["pid"], shard["state"]) for shard in told["shards"]] == [
        (0, pids[1], "running"),
        (1, pids[2], "running"),
    ]

    done = product.command("stop")
    assert done.returncode == 0
    assert "ending 2 shards" in done.stderr
    after = product.command("status", "--json")
    assert (after.returncode, json.loads(after.stdout)["shards"]) == (4, [])
    assert [path.name for path in product.folder.rglob("*") if path.is_socket()] == ["agents.sock"]
    # The next supervisor replaces it. Nobody else does: it may be elsewhere, and anybody's by then.
    product.socket.unlink()
