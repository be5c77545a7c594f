"""The supervisor's process: from its configuration to its exit code, over the `Supervisor` objects that run in it.

Usually there is one. A second one begins after the first has handed over to another process that then failed.
"""

import asyncio
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import uvloop

from ipc import process, signals
from ipc.bus import close_context
from ipc.capacity import default_shards
from ipc.handoff import close_all
from ipc.logs import configure, flush, get_logger, take_standard_error
from ipc.messages import KeptListener
from ipc.rundir import AGENTS_SOCKET, RuntimeDir, RuntimeDirBusy, RuntimeDirError, default_runtime_dir
from ipc.stacks import stacks
from ipc.status_dir import create_status_dir
from supervisor.acceptor import TooFewDescriptors, check_descriptors, spare_descriptors
from supervisor.activation import take_passed
from supervisor.admin.server import open_admin
from supervisor.cli.errors import ExitCode
from supervisor.config.errors import ConfigError
from supervisor.config.model import Config
from supervisor.custody import take_back
from supervisor.listeners import Listener, ListenError, open_all, remove_files, wanted
from supervisor.main import Supervisor
from supervisor.newcomer import Newcomer
from supervisor.policy import Policy
from supervisor.sd import ServiceManager
from supervisor.takeover import Estate, Predecessor, TakeoverRefused, TakeoverTimedOut, check_shards

AGAIN_SECONDS = 1.0
"""Seconds between two attempts to go on after a failed handover."""

_EXIT_CODES = {
    ConfigError: ExitCode.BAD_CONFIG,
    TakeoverRefused: ExitCode.REFUSED,
    TakeoverTimedOut: ExitCode.TIMED_OUT,
}


def serve(
    config: Config,
    *,
    load: Callable[[], Config] | None = None,
    origins: Mapping[str, str] | None = None,
    log_level: str = "info",
    log_format: str = "auto",
    takeover: bool = False,
) -> int:
    """Run a supervisor with *config* until it is stopped or replaced. Returns the exit code.

    *load* reads the configuration again for a reload. Without it a reload reads only the token files. *origins* maps
    the settings to their sources, and *load* keeps it up to date. With *takeover* this process takes over from the
    running supervisor, if there is one.
    """
    configure("supervisor", log_level, log_format)
    take_standard_error()
    signals.log_to(get_logger(), stacks)
    rundir = RuntimeDir(config.runtime_dir or default_runtime_dir())
    try:
        passed = take_passed()
        life = _Life(config, rundir, load, origins or {}, (log_level, log_format), passed)
        process.raise_descriptor_limit()
        life.check_descriptors()
        rundir.create()
        if not takeover:
            rundir.lock()
        life.make_status_dir()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(life.take_over() if takeover else life.begin())
    except (
        ConfigError,
        RuntimeDirError,
        ListenError,
        TooFewDescriptors,
        TakeoverRefused,
        TakeoverTimedOut,
        OSError,
    ) as error:
        if isinstance(error, OSError):
            where = f"{error.filename}: " if error.filename else ""
            error = RuntimeDirError(f"{where}{error.strerror or error}; nothing was started")
        print(error if isinstance(error, ConfigError) else f"shardgate: {error}", file=sys.stderr)
        return _EXIT_CODES.get(type(error), ExitCode.FAILED)
    finally:
        signals.over()
        close_context()
        flush()
        rundir.unlock()
    return ExitCode.OK


class _Life:
    """The state that the supervisors of one process share. ConfigError when the policy cannot be made."""

    def __init__(
        self,
        config: Config,
        rundir: RuntimeDir,
        load: Callable[[], Config] | None,
        origins: Mapping[str, str],
        logging: tuple[str, str],
        passed: dict[KeptListener, int],
    ) -> None:
        self._config, self._rundir, self._load, self._logging, self._passed = config, rundir, load, logging, passed
        self._origins = origins
        for path in (config.path, config.admin_listen):
            if isinstance(path, str) and rundir.is_ours(Path(path).absolute()):
                raise ListenError(
                    f"{path} is a name that shardgate itself uses; choose another name, or another folder"
                )
        self._status_dir: RuntimeDir | None = None
        inherited = [] if config.path or config.tcp_addresses else [one.address for one in passed if one.kind == "tcp"]
        self._policy = Policy(config, inherited)
        self._manager = ServiceManager()
        self._default_path: Path = rundir.path / AGENTS_SOCKET

    def check_descriptors(self) -> None:
        """Raise `TooFewDescriptors` when the open files limit is too low to serve any agent."""
        config = self._config
        check_descriptors(
            shards=config.shards or default_shards(),
            listeners=len(wanted(config, self._default_path)),
            spare=spare_descriptors(
                has_admin=config.admin_listen is not None, has_status_dir=config.status_dir is not None
            ),
        )

    def make_status_dir(self) -> None:
        """Create the status directory, for read-only queries of other users, when the configuration has one."""
        config = self._config
        if config.status_dir is not None:
            self._status_dir = create_status_dir(config.status_dir, config.status_mode, config.status_group)

    async def begin(self, handshakes: Sequence[Newcomer] = ()) -> None:
        """Run without a predecessor. The runtime directory must be locked. Continues the *handshakes*."""
        self._take_status_dir([])
        taken, foreign = await take_back(self._config, self._rundir, self._default_path, self._passed)
        await self._run(Estate(taken, handshakes, (), frozenset(foreign)), lambda _: None)

    async def take_over(self) -> None:
        """Take over from the running supervisor and run; begin anew when there is none."""
        while True:
            predecessor = await Predecessor.find(self._rundir)
            if predecessor is None:
                await self.begin()
                return
            check_shards(self._rundir)
            estate = await predecessor.estate()
            if estate is not None:
                break
            if self._is_locked():
                # It died meanwhile.
                await self.begin(predecessor.handshakes)
                return
            # It has handed over to another process. Ask that one.
            close_all([newcomer.fd for newcomer in predecessor.handshakes])
        lock, *further = predecessor.locks
        self._rundir.inherit_lock(lock)
        others = [fd for fd in further if not self._rundir.is_lock(fd)]
        for fd in further:
            if fd not in others:
                self._rundir.inherit_lock(fd)
        # Also lock the names: a predecessor of an older version has no lock of them.
        self._rundir.lock_names()
        self._take_status_dir(others)

        def on_serving(supervisor: Supervisor) -> None:
            predecessor.say_taken()
            remove_files(estate.listeners, supervisor.listeners)

        close_all([fd for one, fd in estate.listeners.items() if one in self._passed])
        await self._run(estate._replace(listeners={**estate.listeners, **self._passed}), on_serving)

    def _take_status_dir(self, inherited: Sequence[int]) -> None:
        """Lock the status directory, or take its lock from the *inherited* descriptors. Takes ownership of these."""
        for fd in inherited:
            if self._status_dir is not None and self._status_dir.is_lock(fd):
                self._status_dir.inherit_lock(fd)
            else:
                # It is the lock of another directory, which this configuration does not name.
                os.close(fd)
        if self._status_dir is not None and not self._status_dir.is_locked:
            self._status_dir.lock()

    def _is_locked(self) -> bool:
        """Lock the runtime directory. False when another process has the lock."""
        try:
            self._rundir.lock()
        except RuntimeDirBusy:
            return False
        return True

    async def _run(self, estate: Estate, on_serving: Callable[[Supervisor], None]) -> None:
        supervisor = self._supervisor(estate)
        left = await supervisor.run(lambda: on_serving(supervisor))
        while left is not None and not await self._has_handed_over(supervisor, left):
            self._config, self._policy = supervisor.rules
            before = supervisor
            supervisor = await self._supervisor_again(left, before)
            if before.stop_asked:
                supervisor.stop()
            left = await supervisor.run()

    async def _supervisor_again(self, estate: Estate, before: Supervisor) -> Supervisor:
        """Make a new supervisor from the estate after a failed handover. Retry until it succeeds, or until a stop."""
        while True:
            copies = {listener: os.dup(fd) for listener, fd in estate.listeners.items()}
            try:
                supervisor = self._supervisor(estate._replace(listeners=copies))
            except (OSError, ListenError) as error:
                close_context()
                if before.stop_asked:
                    raise
                get_logger().error("cannot go on yet, trying again", reason=str(error), in_s=AGAIN_SECONDS)
                await asyncio.sleep(AGAIN_SECONDS)
            else:
                close_all(list(estate.listeners.values()))
                return supervisor

    def _supervisor(self, estate: Estate) -> Supervisor:
        admin = open_admin(self._config)
        listeners: list[Listener] = []
        try:
            listeners = open_all(self._config, self._default_path, estate.listeners)
            return Supervisor(
                self._config, self._policy, self._rundir, listeners, admin, estate, self._manager,
                self._load, self._origins, self._status_dir, self._logging,
            )  # fmt: skip
        except BaseException:
            for listener in listeners:
                listener.leave()
            if admin is not None:
                admin.close()
            raise

    async def _has_handed_over(self, supervisor: Supervisor, left: Estate) -> bool:
        """Hand the estate *left* to the supervisor's successor. True when that one serves now."""
        successor = supervisor.successor
        assert successor is not None
        directories = [self._rundir] if self._status_dir is None else [self._rundir, self._status_dir]
        taken = await successor.receives(left, [fd for directory in directories for fd in directory.lock_descriptors])
        if taken:
            get_logger().info("handed over", to_pid=successor.process.pid)
            if supervisor.stop_asked:
                # The stop request came to this process. It must not end before its successor has stopped, too.
                await successor.ends()
            else:
                self._manager.replaced_by(successor.process.pid)
                await supervisor.say_farewell()
        supervisor.close()
        return taken
