"""Shards as processes: started by exec, watched by pidfd. No other module starts a process.

No fork without exec and no multiprocessing: a forked shard would share the loop's epoll set and hold copies of agents'
descriptors, which keep an agent half-open after its real owner died. A session of their own keeps the terminal's Ctrl-C
from reaching the shards beside the supervisor.
"""

import contextlib
import os
import signal
import subprocess
import sys

import msgspec

from ipc.options import PoolOptions
from ipc.rundir import ProcessRecord, RuntimeDir


class ShardProcess:
    """A running shard: our child, or one that an earlier supervisor left.

    *pidfd* becomes readable when it has ended. Unlike a pid it cannot come to mean another process.
    """

    def __init__(self, pid: int, pidfd: int, *, is_child: bool) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.is_child = is_child

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens when the process has ended."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)

    def reap(self) -> str:
        """Collect the ended process and say how it ended, for people. Call once, when *pidfd* is readable."""
        if not self.is_child:
            return "ended"
        result = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)
        if result is None or result.si_code == os.CLD_EXITED:
            return f"exit status {0 if result is None else result.si_status}"
        name = signal.Signals(result.si_status).name
        return f"killed by {name}" + (", perhaps out of memory" if name == "SIGKILL" else "")

    def close(self) -> None:
        """Close *pidfd*."""
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


def start_shard(
    shard: int,
    epoch: str,
    rundir: RuntimeDir,
    options: PoolOptions,
    log_level: str,
    log_format: str,
    status_dir: RuntimeDir | None = None,
) -> ShardProcess:
    """Start shard *shard*; OSError when the process cannot be made."""
    command = [
        sys.executable,
        # Not the current directory, where a folder called "shards" may lie.
        "-P",
        "-m",
        "shards",
        "--shard",
        str(shard),
        "--epoch",
        epoch,
        "--parent",
        str(os.getpid()),
        "--runtime-dir",
        str(rundir.path),
        "--pool",
        msgspec.json.encode(options).decode(),
        "--log-level",
        log_level,
        "--log-format",
        log_format,
    ]
    if status_dir is not None:
        command += ["--status-dir", str(status_dir.path)]
    # Standard output would mix with what the command line prints; log lines go to standard error.
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, close_fds=True, start_new_session=True)
    pidfd = os.pidfd_open(child.pid)
    # `reap` collects the status; Popen must neither do so nor warn that nobody did.
    child.returncode = 0
    return ShardProcess(child.pid, pidfd, is_child=True)


def adopt_shard(record: ProcessRecord) -> ShardProcess | None:
    """The living process of *record*; None when it has ended or its pid belongs to another process by now."""
    try:
        pidfd = os.pidfd_open(record.pid)
    except ProcessLookupError:
        return None
    # Looked at after the pidfd was opened, so that the two are the same process.
    if not record.is_alive() or not record.belongs_to(os.geteuid()):
        os.close(pidfd)
        return None
    return ShardProcess(record.pid, pidfd, is_child=False)
