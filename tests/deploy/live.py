"""Our units under a real systemd, in a mount namespace of its own: ``unshare --mount python live.py FOLDER``.

It is a user's systemd, which root can run where the system has been booted by something else. The settings that only a
system's can give are left out: User=, and the file system of its own.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from support.agents import Agent
from support.product import environment
from support.waiting import wait_for

from dialout import Dialect

DEPLOY = Path(__file__).parents[2] / "deploy"
AGENTS = Path("/run/shardgate-agents/agents.sock")
STATUS = Path("/run/shardgate-status")
LEFT_OUT = re.compile(
    r"^(User|Group|SocketUser|SocketGroup|Private|Protect|ReadWritePaths|RemoveIPC).*\n", re.MULTILINE
)
NO_SYSTEMD = 77
"""The exit status that says that no systemd can be run here."""


def mount(target: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", target], check=True)


def systemctl(*arguments: str, fails: bool = False) -> str:
    done = subprocess.run(["systemctl", "--user", *arguments], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode != 0) == fails, (arguments, done)
    return done.stdout.strip()


def show(name: str) -> str:
    return systemctl("show", "--property", name, "--value", "shardgate.service")


def main_pid() -> int:
    return int(show("MainPID"))


def install(folder: Path) -> None:
    """Put units, configuration and a launcher where this systemd looks."""
    launcher, config = folder / "shardgate", folder / "shardgate.kdl"
    path = environment()["PYTHONPATH"]
    launcher.write_text(f'#!/bin/sh\nPYTHONPATH="{path}" exec "{sys.executable}" -P -m shardgate "$@"\n')
    launcher.chmod(0o755)
    nodes = [f'path "{AGENTS}"', "shards 2", 'runtime-dir "/run/user/0/shardgate"', f'status-dir "{STATUS}"']
    config.write_text("reverse-listener {\n" + "\n".join(nodes) + "\n}\n")
    # As shardgate.tmpfiles has it: inside of the service nobody may set the bit of set-group-ID.
    STATUS.mkdir()
    STATUS.chmod(0o2750)
    units = Path("/run/user/0/systemd/user")
    units.mkdir(parents=True)
    for unit in ("shardgate.service", "shardgate.socket"):
        text = LEFT_OUT.sub("", (DEPLOY / "systemd" / unit).read_text())
        text = text.replace("/usr/local/bin/shardgate", str(launcher)).replace(
            "/etc/shardgate/shardgate.kdl", str(config)
        )
        text = text.replace("--runtime-dir /run/shardgate", "--runtime-dir /run/user/0/shardgate")
        text = text.replace("WatchdogSec=30s", "WatchdogSec=2s").replace(
            "[Service]", f"[Service]\nStandardError=append:{folder}/log"
        )
        (units / unit).write_text(text)


def scenario(folder: Path) -> None:
    systemctl("start", "shardgate.socket", "shardgate.service")
    assert show("ActiveState") == "active"
    assert show("StatusText") == "2 of 2 shards running; connections: 0"
    shards = processes("shards/__main__.py --shard")
    assert (STATUS / "supervisor.query").is_socket()
    with Agent(AGENTS, 20) as agent:
        assert agent.register("a").accepted

        def is_noticed_by_nobody(old: int, restarts: int) -> None:
            wait_for(lambda: main_pid() not in (0, old) and show("SubState") == "running", "the next one", 20)
            assert agent.ping(Dialect.SDK) is not None
            assert processes("shards/__main__.py --shard") == shards
            assert show("NRestarts") == str(restarts)
            wait_for(lambda: show("StatusText") == "2 of 2 shards running; connections: 1", "the status", 20)

        print("crash")
        old = main_pid()
        os.kill(old, signal.SIGKILL)
        is_noticed_by_nobody(old, 1)

        print("takeover, twice")
        for _ in range(2):
            old = main_pid()
            systemctl("kill", "--kill-whom=main", "--signal=USR2", "shardgate.service")
            is_noticed_by_nobody(old, 1)
        # Longer than the watchdog waits: it hears from the new one.
        old = main_pid()
        time.sleep(2.5)
        assert main_pid() == old

        print("watchdog")
        old = main_pid()
        os.kill(old, signal.SIGSTOP)
        is_noticed_by_nobody(old, 2)

        print("reload")
        systemctl("reload", "shardgate.service")
        config = folder / "shardgate.kdl"
        good = config.read_text()
        config.write_text(good.replace("shards 2", "sharts 2"))
        systemctl("reload", "shardgate.service", fails=True)
        assert show("ActiveState") == "active"
        old = main_pid()
        print("takeover that fails")
        systemctl("kill", "--kill-whom=main", "--signal=USR2", "shardgate.service")
        wait_for(lambda: "the new supervisor has ended" in (folder / "log").read_text(), "the log", 20)
        assert main_pid() == old
        assert agent.ping(Dialect.SDK) is not None
        config.write_text(good)

        print("stop, after a takeover")
        systemctl("kill", "--kill-whom=main", "--signal=USR2", "shardgate.service")
        is_noticed_by_nobody(old, 2)
        systemctl("stop", "shardgate.socket", "shardgate.service")
        assert agent.at_end()
    assert show("Result") == "success"
    assert processes("shards/__main__.py --shard") == []
    log = (folder / "log").read_text()
    assert log.rstrip().endswith('"process":"supervisor"}')
    assert '"event":"stopped"' in log.splitlines()[-1]


def processes(text: str) -> list[int]:
    from support.fences import processes_with

    return sorted(int(line.split()[0]) for line in processes_with(text) if "/run/user/0/shardgate" in line)


def main(folder: Path) -> int:
    """Run the scenario; its exit status says what came of it."""
    mount("/run")
    for name in ("/run/systemd/system", "/run/user/0"):
        # The first one says that systemd has booted this system, which a user's one insists on.
        Path(name).mkdir(parents=True, mode=0o700)
    os.environ["XDG_RUNTIME_DIR"] = "/run/user/0"
    install(folder)
    manager = subprocess.Popen(
        ["/lib/systemd/systemd", "--user", "--unit=basic.target", "--log-target=console"],
        stdout=subprocess.DEVNULL, stderr=(folder / "manager").open("w"),
    )  # fmt: skip
    try:
        for _ in range(100):
            if (
                subprocess.run(
                    ["systemctl", "--user", "is-active", "basic.target"], capture_output=True, check=False
                ).stdout
                == b"active\n"
            ):
                break
            if manager.poll() is not None:
                return NO_SYSTEMD
            time.sleep(0.1)
        else:
            return NO_SYSTEMD
        scenario(folder)
    finally:
        print((folder / "manager").read_text()[-3000:])
        print((folder / "log").read_text()[-6000:] if (folder / "log").exists() else "no log")
        for pid in processes(""):
            os.kill(pid, signal.SIGKILL)
        subprocess.run(["systemctl", "--user", "exit"], check=False, timeout=120, capture_output=True)
        try:
            manager.wait(20)
        finally:
            manager.kill()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
