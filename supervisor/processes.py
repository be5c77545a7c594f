"""Start shards and the next supervisor by exec, and watch them by pidfd. No other module starts processes.

Neither fork without exec nor multiprocessing is used. A forked shard would share the loop's epoll set. It would also
hold copies of agents' descriptors, which keep an agent half-open after its real owner died. Each shard has its own
session, so that the terminal's Ctrl-C reaches only the supervisor.
"""

import contextlib
import errno
import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from ipc import signals
from ipc.options import PoolOptions
from ipc.rundir import ProcessRecord, RuntimeDir

IMPORT_PATH = "SHARDGATE_IMPORT_PATH"
"""The environment variable with the import path of a shard. ``shards/__main__.py`` reads it."""


_children: set[int] = set()
"""The pids of child processes that are not collected yet."""


class Process:
    """A running process of ours: our child, or a shard that an earlier supervisor left, or the next supervisor.

    *pidfd* becomes readable when the process has ended. Unlike a pid it never refers to another process later.
    """

    def __init__(self, pid: int, pidfd: int, *, is_child: bool) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.is_child = is_child
        self._was_killed = False

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens when the process has ended."""
        self._was_killed |= number is signal.SIGKILL
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)

    def cpu_seconds(self) -> float | None:
        """The processor time that its main thread has used (proc(5), stat); None when that cannot be read.

        Shards do all of their work in the main thread. ZeroMQ's threads run on when that one hangs.
        """
        try:
            stat = Path(f"/proc/{self.pid}/task/{self.pid}/stat").read_bytes()
        except OSError:
            return None
        # The fields 14 and 15 of all, utime and stime. They are counted from behind the name, which may hold any bytes.
        user, system = stat[stat.rindex(b")") + 2 :].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def reap(self) -> str:
        """Collect the ended process. Returns how it ended, as text for people.

        Call it once, when *pidfd* is readable.
        """
        if not self.is_child:
            return "ended"
        result = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)
        _children.discard(self.pid)
        if result is None or result.si_code == os.CLD_EXITED:
            return f"exit status {0 if result is None else result.si_status}"
        number = result.si_status
        if number == signal.SIGKILL and not self._was_killed:
            return "killed by SIGKILL, perhaps out of memory"
        # Real-time signals have no names.
        names = {member.value: member.name for member in signal.Signals}
        return f"killed by {names.get(number, f'signal {number}')}"

    def close(self) -> None:
        """Close *pidfd*. A child that is not collected by then counts as an orphan in `reap_orphans`."""
        _children.discard(self.pid)
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
) -> Process:
    """Start the process of a shard. OSError when it cannot be started."""
    command = [
        *_interpreter(),
        str(Path(_package("shards"), "__main__.py")),
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
    # Shards share this process's output: log lines go to standard error, so that standard output stays clean.
    environment = {**os.environ, IMPORT_PATH: import_path()}
    with signals.held_back():
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, close_fds=True, start_new_session=True, env=environment
        )
    try:
        pidfd = os.pidfd_open(child.pid)
    except OSError:
        # Out of descriptors: this process could neither watch nor end it.
        child.kill()
        child.wait()
        raise
    _children.add(child.pid)
    # `reap` collects the status. Popen must not collect it, and must not warn that it was not collected.
    child.returncode = 0
    return Process(child.pid, pidfd, is_child=True)


def reap_orphans() -> bool:
    """Collect ended processes that this one did not start. True when a started one has ended, too.

    An ended child of ours hides the other ended processes until `Process.reap` has collected it.
    """
    try:
        while (found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
            if found.si_pid in _children:
                return True
            os.waitid(os.P_PID, found.si_pid, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        pass  # There are no children at all.
    return False


def import_path() -> str:
    """The import path of this process, for a shard: the version of the interpreter and the entries of sys.path.

    A shard with its own import path could find another package: with ``python -m`` the current directory comes first
    for this process, and is missing for a shard.
    """
    return "\n".join([str(sys.hexversion), *(entry or os.getcwd() for entry in sys.path)])  # noqa: PTH109 - a string


def _interpreter() -> list[str]:
    """The interpreter with its present flags for imports. -P keeps the folder of the script out of the import path."""
    flags = {
        "-I": sys.flags.isolated,
        "-E": sys.flags.ignore_environment,
        "-s": sys.flags.no_user_site,
        "-S": sys.flags.no_site,
        "-B": sys.flags.dont_write_bytecode,
    }
    return [sys.executable, *(flag for flag, is_set in flags.items() if is_set), "-P"]


def _package(name: str) -> str:
    """The folder of a package of ours, without importing it. FileNotFoundError when there is none."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(errno.ENOENT, f"there is no package '{name}' any more; install shardgate again")
    return next(iter(spec.submodule_search_locations))


def start_successor(variables: Mapping[str, str]) -> Process:
    """Start the command of this process again, from the installed code, to take over from this process.

    *variables* are added to its environment. It is started as an orphan, and so becomes a child of systemd. systemd
    waits for the end of a main process only if that was its child when it was named (MAINPID). Otherwise systemd kills
    it at once. OSError when the process cannot be made.
    """
    done = subprocess.run(
        ["/bin/sh", "-c", '"$@" >&2 & echo $!', "sh", *successor_command(sys.orig_argv)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, close_fds=True, env={**os.environ, **variables}, check=False,
    )  # fmt: skip
    process = hold(int(done.stdout or 0))
    if process is None:
        raise OSError(errno.ECHILD, "it ended at once")
    return process


def successor_command(arguments: Sequence[str]) -> list[str]:
    """The command line that takes over from the process with these *arguments* (sys.orig_argv).

    A script is run by its own name, so that its first line selects the interpreter. That may change with an upgrade.
    """
    script = arguments[1:2]
    is_script = bool(script) and not script[0].startswith("-") and os.access(script[0], os.X_OK)
    command = list(arguments[1:]) if is_script else [sys.executable, *arguments[1:]]
    return command if "--takeover" in command else [*command, "--takeover"]


def hold(pid: int) -> Process | None:
    """The process *pid*; None when it has ended. The caller must know that the pid was not reused."""
    try:
        return Process(pid, os.pidfd_open(pid), is_child=False)
    except OSError:
        return None


def adopt_shard(record: ProcessRecord) -> Process | None:
    """The running process of *record*; None when it has ended, or its pid belongs to another process now."""
    try:
        pidfd = os.pidfd_open(record.pid)
    except ProcessLookupError:
        return None
    # The check comes after pidfd_open, so that it applies to the process of the pidfd.
    if not record.is_alive() or not record.belongs_to(os.geteuid()):
        os.close(pidfd)
        return None
    return Process(record.pid, pidfd, is_child=False)
