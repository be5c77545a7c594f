"""The supervisor's process: wiring, and the start and end of it."""

import asyncio
import contextlib
import datetime as dt
import os
import secrets
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import msgspec
import uvloop

from dialout import ErrorCode, Rejection
from ipc import process
from ipc.bus import close_context
from ipc.logs import configure, get_logger, log_loop_errors
from ipc.query import QueryServer, Refused
from ipc.readiness import Readiness
from ipc.rundir import RuntimeDir, RuntimeDirError, default_runtime_dir, record_of_this_process
from ipc.status import OperationRow, SupervisorRow
from ipc.version import __version__
from supervisor.acceptor import Acceptor
from supervisor.admission import Admission
from supervisor.config.errors import ConfigError
from supervisor.config.model import Config
from supervisor.config.pushed import AgentConfig
from supervisor.config_push import ConfigPush
from supervisor.custody import take_back
from supervisor.farewell import Farewell
from supervisor.fleet import Fleet
from supervisor.handoffs import Handoffs
from supervisor.handshakes import Handshakes
from supervisor.ledger import Ledger
from supervisor.listeners import Listener, ListenError, open_all
from supervisor.moves import Moves
from supervisor.newcomer import Newcomer
from supervisor.operations import CannotOperate, Operate, Operations
from supervisor.policy import Policy

EX_CONFIG = 78

STOP_GRACE = 10.0
"""Seconds that shards have to end by themselves."""

AGENTS_SOCKET = "agents.sock"
"""The Unix socket in the runtime directory where a configuration without a listener listens."""

READY_LIMIT = 5.0
"""Seconds that newcomers wait at most, after the start, for all shards to be there."""

SURPLUS_SECONDS = 30.0
"""Seconds for what is in flight on shards that an earlier supervisor left and that are too many."""

NUMBERS_AHEAD = 100_000
"""Connection numbers recorded as used ahead of use, so that a crash repeats none."""

_NEEDS_RESTART = (
    "path", "socket_mode", "socket_owner", "socket_group", "tcp_addresses", "shards", "pool", "runtime_dir",
)  # fmt: skip
"""Fields of the configuration that a reload does not change."""


class Supervisor:
    """The supervisor: everything that it has, wired together. Make it on a running loop."""

    def __init__(
        self,
        config: Config,
        policy: Policy,
        rundir: RuntimeDir,
        listeners: list[Listener],
        foreign: set[int],
        load: Callable[[], Config] | None,
        logging: tuple[str, str],
    ) -> None:
        self._started = time.monotonic()
        self._config, self._rundir, self._listeners, self._load = config, rundir, listeners, load
        self._foreign = foreign
        self._loaded_at = _now()
        self._config_error: str | None = None
        self._state = "starting"
        self._loop = asyncio.get_running_loop()
        self._log = get_logger()
        self._stop_asked = asyncio.Event()
        self.shards = config.shards or len(os.sched_getaffinity(0))
        self._readiness = Readiness()
        self._farewell = Farewell(self._readiness)
        self._ledger = Ledger(config.limits.max_connections_per_agent, rundir.read_first_number())
        self._numbers_recorded = 0
        self._handoffs = Handoffs(self._ledger, config.placement, self._farewell.reject, self.shards)
        self._moves = Moves(self._ledger, self._handoffs, lambda: self._acceptor.room)
        self._admission = Admission(
            policy,
            AgentConfig(config.agent_config),
            self._ledger,
            self._handoffs,
            self._farewell,
            self._send_probe,
        )
        self._fleet = Fleet(
            rundir,
            self._ledger,
            self._handoffs,
            self._moves,
            on_probed=self._admission.probed,
            on_freed=self._admission.freed,
            on_gone=self._admission.shard_gone,
            pool=config.pool,
            log_level=logging[0],
            log_format=logging[1],
        )
        self._operations = Operations(self._fleet, self._ledger, self._handoffs, self._moves)
        self._config_push = ConfigPush(self._ledger, self._fleet.push_config)
        self._handshakes = Handshakes(config, self._readiness, self._farewell, self._admission.admit)
        self._acceptor = Acceptor(
            listeners,
            self._handshakes.begin,
            self._farewell,
            self._count_under_way,
            lambda: self._count_under_way() + len(self._farewell),
            handshake_timeout=config.limits.handshake_timeout,
            shards=self.shards,
            gather=self._handoffs.gather,
            flush=self._handoffs.flush,
        )
        self._record_numbers()
        rundir.write_supervisor(record_of_this_process(secrets.token_hex(6), __version__))
        self._queries = QueryServer(
            rundir.supervisor_query,
            {
                "status": self._status,
                "reload": self._reload_for_query,
                "stop": self._stop_for_query,
                "operate": self._operate,
                "operation": lambda _: None if self._operations.current is None else self._operations.current.row,
                "plan": lambda _: self._operations.plan(self._config.placement),
            },
        )

    async def run(self) -> None:
        """Serve until told to stop, then stop in order: no new connections, then shards, then sockets."""
        log_loop_errors(self._loop)
        for number, act in (
            (signal.SIGTERM, self.stop),
            (signal.SIGINT, self.stop),
            (signal.SIGHUP, self._reload_for_signal),
        ):
            self._loop.add_signal_handler(number, act)
        self._entrust()
        self._fleet.start(self.shards, self._foreign)
        self._acceptor.start()
        self._announce()
        opening = self._loop.create_task(self._open_when_ready())
        process.settle_memory()
        try:
            await self._stop_asked.wait()
        finally:
            opening.cancel()
            await self._end()

    def stop(self) -> None:
        """Stop in order; asked again, at once."""
        if self._stop_asked.is_set():
            self._log.warning("stopping at once")
            self._fleet.kill()
            return
        self._stop_asked.set()

    async def _open_when_ready(self) -> None:
        # However long that takes: whoever is admitted before would come on top of what a silent shard holds.
        await self._fleet.known.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READY_LIMIT):
                await self._fleet.ready.wait()
        self._admission.open()
        self._state = "running"
        self._log.info("ready", shards=self.shards)
        if len(self._fleet.shards) > self.shards:
            # An earlier supervisor had more: by its configuration, or in the middle of a restart.
            with contextlib.suppress(CannotOperate):  # An operator was faster, and has seen how many there are.
                self._operations.scale(self.shards, SURPLUS_SECONDS, self._config.placement)

    def _entrust(self) -> None:
        """Have the shards keep the listening sockets, for the supervisor after this one."""
        sockets = {listener.kept: listener.sock.fileno() for listener in self._listeners}
        self._handoffs.entrust(sockets, self._config.orphan_timeout)

    def _record_numbers(self) -> None:
        """Keep the recorded number ahead of use; looks again before half of the room can be used up."""
        if self._ledger.next_number + NUMBERS_AHEAD // 2 > self._numbers_recorded:
            self._numbers_recorded = self._ledger.next_number + NUMBERS_AHEAD
            self._rundir.write_first_number(self._numbers_recorded)
        self._numbers_timer = self._loop.call_later(0.5, self._record_numbers)

    async def _end(self) -> None:
        self._state = "stopping"
        self._log.info("stopping", connections=self._ledger.live_total)

        def refusal(newcomer: Newcomer) -> Rejection:
            return Rejection(
                ErrorCode.SHUTTING_DOWN, "the listener is shutting down", newcomer.answer_type, retry_after_ms=1000
            )

        await self._operations.close()
        self._moves.close()
        self._config_push.close()
        self._acceptor.close()
        self._handshakes.reject_all(ErrorCode.SHUTTING_DOWN, "the listener is shutting down")
        self._admission.refuse_all(refusal)
        self._handoffs.refuse_all(refusal)
        await self._fleet.stop(STOP_GRACE)
        self._handoffs.close()
        self._farewell.close()
        self._queries.close()
        self._readiness.close()
        self._numbers_timer.cancel()
        self._rundir.write_first_number(self._ledger.next_number)
        self._rundir.forget_supervisor()
        self._log.info("stopped")

    def _count_under_way(self) -> int:
        return len(self._handshakes) + len(self._handoffs) + len(self._admission)

    def _send_probe(self, shard: int, probe: int, agent_id: str) -> bool:
        return self._fleet.probe(shard, probe, agent_id)

    def _announce(self) -> None:
        """Say where the sockets are and what to try next: as text to a person, as a log line to a machine."""
        addresses = [listener.address for listener in self._listeners]
        self._log.info("listening", addresses=addresses, runtime_dir=str(self._rundir.path), shards=self.shards)
        if not sys.stderr.isatty():
            return
        option = "" if self._rundir.path == default_runtime_dir() else f" --runtime-dir {self._rundir.path}"
        print(
            f"shardgate {__version__}: agents register at {', '.join(addresses)}\n"
            f"  shardgate status{option}         shows this supervisor and its {self.shards} shards\n"
            f"  shardgate connections{option}    shows who is connected\n"
            f"  Ctrl-C stops it",
            file=sys.stderr,
        )

    # Queries.

    def _status(self, _: dict[str, Any]) -> dict[str, Any]:
        return {
            "supervisor": SupervisorRow(
                pid=os.getpid(),
                state=self._state,
                uptime_s=round(time.monotonic() - self._started, 1),
                version=__version__,
                listeners=[listener.row for listener in self._listeners],
                accepted_total=self._handoffs.accepted_total,
                rejected_total=dict(self._farewell.rejected),
                handshakes=len(self._handshakes),
                held_descriptors=self._count_under_way() + len(self._farewell),
                config_file=self._config.source,
                config_loaded_at=self._loaded_at,
                config_error=self._config_error,
                max_connections_per_agent=self._ledger.limit,
                operation=None if self._operations.current is None else self._operations.current.row,
            ),
            "shards": self._fleet.rows(),
        }

    def _stop_for_query(self, _: dict[str, Any]) -> dict[str, Any]:
        # The answer leaves before the end begins.
        self._loop.call_soon(self.stop)
        return {}

    def _operate(self, arguments: dict[str, Any]) -> OperationRow:
        """Start an operation; what becomes of it, the query "operation" tells."""
        try:
            order = msgspec.convert(arguments, Operate)
        except msgspec.ValidationError as error:
            raise Refused(f"not an operation: {error}") from error
        operations, seconds, placement = self._operations, order.seconds, self._config.placement
        try:
            match order.what:
                case "drain":
                    operation = operations.drain(order.number, seconds)
                case "undrain":
                    operation = operations.drain(order.number, seconds, undo=True)
                case "restart":
                    operation = operations.restart(order.shards, seconds)
                case "scale":
                    operation = operations.scale(order.number, seconds, placement)
                case "rebalance":
                    operation = operations.rebalance(seconds, placement)
        except CannotOperate as error:
            raise Refused(str(error)) from error
        return operation.row

    def _reload_for_query(self, _: dict[str, Any]) -> dict[str, Any]:
        try:
            changed = self._reload()
        except ConfigError as error:
            raise Refused(str(error)) from error
        return {
            "changed": [name for name in changed if name not in _NEEDS_RESTART],
            "restart_needed": [name for name in changed if name in _NEEDS_RESTART],
        }

    def _reload_for_signal(self) -> None:
        try:
            self._reload()
        except ConfigError as error:
            self._log.error("configuration not reloaded, the old one stays", reason=str(error))

    def _reload(self) -> list[str]:
        """Read configuration and tokens again; returns the fields that changed. ConfigError leaves all as it was."""
        try:
            config = self._config if self._load is None else self._load()
            policy = Policy(config)
        except ConfigError as error:
            self._config_error = str(error)
            raise
        changed = [name for name in Config.__struct_fields__ if getattr(config, name) != getattr(self._config, name)]
        self._config, self._config_error, self._loaded_at = config, None, _now()
        self._admission.policy = policy
        if "agent_config" in changed:
            old, self._admission.pushed = self._admission.pushed, AgentConfig(config.agent_config)
            self._config_push.changed(old, self._admission.pushed)
        self._handshakes.config = config
        self._acceptor.handshake_timeout = config.limits.handshake_timeout
        self._handoffs.placement = config.placement
        self._ledger.limit = config.limits.max_connections_per_agent
        self._entrust()
        restart = [name for name in changed if name in _NEEDS_RESTART]
        self._log.info("configuration reloaded", changed=changed, restart_needed=restart)
        return changed


def serve(
    config: Config,
    *,
    load: Callable[[], Config] | None = None,
    log_level: str = "info",
    log_format: str = "auto",
) -> int:
    """Run a supervisor with *config* until it is stopped; returns the exit code.

    *load* makes the configuration again for a reload; without it a reload reads the token files only.
    """
    configure("supervisor", log_level, log_format)
    rundir = RuntimeDir(config.runtime_dir or default_runtime_dir())
    try:
        policy = Policy(config)
        process.raise_descriptor_limit()
        rundir.create()
        rundir.lock()
    except ConfigError as error:
        print(error, file=sys.stderr)
        return EX_CONFIG
    except RuntimeDirError as error:
        print(f"shardgate: {error}", file=sys.stderr)
        return 1

    async def main() -> None:
        default_path = rundir.path / AGENTS_SOCKET
        taken, foreign = await take_back(config, rundir, default_path)
        listeners = open_all(config, default_path, taken)
        try:
            supervisor = Supervisor(config, policy, rundir, listeners, foreign, load, (log_level, log_format))
        except BaseException:
            for listener in listeners:
                listener.leave()
            raise
        await supervisor.run()

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main())
    except ListenError as error:
        print(f"shardgate: {error}", file=sys.stderr)
        return 1
    finally:
        close_context()
        rundir.unlock()
    return 0


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
