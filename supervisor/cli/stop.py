"""``shardgate stop``: ends the supervisor and its shards, and waits until they are gone."""

import contextlib
import os
import select
import signal
import time
from collections.abc import Sequence

import click

from ipc import query
from ipc.rundir import ProcessRecord, RuntimeDir, RuntimeDirError
from ipc.sockets import is_served
from supervisor.cli import asking
from supervisor.cli.errors import CommandError, ExitCode
from supervisor.cli.options import examples, runtime_dir_option, timeout_option
from supervisor.cli.output import note
from supervisor.words import count, duration

_ANSWER_WITHIN = 2.0
_SAY_SO_EVERY = 5.0


class _Process:
    """A process held by a pidfd. A later process with the same pid cannot be mistaken for it."""

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self.pidfd = pidfd

    @classmethod
    def of(cls, record: ProcessRecord | None, owner: int) -> "_Process | None":
        """Open the recorded process. None when it does not run, or runs as another user than *owner*."""
        if record is None:
            return None
        try:
            pidfd = os.pidfd_open(record.pid)
        except OSError:
            return None
        # Checked after the open: before it, another process could have got the pid meanwhile.
        if not record.is_alive() or not record.belongs_to(owner):
            os.close(pidfd)
            return None
        return cls(record.pid, pidfd)

    def terminate(self) -> None:
        try:
            signal.pidfd_send_signal(self.pidfd, signal.SIGTERM)
        except ProcessLookupError:
            return
        except PermissionError:
            raise CommandError(
                ExitCode.FAILED, f"pid {self.pid} is another user's; stop it as the user that runs it"
            ) from None


@click.command("stop", short_help="Stop the supervisor and its shards.", epilog=examples("shardgate stop"))
@runtime_dir_option
@timeout_option("30s", "to wait for the end")
def command(rundir: RuntimeDir, timeout: float) -> None:
    """Stop the supervisor and its shards and wait until they have ended.

    When the supervisor is down, its shards get SIGTERM. They answer requests in flight, for 10 s at most.
    """
    asking.check_access(rundir)
    deadline = time.monotonic() + timeout
    owner = rundir.path.stat().st_uid if rundir.path.exists() else os.geteuid()
    supervisor = _Process.of(rundir.read_supervisor(), owner)
    # Opened before any process ends: a supervisor that starts meanwhile, as under systemd, has other shards.
    shards = [shard for number in rundir.recorded_shards() if (shard := _Process.of(rundir.read_shard(number), owner))]
    if supervisor is not None:
        note(f"stopping shardgate in {rundir.path} (pid {supervisor.pid})")
        _ask_to_stop(rundir, supervisor, min(timeout, _ANSWER_WITHIN))
        _wait([supervisor], "the supervisor", deadline, timeout)
    elif is_served(rundir.supervisor_query):
        raise CommandError(
            ExitCode.FAILED,
            f"a supervisor answers in {rundir.path}, but its process is not visible here;"
            " stop it inside its own container",
        )
    elif not shards:
        raise asking.nothing_runs(rundir)
    left = _still_running(shards)
    if left:
        note(f"the supervisor is gone; ending {count('shard', len(left))} that it left")
        for shard in left:
            shard.terminate()
        _wait(left, count("shard", len(left)), deadline, timeout)
        _tidy(rundir)
    note("stopped")


def _ask_to_stop(rundir: RuntimeDir, supervisor: _Process, timeout: float) -> None:
    try:
        query.ask(rundir.supervisor_query, "stop", timeout=timeout)
    except query.Refused as refusal:
        raise asking.failed(refusal) from None
    except query.QueryError:
        if _still_running([supervisor]):
            # The supervisor is starting, or stuck. The signal stays pending until it can handle it.
            note("it does not answer; sending SIGTERM")
            supervisor.terminate()


def _tidy(rundir: RuntimeDir) -> None:
    """Remove the records that a killed supervisor left, unless another supervisor has started."""
    with contextlib.suppress(RuntimeDirError):
        rundir.lock()
        rundir.forget_supervisor()
        for number in list(rundir.recorded_shards()):
            record = rundir.read_shard(number)
            if record is None or not record.is_alive():
                rundir.forget_shard(number)
        rundir.unlock()


def _wait(processes: Sequence[_Process], who: str, deadline: float, timeout: float) -> None:
    began = time.monotonic()
    while left := _still_running(processes, min(_SAY_SO_EVERY, max(deadline - time.monotonic(), 0))):
        pids = ", ".join(str(process.pid) for process in left)
        if time.monotonic() >= deadline:
            raise CommandError(ExitCode.TIMED_OUT, f"{who} (pid {pids}) still runs after {timeout:g} s")
        note(f"waiting for {who} (pid {pids}) since {duration(time.monotonic() - began)}")


def _still_running(processes: Sequence[_Process], within: float = 0.0) -> list[_Process]:
    """Wait until all *processes* have ended, for *within* seconds at most. Return the running ones."""
    left = {process.pidfd: process for process in processes}
    poller = select.poll()
    for pidfd in left:
        poller.register(pidfd, select.POLLIN)
    end = time.monotonic() + within
    while left:
        for pidfd, _ in poller.poll(max(end - time.monotonic(), 0) * 1000):
            poller.unregister(pidfd)
            del left[pidfd]
        if time.monotonic() >= end:
            break
    return list(left.values())
