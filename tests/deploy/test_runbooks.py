"""Each command of the runbooks does what it is for, in the order of a host's life."""

import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.agents import Agent
from support.blocks import block, names, without_mark
from support.fences import processes_with
from support.product import environment, short_folder
from support.waiting import wait_for

from dialout import Dialect

HERE = Path(__file__).parent
# What only root may do, or what would change this host, does nothing. Each is checked by a tool of its own elsewhere.
LEFT_OUT = ("systemd-sysusers", "sysctl")


@pytest.fixture
def root(deploy: Path) -> Iterator[Path]:
    """A folder that stands for the root of a host, with shardgate installed."""
    with short_folder() as root:
        bin_ = root / "usr/local/bin"
        bin_.mkdir(parents=True)
        (root / "opt/shardgate/bin").mkdir(parents=True)
        shutil.copytree(deploy, root / "deploy")
        for path in (root / "deploy/systemd").iterdir():
            path.write_text(moved(path.read_text(), root))
        python = f'PYTHONPATH="{environment()["PYTHONPATH"]}:{HERE.parent}" exec "{sys.executable}" -P'
        launchers = {"shardgate": f"{python} -m shardgate", "../../../opt/shardgate/bin/pip": "exec echo upgrading:"}
        launchers |= {name: f'{python} "{HERE}/systemctl.py" "{root}" {name}' for name in ("systemctl", "journalctl")}
        launchers |= dict.fromkeys(LEFT_OUT, "exec true")
        launchers["systemd-tmpfiles"] = f'mkdir -p "{root}/etc/shardgate" "{root}/run/shardgate-agents"; exec true'
        for name, command in launchers.items():
            (bin_ / name).write_text(f'#!/bin/sh\n{command} "$@"\n')
            (bin_ / name).chmod(0o755)
        try:
            yield root
        finally:
            subprocess.run([bin_ / "shardgate", "stop", "--runtime-dir", root / "run/shardgate"], check=False)
            left = processes_with(str(root / "run/shardgate"))
            for line in left:
                os.kill(int(line.split()[0]), 9)
            print((root / "journal").read_text() if (root / "journal").exists() else "no journal")
    assert left == []


def moved(text: str, root: Path) -> str:
    """*text* with the paths of a host below *root*, with groups that exist here, and with a port that is free."""
    for path in ("/etc/", "/run/shardgate", "/usr/local/bin/", "/opt/shardgate"):
        text = text.replace(path, f"{root}{path}")
    text = text.replace("127.0.0.1:9180", "127.0.0.1:0")
    return re.sub(r"(-g|chgrp) shardgate\b", rf"\1 {os.getegid()}", text)


@pytest.fixture
def run(deploy: Path, root: Path) -> Callable[..., str]:
    """Run the block of a runbook, or what is given in its place; what it prints."""

    def run(name: str, change: Callable[[str], str] = lambda script: script) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", change(moved(block(deploy / "RUNBOOKS.md", f"runbook: {name}"), root))],
            cwd=root / "deploy", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=environment() | {
                "PATH": f"{root}/usr/local/bin:{os.environ['PATH']}:/usr/sbin:/sbin",
                "SHARDGATE_RUNTIME_DIR": str(root / "run/shardgate"),
            },
            check=False, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        return done.stdout

    return run


def test_each_runbook_is_run_below(deploy: Path) -> None:
    runbooks = deploy / "RUNBOOKS.md"
    assert without_mark(runbooks) == []
    used = set(re.findall(r'run\(\s*"([^"]+)"', Path(__file__).read_text()))
    assert {name.removeprefix("runbook: ") for name in names(runbooks, "runbook")} == used


@pytest.mark.timeout(600)
def test_runbooks_do_what_they_are_for(root: Path, run: Callable[..., str]) -> None:
    agents = root / "run/shardgate-agents/agents.sock"

    shown = run("first install")
    assert "running" in shown
    first = token_in(shown)
    with Agent(agents) as agent:
        assert agent.register("waf-1", auth_token=first).accepted

        with Agent(agents) as stranger:
            assert stranger.register("waf-1", auth_token="wrong").error_code == "auth_failed"
        assert "auth_failed" in run("an agent cannot register")

        def old_digest(script: str) -> str:
            listed = f"shardgate token list --json {root}/etc/shardgate/tokens"
            return script.replace("OLD_DIGEST", f'"$({listed} | {FIRST_DIGEST})"')

        second = token_in(run("rotating a token", old_digest))
        with Agent(agents) as late, Agent(agents) as newer:
            assert late.register("waf-1", auth_token=first).error_code == "auth_failed"
            assert newer.register("waf-1", auth_token=second).accepted
        assert agent.ping(Dialect.SDK) is not None, "connected agents are not asked again"

        (supervisor,) = (line for line in processes_with("shardgate run") if str(root) in line and "shards" not in line)
        os.kill(int(supervisor.split()[0]), 9)
        # Both exit with 3, which ends a script.
        shown = run("the supervisor does not answer", lambda script: script.replace(" status", " status || true;", 1)
                    .replace("status shardgate", "status shardgate || true"))  # fmt: skip
        assert "supervisor is down" in shown
        assert "\nfailed\n" in shown
        assert shown.rstrip().splitlines()[-2].split()[1] == "running"
        assert agent.ping(Dialect.SDK) is not None, "what serves goes on"

        assert "shard" in run("a shard keeps dying")
        run("a shard keeps dying, drain")

        before = processes_with("shards/__main__.py --shard")
        shown = run("upgrade")
        assert "connections moved" in shown or "connection moved" in shown
        assert not set(before) & set(ours(root)), "all shards are new"
        assert agent.ping(Dialect.SDK) is not None, "no agent reconnects"

        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        assert str(limit) in run("descriptors")
        run("descriptors, more", lambda script: script.replace("524288", str(limit)))
        wait_for(lambda: len(ours(root)) == 4, "four shards")
        assert agent.ping(Dialect.SDK) is not None


FIRST_DIGEST = f"""{sys.executable} -c 'import json, sys; print(json.load(sys.stdin)[0]["digest"])'"""


def ours(root: Path) -> list[str]:
    return [line for line in processes_with("shards/__main__.py --shard") if str(root) in line]


def token_in(shown: str) -> str:
    """The token that ``token new`` has printed."""
    found = re.search(r"^\s+([A-Za-z0-9_-]{40,})$", shown, re.MULTILINE)
    assert found, shown
    return found[1]
