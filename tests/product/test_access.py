"""Two levels of access: the runtime directory for who acts, the status directory for who looks."""

import grp
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.agents import Agent
from support.product import Product, StartProduct, environment, short_folder
from support.waiting import wait_for


def configured(folder: Path, *nodes: str) -> tuple[str, ...]:
    """Options for a product with a status directory below *folder*."""
    file = folder / "a.kdl"
    lines = "\n    ".join((f'status-dir "{folder}/look"', *nodes))
    file.write_text(f"reverse-listener {{\n    {lines}\n}}\n")
    return ("--config", str(file))


def look(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run a command on the status directory."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "shardgate", *arguments, "--runtime-dir", str(folder / "look")],
        capture_output=True, text=True, env=environment(), check=False, timeout=120,
    )  # fmt: skip


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path, for sockets, that others may enter."""
    with short_folder() as folder:
        folder.chmod(0o755)
        yield folder


def test_the_status_directory_answers_every_question_and_obeys_no_order(
    start_product: StartProduct, folder: Path
) -> None:
    product = start_product(*configured(folder))
    with Agent(product.socket) as agent:
        assert agent.register("waf-1").accepted
        told = json.loads(look(folder, "status", "--json").stdout)
        assert told["supervisor"]["pid"] == product.process.pid
        assert [shard["state"] for shard in told["shards"]] == ["running", "running"]
        assert [row["agent_id"] for row in json.loads(look(folder, "agents", "--json").stdout)] == ["waf-1"]
        assert [row["agent_id"] for row in json.loads(look(folder, "connections", "--json").stdout)] == ["waf-1"]
        assert json.loads(look(folder, "why", "waf-1", "--json").stdout)["healthy"] is True
        assert '"registered"' in look(folder, "events", "--json").stdout
        assert look(folder, "rebalance", "--dry-run").stdout == "nothing to move\n"

        for order in (
            ["kick", "waf-1"], ["drain", "0"], ["restart", "0"], ["scale", "1"], ["rebalance"], ["reload"],
            ["reload", "--dry-run"], ["log-level", "error"], ["config", "show"], ["send", "waf-1"],
        ):  # fmt: skip
            done = look(folder, *order)
            assert done.returncode == 5, order
            assert "this socket only answers questions" in done.stderr, order
        assert len(product.connections()) == 1
        assert product.query("status")["supervisor"]["log_level"] == "info"


def test_the_status_directory_has_its_mode_its_group_and_nothing_for_proxies(
    start_product: StartProduct, folder: Path
) -> None:
    groups = os.getgroups() if os.geteuid() else [group.gr_gid for group in grp.getgrall()]
    gid = next((group for group in groups if group != os.getegid()), os.getegid())
    product = start_product(*configured(folder, f"status-group {gid}"))

    directory = (folder / "look").stat()
    assert (stat.S_IMODE(directory.st_mode), directory.st_gid) == (0o2750, gid)
    sockets = {path.name: path.stat() for path in (folder / "look").iterdir() if path.is_socket()}
    assert set(sockets) == {"supervisor.query", "shard-0.query", "shard-1.query"}
    assert {(stat.S_IMODE(found.st_mode), found.st_gid) for found in sockets.values()} == {(0o660, gid)}
    assert stat.S_IMODE(product.runtime_dir.stat().st_mode) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
def test_another_user_of_the_group_may_look_and_one_outside_may_not(start_product: StartProduct, folder: Path) -> None:
    start_product(*configured(folder, "status-group 12345"))
    code = "import os, sys; from supervisor.cli.main import main; import supervisor.cli.status, supervisor.cli.stop\n"
    code += "import ipc.logs\n"
    code += "os.setgroups([]); os.setgid(int(sys.argv[1])); os.setuid(65534)\n"
    code += f"sys.exit(main([*sys.argv[2:], '--runtime-dir', {str(folder / 'look')!r}]))"

    def as_other(gid: int, *arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-c", code, str(gid), *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=environment(), check=False, timeout=120)

    inside = as_other(12345, "status")
    assert (inside.returncode, inside.stderr) == (0, "")
    assert "running" in inside.stdout
    outside = as_other(54321, "status")
    assert outside.returncode == 4
    assert "permission denied" in outside.stderr
    # The record names the process; to end it takes its user.
    assert as_other(12345, "stop").returncode != 0


def test_a_status_directory_that_another_shardgate_uses_is_refused(start_product: StartProduct, folder: Path) -> None:
    options = configured(folder)
    first = start_product(*options)
    second = first.folder.parent / "second"
    done = subprocess.run(
        [sys.executable, "-P", "-m", "shardgate", "run", *options, "--runtime-dir", str(second)],
        capture_output=True, text=True, env=environment(), check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert f"{folder}/look: in use by a running supervisor" in done.stderr
    assert look(folder, "status").returncode == 0


def test_the_status_directory_outlives_the_supervisor_and_is_empty_after_the_end(
    start_product: StartProduct, folder: Path
) -> None:
    product: Product = start_product(*configured(folder))
    product.process.kill()
    product.process.wait()
    told = json.loads(look(folder, "status", "--json").stdout)
    assert (told["supervisor"], [shard["state"] for shard in told["shards"]]) == (None, ["running", "running"])
    product.start()
    product.wait_until_running()
    assert look(folder, "status").returncode == 0
    product.process.terminate()
    assert product.process.wait(20) == 0
    wait_for(lambda: [path.name for path in (folder / "look").iterdir()] == ["lock"], "an empty directory")


def test_the_status_directory_goes_on_through_takeovers(start_product: StartProduct, folder: Path) -> None:
    options = configured(folder)
    product = start_product(*options)
    with Agent(product.socket) as agent:
        assert agent.register("waf-1").accepted
        for _ in range(2):
            before = product.query("status")["supervisor"]["pid"]
            product.take_over()
            told = json.loads(look(folder, "status", "--json").stdout)
            assert told["supervisor"]["pid"] not in (None, before)
            assert [shard["connections"] for shard in told["shards"]].count(1) == 1
    # Nobody else may have it meanwhile.
    second = product.folder.parent / "second"
    done = subprocess.run(
        [sys.executable, "-P", "-m", "shardgate", "run", *options, "--runtime-dir", str(second)],
        capture_output=True, text=True, env=environment(), check=False, timeout=120,
    )  # fmt: skip
    assert (done.returncode, "in use by a running supervisor" in done.stderr) == (1, True)
