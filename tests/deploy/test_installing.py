"""The ways to install that deploy/README.md names work as they are written."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.blocks import block, names, without_mark
from support.product import short_folder
from support.waiting import wait_for

from ipc.version import __version__

WAYS = {"pipx": "local/shardgate", "uv": "local/shardgate", "offline": "usr/local/bin/shardgate"}
INTERPRETER = str(Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}")


def test_each_way_is_run_below(deploy: Path) -> None:
    assert without_mark(deploy / "README.md") == []
    assert names(deploy / "README.md", "install") == [f"install: {name}" for name in ("wheelhouse", *WAYS)]


@pytest.fixture
def install(deploy: Path, tmp_path: Path, tool: Callable[[str], str]) -> Callable[[str], None]:
    """Run a block; everything that it makes is below *tmp_path*, the wheels are those under test."""
    wheels = os.environ.get("TESTED_DISTRIBUTIONS")
    if wheels is None:
        pytest.skip("nothing was built: make test builds the wheels")
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    for name in ("pip", "pipx", "uv"):
        (bin_ / name).symlink_to(tool(name))
    (bin_ / "python3").symlink_to(INTERPRETER)
    passed_on = [name for name in os.environ if name.startswith(("PIP_", "UV_")) or "proxy" in name.lower()]
    variables = {
        "HOME": str(tmp_path), "PATH": f"{bin_}:/usr/bin:/bin",
        "PIPX_HOME": str(tmp_path / "pipx"), "PIPX_BIN_DIR": str(tmp_path / "local"),
        "PIPX_DEFAULT_PYTHON": INTERPRETER,
        "UV_TOOL_DIR": str(tmp_path / "uv"), "UV_TOOL_BIN_DIR": str(tmp_path / "local"), "UV_PYTHON": INTERPRETER,
        **{name: os.environ[name] for name in passed_on},
    }  # fmt: skip

    def run(name: str) -> None:
        script = block(deploy / "README.md", f"install: {name}").replace("WHEELS", wheels)
        for path in ("/opt", "/usr/local/bin"):
            script = script.replace(f"{path}/", f"{tmp_path}{path}/")
        (tmp_path / "usr/local/bin").mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            ["bash", "-euxc", script], cwd=tmp_path, env=variables,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=170,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout

    return run


def works(launcher: Path) -> None:
    """The command is there, with everything that it needs to run."""
    variables = {"PATH": "/usr/bin:/bin"}
    said = subprocess.run([str(launcher), "--version"], capture_output=True, text=True, check=True, env=variables)
    assert said.stdout == f"shardgate {__version__}\n"
    with short_folder() as folder:
        process = subprocess.Popen(
            [str(launcher), "run", "--shards", "1", "--runtime-dir", str(folder / "r")],
            stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=variables,
        )  # fmt: skip
        try:
            wait_for((folder / "r/shard-0.json").exists, "the shard", timeout=60)
        finally:
            process.terminate()
            _, log = process.communicate(timeout=120)
    assert process.returncode == 0, log


@pytest.mark.timeout(600)
def test_wheelhouse_is_all_that_each_way_needs(install: Callable[[str], None], tmp_path: Path) -> None:
    install("wheelhouse")
    for way, launcher in WAYS.items():
        install(way)
        works(tmp_path / launcher)
        (tmp_path / launcher).unlink()
