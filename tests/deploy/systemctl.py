"""What ``systemctl`` and ``journalctl`` do in the runbooks, where no systemd runs: ``python systemctl.py ROOT NAME …``.

It reads the unit of the folder ROOT, and does with the real shardgate what systemd would do with it.
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path

from support.waiting import wait_for

from ipc.rundir import RuntimeDir


def main(root: Path, name: str, *arguments: str) -> int:
    """Do what the command line says; the exit status is the command's."""
    log, rundir = root / "journal", RuntimeDir(root / "run/shardgate")
    if name == "journalctl":
        print(log.read_text() if "--dmesg" not in arguments else "")
        return 0
    unit = (root / "etc/systemd/system/shardgate.service").read_text()
    settings = dict(line.split("=", 1) for line in unit.splitlines() if "=" in line and not line.startswith("#"))

    def pid() -> int:
        record = rundir.read_supervisor()
        return record.pid if record is not None and record.is_alive() else 0

    match arguments:
        case ["daemon-reload"]:
            pass
        case ["enable", "--now", *_] | ["start", "shardgate"]:
            for folder in ("run/shardgate", "run/shardgate-agents"):
                (root / folder).mkdir(mode=0o700, parents=True, exist_ok=True)
            log.touch()
            lines = log.read_text().count('"event":"ready"')
            with log.open("ab") as journal:
                subprocess.Popen(
                    shlex.split(settings["ExecStart"]), stdin=subprocess.DEVNULL, stdout=journal, stderr=journal
                )
            wait_for(lambda: log.read_text().count('"event":"ready"') > lines, "the start", 20)
        case ["reset-failed", "shardgate"]:
            pass
        case ["status", "shardgate"]:
            print("active" if pid() else "failed")
            return 0 if pid() else 3
        case ["reload", "shardgate"]:
            return subprocess.run(shlex.split(settings["ExecReload"]), check=False).returncode
        case ["kill", "--kill-whom=main", "--signal=USR2", "shardgate"]:
            old, lines = pid(), log.read_text().count('"event":"ready"')
            os.kill(old, 12)
            # systemd does not wait; whoever types the next command does.
            wait_for(
                lambda: pid() not in (0, old) and log.read_text().count('"event":"ready"') > lines, "the takeover", 30
            )
        case ["show", "--property", "MainPID", "--value", "shardgate"]:
            print(pid())
        case _:
            print("not known here:", arguments, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
