"""The units are what systemd understands, are as locked up as they say, and fit each other and shardgate."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.product import environment

Tool = Callable[[str], str]


def settings(path: Path) -> dict[str, list[str]]:
    """All settings of a unit, in order."""
    found: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


@pytest.fixture
def units(deploy: Path, tmp_path: Path) -> Path:
    """The units in a folder of their own, with commands that exist here."""
    for unit in (deploy / "systemd").glob("shardgate.s[eo]*"):
        text = unit.read_text()
        assert unit.suffix != ".service" or "/usr/local/bin/shardgate" in text
        (tmp_path / unit.name).write_text(text.replace("/usr/local/bin/shardgate", "/bin/true"))
    return tmp_path


def run(*command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_systemd_finds_nothing_wrong_with_the_units(units: Path, tool: Tool) -> None:
    names = [str(units / "shardgate.service"), str(units / "shardgate.socket")]
    done = run(tool("systemd-analyze"), "verify", *names)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    # It does find what is wrong.
    with (units / "shardgate.service").open("a") as unit:
        unit.write("[Service]\nKilMode=process\n")
    assert "KilMode" in run(tool("systemd-analyze"), "verify", *names).stderr


def test_exposure_is_at_most_one_and_a_half(units: Path, tool: Tool) -> None:
    unit = str(units / "shardgate.service")
    done = run(tool("systemd-analyze"), "security", "--offline=true", "--threshold=15", unit)
    assert done.returncode == 0, done.stdout
    exposure = re.search(r"exposure level for shardgate.service: ([\d.]+)", done.stdout)
    assert exposure is not None, done.stdout
    assert float(exposure[1]) <= 1.5


def test_service_and_socket_are_about_the_same_things(deploy: Path) -> None:
    service, socket = settings(deploy / "systemd/shardgate.service"), settings(deploy / "systemd/shardgate.socket")
    config = (deploy / "systemd/shardgate.kdl").read_text()
    users, folders = ((deploy / f"systemd/shardgate.{kind}").read_text() for kind in ("sysusers", "tmpfiles"))
    (start,), (reload,) = service["ExecStart"], service["ExecReload"]
    (path,) = socket["ListenStream"]
    assert f'path "{path}"' in config
    assert "--runtime-dir /run/shardgate" in start
    assert "--runtime-dir /run/shardgate" in reload
    assert 'runtime-dir "/run/shardgate"' in config
    assert (service["RuntimeDirectory"], service["RuntimeDirectoryMode"]) == (["shardgate"], ["0700"])
    assert service["User"] == socket["SocketUser"] == ["shardgate"]
    assert "\nu shardgate " in users
    assert f"\ng {socket['SocketGroup'][0]} " in users
    assert f"d {Path(path).parent} " in folders
    assert "d /etc/shardgate " in folders
    # The directory for those who only look, where it is wanted: each has it as a comment.
    status = "/run/shardgate-status"
    assert f"#d {status} 2750 shardgate " in folders
    assert f'// status-dir "{status}"' in config
    assert f"-{status}" in service["ReadWritePaths"][0].split()
    # The supervisor ends within this time, see STOP_GRACE; and systemd gives up only after that.
    assert service["TimeoutStopSec"] == ["30s"]
    assert service["KillMode"] == ["process"]
    assert service["OOMPolicy"] == ["continue"]


def test_unit_has_a_share_of_the_memory_in_which_its_shards_slow_down_first(deploy: Path) -> None:
    service = settings(deploy / "systemd/shardgate.service")
    (high,), (most,) = service["MemoryHigh"], service["MemoryMax"]
    assert high.endswith("%")
    assert most.endswith("%")
    assert 50 <= int(high[:-1]) < int(most[:-1]) < 100
    # So that what the kernel ends is one shard, and not the unit.
    assert service["OOMPolicy"] == ["continue"]


def test_start_command_of_the_unit_is_one_of_ours(deploy: Path) -> None:
    for setting in ("ExecStart", "ExecReload"):
        (line,) = settings(deploy / "systemd/shardgate.service")[setting]
        command, options = line.split()[1], [word for word in line.split() if word.startswith("--")]
        shown = subprocess.run(
            [sys.executable, "-P", "-m", "shardgate", command, "--help"],
            capture_output=True, text=True, check=True, env=environment(), timeout=120,
        ).stdout  # fmt: skip
        assert all(option in shown for option in options)


@pytest.mark.skipif(os.geteuid() != 0, reason="makes users and folders below another root, which takes root")
def test_user_and_folders_are_made(deploy: Path, tmp_path: Path, tool: Tool) -> None:
    (tmp_path / "etc").mkdir()
    for command, source in (("systemd-sysusers", "sysusers"), ("systemd-tmpfiles", "tmpfiles")):
        more = ["--create"] if source == "tmpfiles" else []
        done = run(tool(command), *more, f"--root={tmp_path}", str(deploy / f"systemd/shardgate.{source}"))
        assert done.returncode == 0, done.stderr
    users = (tmp_path / "etc/passwd").read_text()
    found = re.search(r"^shardgate:x:(\d+):(\d+):[^:]*:[^:]*:(.*)$", users, re.MULTILINE)
    assert found is not None, users
    assert found[3].endswith("nologin")
    uid, gid = int(found[1]), int(found[2])
    config, sockets = (tmp_path / "etc/shardgate").stat(), (tmp_path / "run/shardgate-agents").stat()
    assert (config.st_uid, config.st_gid, config.st_mode & 0o7777) == (0, gid, 0o750)
    assert (sockets.st_uid, sockets.st_mode & 0o7777) == (uid, 0o755)


def test_kernel_settings_are_settings_of_this_kernel(deploy: Path) -> None:
    for name, (value,) in settings(deploy / "systemd/shardgate.sysctl").items():
        assert Path("/proc/sys", *name.strip().split(".")).exists(), name
        assert int(value) > 0
