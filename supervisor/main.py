"""The supervisor: it connects all of its parts, and controls the start, the handover and the end."""

import asyncio
import contextlib
import datetime as dt
import os
import secrets
import signal
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import msgspec

from dialout import ErrorCode, Rejection, awake
from ipc import process, signals
from ipc.bus import close_context
from ipc.capacity import default_shards
from ipc.events import Command, ListAgents
from ipc.handoff import close_all
from ipc.logs import get_logger, level_name, log_loop_errors, say
from ipc.messages import KeptListener
from ipc.query import Refused, typed
from ipc.query_server import LOOKERS, Method, QueryServer
from ipc.readiness import Readiness
from ipc.rundir import RuntimeDir, default_runtime_dir, record_of_this_process
from ipc.status import OperationRow, SupervisorRow
from ipc.status_dir import READS_ONLY, socket_mode
from ipc.timers import Every, all_of, report
from ipc.version import __version__
from supervisor.acceptor import Acceptor, TooFewDescriptors, spare_descriptors
from supervisor.admin import http
from supervisor.admin.agents import AgentLists
from supervisor.admin.observer import Observer
from supervisor.admin.server import Admin
from supervisor.admission import Admission
from supervisor.answers import Answers
from supervisor.config.errors import ConfigError
from supervisor.config.model import Config
from supervisor.config.pushed import AgentConfig
from supervisor.config.show import Setting, changes, settings
from supervisor.config_push import ConfigPush
from supervisor.farewell import LINGER_SECONDS, Farewell
from supervisor.fleet import Fleet
from supervisor.footing import Footing
from supervisor.gathered import Gathered
from supervisor.handoffs import Handoffs
from supervisor.handshakes import Handshakes
from supervisor.journal import Journal
from supervisor.ledger import Ledger
from supervisor.listeners import Listener
from supervisor.merge import Status
from supervisor.moves import Moves
from supervisor.newcomer import Newcomer
from supervisor.operations import CannotOperate, Operate, Operations
from supervisor.policy import Policy
from supervisor.quotas import Quotas
from supervisor.reaper import Reaper
from supervisor.sd import ServiceManager
from supervisor.takeover import (
    FINISH_LIMIT,
    PAUSE,
    Estate,
    Succession,
    Successor,
)

STOP_GRACE = 10.0
"""Seconds that shards have to end after a Stop command, before SIGTERM."""

READY_LIMIT = 5.0
"""Seconds that connections wait at most, after the start, until all shards are running or down."""

SURPLUS_SECONDS = 30.0
"""Seconds to move the connections off surplus shards that an earlier supervisor left."""

RECORD_SECONDS = 0.5
"""Seconds between two checks of the recorded number, and of how late the loop is."""

NUMBERS_AHEAD = 100_000
"""Connection numbers that are recorded as used ahead of use, so that none is repeated after a crash."""


class _Reload(msgspec.Struct):
    dry_run: bool = False


class Supervisor:
    """The supervisor with all of its parts. Create it on a running loop."""

    def __init__(
        self,
        config: Config,
        policy: Policy,
        rundir: RuntimeDir,
        listeners: list[Listener],
        admin: Listener | None,
        estate: Estate,
        manager: ServiceManager,
        load: Callable[[], Config] | None,
        origins: Mapping[str, str],
        status_dir: RuntimeDir | None,
        logging: tuple[str, str],
    ) -> None:
        # Find missing places before anything is created. The status directory is not checked: it can wait.
        rundir.check_usable()
        self._started = time.monotonic()
        self._config, self._rundir, self.listeners, self._load = config, rundir, listeners, load
        self._estate, self._manager = estate, manager
        self.successor: Successor | None = None
        self._origins, self._started_with = origins, config
        self._loaded_at = _now()
        self._config_error: str | None = None
        self._reloads = {"success": 0, "failure": 0}
        self._reloads_for_signals = Gathered(self._reload_for_signals)
        self._state = "starting"
        self._loop = asyncio.get_running_loop()
        self._log = get_logger()
        self.stop_asked = False
        self._over = asyncio.Event()
        self._left: Estate | None = None
        self._cpu = process.CpuMeter()
        self.shards = config.shards or default_shards()
        self._readiness = Readiness()
        self._ledger = Ledger(config.limits.max_connections_per_agent, rundir.read_first_number())
        self._set_quotas(config, policy)
        self._journal = Journal(self._ledger)
        self._directories = [rundir] if status_dir is None else [rundir, status_dir]
        self._footing = Footing(self._directories, self._journal)
        self._farewell = Farewell(self._readiness, self._journal.refused)
        self._numbers_recorded = 0
        self._handoffs = Handoffs(self._ledger, config.placement, self._farewell.reject, self.shards)
        self._handoffs.on_accepted = self._journal.accepted
        self._moves = Moves(self._ledger, self._handoffs, lambda: self._acceptor.room)
        self._moves.on_moved = self._journal.moved
        self._admission = Admission(
            policy,
            AgentConfig(config.agent_config),
            self._ledger,
            self._handoffs,
            self._farewell,
            self._send,
        )
        self._fleet = Fleet(
            rundir,
            self._ledger,
            self._handoffs,
            self._moves,
            self._journal,
            on_probed=self._admission.probed,
            on_freed=self._admission.freed,
            on_gone=self._admission.shard_gone,
            pool=config.pool,
            log_level=logging[0],
            log_format=logging[1],
            status_dir=status_dir,
        )
        self._answers = Answers(
            self._ledger,
            self._fleet,
            self._journal,
            lambda: self._admission.policy,
            lambda: time.monotonic() - self._started,
        )
        self._operations = Operations(self._fleet, self._ledger, self._handoffs, self._moves, self._journal)
        self._config_push = ConfigPush(self._ledger, self._fleet.lines.send)
        self._handshakes = Handshakes(config, self._readiness, self._farewell, self._admission.admit)
        self._acceptor = Acceptor(
            listeners,
            self._handshakes,
            self._farewell,
            self._count_under_way,
            lambda: self._count_under_way() + len(self._farewell),
            handshake_timeout=config.limits.handshake_timeout,
            shards=self.shards,
            spare=spare_descriptors(has_admin=admin is not None, has_status_dir=status_dir is not None),
            gather=self._handoffs.gather,
            flush=self._handoffs.flush,
        )
        self._lag_ms = 0.0
        self._due = self._loop.time()
        self._record_numbers()
        self._numbers_timer = Every(RECORD_SECONDS, self._record_numbers)
        self._admin = None if admin is None else self._make_admin(admin)
        for directory in self._directories:
            directory.write_supervisor(record_of_this_process(secrets.token_hex(6), __version__))
        reading: dict[str, Method] = {
            "status": lambda _: self.status(),
            "operation": lambda _: None if self._operations.current is None else self._operations.current.row,
            "plan": lambda _: self._operations.plan(self._config.placement),
            **self._answers.reading,
        }
        acting: dict[str, Method] = {
            "reload": self._reload_for_query,
            "stop": self._stop_for_query,
            "operate": self._operate,
            # It changes nothing, but it shows values that help to guess a token.
            "config": self._show_config,
            **self._answers.acting,
        }
        self._queries = [QueryServer(rundir.supervisor_query, reading | acting)]
        if status_dir is not None:
            path, mode = status_dir.supervisor_query, partial(socket_mode, status_dir.path)
            self._queries.append(
                QueryServer(path, reading, mode=mode, refusal=READS_ONLY, access=LOOKERS, may_wait=True)
            )
        self._succession = Succession(rundir, manager, self._asked_to_hand_over)
        self._look_after_sockets()

    async def run(self, on_serving: Callable[[], None] = lambda: None) -> Estate | None:
        """Serve until told to stop. Then stop in order: new connections first, then shards, then sockets.

        *on_serving* is called when the shards have been started, just before agents are accepted. After a request to
        hand over, this returns the estate for the *successor*. The caller must call `close` afterwards.
        """
        log_loop_errors(self._loop)
        for number, act in (
            (signal.SIGTERM, self.stop),
            (signal.SIGINT, self.stop),
            (signal.SIGHUP, self._reloads_for_signals.ask),
            (signal.SIGUSR2, self._replace_for_signal),
        ):
            signals.on(self._loop, number, act)
        reaper = Reaper()
        self._entrust()
        if self._admin is not None:
            await self._admin.start()
        self._fleet.start(self.shards, self._estate.foreign)
        for shard in self._estate.drained:
            if shard in self._fleet.shards:
                self._fleet.drain(shard, draining=True)
        on_serving()
        for newcomer in self._estate.handshakes:
            self._handshakes.begin(newcomer)
        self._acceptor.start()
        self._announce()
        opening = self._loop.create_task(self._open_when_ready())
        process.settle_memory()
        try:
            await self._over.wait()
        finally:
            opening.cancel()
            reaper.close()
            if self._left is None:
                await self._end()
        return self._left

    @property
    def rules(self) -> tuple[Config, Policy]:
        """The configuration and the policy in force."""
        return self._config, self._admission.policy

    def stop(self) -> None:
        """Stop in order. A second call ends the shards at once."""
        if self.stop_asked and self._left is None:
            self._log.warning("stopping at once")
            self._fleet.kill()
        self.stop_asked = True
        self._over.set()

    def close(self) -> None:
        """Close the parts that are still open after the handover."""
        self._handoffs.close()
        self._farewell.close()
        self._readiness.close()
        self._journal.close()
        self._acceptor.close(leave=True)
        if self.successor is not None:
            self.successor.close()

    async def say_farewell(self) -> None:
        """Wait until refused agents have read their answers and the shards are linked to the successor.

        Waits for `LINGER_SECONDS` at most.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while len(self._farewell) or any(map(self._handoffs.has_link, self._fleet.shards)):  # noqa: ASYNC110
                    # There is no event to wait for.
                    await asyncio.sleep(PAUSE)

    async def _open_when_ready(self) -> None:
        # Without a time limit: an agent that is admitted earlier could exceed its limit, with connections of a silent
        # shard.
        await self._fleet.known.wait()
        with contextlib.suppress(TimeoutError):
            async with awake.clock().timeout(READY_LIMIT):
                await self._fleet.ready.wait()
        self._state = "running"
        all_of(
            self._admission.open,
            lambda: self._journal.supervisor("ready", f"{self.shards} shards"),
            lambda: self._log.info("ready", shards=self.shards),
            lambda: self._manager.ready(self._summary()),
            lambda: self._manager.begin(self._summary, lambda: self._fleet.turns),
        )
        if len(self._fleet.shards) > self.shards:
            # An earlier supervisor had more shards: its configuration had more, or it was ended during a restart.
            with contextlib.suppress(CannotOperate):  # An operator's operation runs already.
                self._operations.scale(self.shards, SURPLUS_SECONDS, self._config.placement)

    def _set_quotas(self, config: Config, policy: Policy) -> None:
        """Apply these limits to all registrations from now on."""
        self._ledger.limit = config.limits.max_connections_per_agent
        self._ledger.quotas = Quotas(
            max_connections=config.max_connections,
            per_peer=config.max_connections_per_peer,
            rules=policy.rules,
            capacity=self._ledger.quotas.capacity,
        )

    def _entrust(self) -> None:
        """Have the shards keep copies of the listening sockets for the next supervisor."""
        sockets = {listener.kept: listener.sock.fileno() for listener in self.listeners}
        self._handoffs.entrust(sockets, self._config.orphan_timeout)

    def _look_after_sockets(self) -> None:
        places, rundir = self._footing.places, self._rundir
        places.add(rundir.bus, "the bus", self._fleet.lines.bind)
        places.add(rundir.counts, "the socket of counts", self._fleet.lines.publisher.bind)
        places.add(rundir.supervisor_handoff, "the socket for the next supervisor", self._succession.listen_again)
        for queries in self._queries:
            places.add(queries.path, "the socket for queries", queries.bind)
        for listener in self.listeners:
            self._footing.look_after(listener, self._acceptor, self._entrust)
        if self._admin is not None:
            self._admin.look_after(places)

    def _record_numbers(self) -> None:
        """Keep the recorded number ahead of use. Called often enough that half of the margin is not used up between."""
        self._lag_ms = max(0.0, (self._loop.time() - self._due) * 1000)
        self._due = self._loop.time() + RECORD_SECONDS
        if self._ledger.next_number + NUMBERS_AHEAD // 2 > self._numbers_recorded:
            number = self._ledger.next_number + NUMBERS_AHEAD
            if self._rundir.write_first_number(number):
                self._numbers_recorded = number

    # Handing over.

    def _replace_for_signal(self) -> None:
        self._succession.start_one()

    def _asked_to_hand_over(self, successor: Successor) -> None:
        operation = self._operations.current
        reason = self._succession.why_not(successor) or self._why_not_now()
        if self.stop_asked:
            reason = "is stopping"
        elif self.successor is not None:
            reason = f"is handing over to pid {self.successor.process.pid} already"
        elif operation is not None and not operation.row.is_done:
            reason = f"is busy with '{operation.row.name}'; ask again when that is done"
        if reason is not None:
            successor.refuse(reason)
            return
        self.successor = successor
        successor.accept(FINISH_LIMIT)
        self._handing_over = self._loop.create_task(self._hand_over(successor))

    def _why_not_now(self) -> str | None:
        """Why the next supervisor could not start: both supervisors would be left without their sockets. Else None."""
        self._footing.look()
        try:
            self._rundir.check_usable()
        except OSError as error:
            return f"has no room for another one ({error.filename}: {error.strerror}), and goes on; make room first"
        problems = self._footing.problems
        return f"goes on, since something is not on disk: {problems[0]}" if problems else None

    async def _hand_over(self, successor: Successor) -> None:
        """Stop accepting, finish the registrations under way, and leave. When that fails, go on as before."""
        try:
            left = self._estate_left() if await self._finishes(successor) else None
        except Exception as error:  # noqa: BLE001 - nothing has been given away by now
            report(self._loop, "cannot hand over", error)
            left = None
        if left is not None:
            self._leave(successor, left)
            return
        self.successor = None
        if not self.stop_asked:
            self._acceptor.start()
        successor.refuse("could not finish what is under way, and goes on as it is")

    async def _finishes(self, successor: Successor) -> bool:
        """Stop accepting, and finish the registrations under way. False when that takes too long or is given up."""
        self._acceptor.stop()
        clock = awake.clock()
        deadline = clock.time() + FINISH_LIMIT
        while not (self._state == "running" and self._is_quiet()):
            if self.stop_asked or successor.lost.is_set() or clock.time() > deadline:
                return False
            await asyncio.sleep(PAUSE)
        return True

    def _estate_left(self) -> Estate:
        """The estate for the next supervisor. OSError when there is no descriptor for a copy of a listening socket."""
        draining = [shard for shard in self._fleet.shards if self._fleet.is_draining(shard)]
        copies: dict[KeptListener, int] = {}
        try:
            for listener in self.listeners:
                copies[listener.kept] = os.dup(listener.sock.fileno())
        except OSError:
            close_all(list(copies.values()))
            raise
        return Estate(copies, self._handshakes.release_all(), draining)

    def _is_quiet(self) -> bool:
        """Whether this process could end without loss.

        No registered connection is on its way to a shard, no configuration push is pending, and no shard is starting or
        ending.
        """
        under_way = len(self._handoffs) + len(self._admission) + len(self._config_push)
        return under_way == 0 and self._fleet.is_settled

    def _leave(self, successor: Successor, left: Estate) -> None:
        """Let go of all resources that only one process can own, first the shards. `close` closes the rest later.

        This cannot be undone. When one step fails, the other steps are done all the same.
        """
        self._state, self._left = "handing over", left
        status = f"handing over to pid {successor.process.pid}"
        all_of(
            lambda: self._journal.supervisor("handing over", f"to pid {successor.process.pid}"),
            self._ignore_signals,
            self._reloads_for_signals.close,
            lambda: self._manager.begin(lambda: status, time.monotonic_ns),
            self._handoffs.flush,
            self._fleet.leave,
            self._moves.close,
            self._config_push.close,
            *(queries.close for queries in self._queries),
            lambda: self._succession.close(keep=successor),
            # The next supervisor opens its own. Its configuration may have another address for it.
            *([] if self._admin is None else [self._admin.close]),
            self._numbers_timer.cancel,
            lambda: self._rundir.write_first_number(self._ledger.next_number),
            self._footing.stop,
            # This must happen before another process binds the same names.
            close_context,
            self._over.set,
        )

    def _ignore_signals(self) -> None:
        for number in (signal.SIGHUP, signal.SIGUSR2):
            signals.on(self._loop, number, partial(self._log.warning, "a new supervisor takes over; signal ignored"))

    def _summary(self) -> str:
        fleet = self._fleet
        return f"{fleet.running} of {len(fleet.shards)} shards running; connections: {self._ledger.live_total}"

    async def _end(self) -> None:
        self._manager.stopping("stopping")
        self._state = "stopping"
        self._reloads_for_signals.close()
        self._journal.supervisor("stopping")
        self._log.info("stopping", connections=self._ledger.live_total)

        def refusal(newcomer: Newcomer) -> Rejection:
            return Rejection(
                ErrorCode.SHUTTING_DOWN, "the listener is shutting down", newcomer.answer_type, retry_after_ms=1000
            )

        if self.successor is not None:
            self.successor.refuse("is stopping")
        self._succession.close()
        await self._operations.close()
        self._moves.close()
        self._config_push.close()
        self._acceptor.close()
        self._handshakes.reject_all(ErrorCode.SHUTTING_DOWN, "the listener is shutting down")
        self._admission.refuse_all(refusal)
        self._handoffs.refuse_all(refusal)
        self._footing.places.clear()
        await self._fleet.stop(STOP_GRACE)
        all_of(
            self._handoffs.close,
            self._farewell.close,
            *(queries.close for queries in self._queries),
            self._readiness.close,
            self._journal.close,
            self._numbers_timer.cancel,
            *([] if self._admin is None else [self._admin.close]),
            lambda: self._rundir.write_first_number(self._ledger.next_number),
            *(directory.forget_all_shards for directory in self._directories),
            *(directory.forget_supervisor for directory in self._directories),
            self._footing.stop,
        )
        self._log.info("stopped")

    def _make_admin(self, listener: Listener) -> Admin:
        turns = http.admin_turns()
        agents = AgentLists(
            lambda: self._fleet.shards,
            lambda shard, *question: self._fleet.lines.send(shard, ListAgents(*question)),
            lambda: self._ledger.agent_total,
            lambda: self._ledger.limit,
            turns,
        )
        self._fleet.lines.on_agents = agents.answered
        observer = Observer(
            status=self.status,
            reloads=self._reloads,
            acceptor=self._acceptor,
            handshakes=self._handshakes,
            handoffs=self._handoffs,
            moves=self._moves,
            farewell=self._farewell,
            fleet=self._fleet,
            ledger=self._ledger,
            history=self._journal.history,
        )
        return Admin(listener, observer, agents, turns, allow_remote=self._config.admin_allow_remote)

    def _count_under_way(self) -> int:
        return len(self._handshakes) + len(self._handoffs) + len(self._admission)

    def _send(self, shard: int, command: Command) -> bool:
        return self._fleet.lines.send(shard, command)

    def _announce(self) -> None:
        """Log the addresses of the sockets. On a terminal also print them, with the commands to try next."""
        addresses = [listener.address for listener in self.listeners]
        self._log.info("listening", addresses=addresses, runtime_dir=str(self._rundir.path), shards=self.shards)
        if not sys.stderr.isatty():
            return
        option = "" if self._rundir.path == default_runtime_dir() else f" --runtime-dir {self._rundir.path}"
        say(
            f"shardgate {__version__}: agents register at {', '.join(addresses)}\n"
            f"  shardgate status{option}         shows this supervisor and its {self.shards} shards\n"
            f"  shardgate connections{option}    shows who is connected\n"
            f"  Ctrl-C stops it"
        )

    # Queries.

    def status(self) -> Status:
        """The status for ``shardgate status`` and the admin endpoint, each shard as of its last heartbeat."""
        return Status(
            supervisor=SupervisorRow(
                pid=os.getpid(),
                state=self._state,
                uptime_s=round(time.monotonic() - self._started, 1),
                version=__version__,
                listeners=[listener.row for listener in self.listeners],
                accepted_total=self._handoffs.accepted_total,
                rejected_total=dict(self._farewell.rejected),
                handshakes=len(self._handshakes),
                held_descriptors=self._count_under_way() + len(self._farewell),
                config_file=self._config.source,
                config_loaded_at=self._loaded_at,
                config_error=self._config_error,
                max_connections_per_agent=self._ledger.limit,
                operation=None if self._operations.current is None else self._operations.current.row,
                kicked_total=self._answers.kicked_total,
                log_level=level_name(),
                cpu_percent=self._cpu.percent(),
                rss_bytes=process.resident_bytes(),
                descriptors=process.open_descriptors(),
                descriptor_limit=process.descriptor_limit(),
                shards_wanted=self.shards,
                cpu_seconds=round(time.process_time(), 3),
                lag_ms=round(self._lag_ms, 1),
                connections=self._ledger.owned.total,
                max_connections=self._ledger.quotas.most,
                silent_total=self._farewell.silent,
                reset_total=self._farewell.resets,
                problems=self._footing.problems,
                write_failures_total=self._footing.files.failures_total,
                mended_total=self._footing.places.mended_total,
            ),
            shards=self._fleet.rows(),
        )

    def _stop_for_query(self, _: dict[str, Any]) -> dict[str, Any]:
        # The answer must be sent before the supervisor stops.
        self._loop.call_soon(self.stop)
        return {}

    def _operate(self, arguments: dict[str, Any]) -> OperationRow:
        """Start an operation. The query "operation" returns its progress."""
        if self.successor is not None:
            raise Refused("a new supervisor takes over; ask that one in a moment")
        order = typed(arguments, Operate)
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
                    self._acceptor.check_room_for(order.number)
                    operation = operations.scale(order.number, seconds, placement)
                    self.shards = order.number
                    self._acceptor.expect_shards(order.number)
                case "rebalance":
                    operation = operations.rebalance(seconds, placement)
        except (CannotOperate, TooFewDescriptors) as error:
            raise Refused(str(error)) from error
        return operation.row

    def _reload_for_query(self, arguments: dict[str, Any]) -> dict[str, Any]:
        asked = typed(arguments, _Reload)
        try:
            before = self._settings()
            if asked.dry_run:
                config = self._config if self._load is None else self._load()
                after = settings(config, tokens=self._policy_of(config).tokens)
            else:
                self._reload()
                after = self._settings()
        except ConfigError as error:
            raise Refused(str(error)) from error
        found = changes(before, after)
        return {
            "changed": [change.node for change in found if not change.needs_restart],
            "restart_needed": [change.node for change in found if change.needs_restart],
            "changes": found,
        }

    def _policy_of(self, config: Config) -> Policy:
        """The policy of a new configuration, for the TCP listeners that stay open until a restart."""
        return Policy(config, [listener.address for listener in self.listeners if listener.kind == "tcp"])

    def _settings(self) -> list[Setting]:
        return settings(self._config, tokens=self._admission.policy.tokens)

    def _show_config(self, _: dict[str, Any]) -> dict[str, Any]:
        """The settings and their origins, and the old values that apply until a restart."""
        differences = changes(settings(self._started_with), settings(self._config))
        return {
            "source": self._config.source,
            "loaded_at": self._loaded_at,
            "settings": self._settings(),
            "origins": dict(self._origins),
            "pending": {c.node: " ".join(c.old) for c in differences if c.needs_restart},
            "shards": self.shards,
            "runtime_dir": str(self._rundir.path),
        }

    def _reload_for_signals(self, asked: int) -> None:
        if asked > 1:
            self._log.info("reloads are asked for too often, one stands for all", n=asked)
        with contextlib.suppress(ConfigError):  # It has been logged.
            self._reload()

    def _reload(self) -> None:
        """Read the configuration and the tokens again. After a ConfigError the old ones stay in force."""
        self._manager.reloading()
        try:
            self._read_again()
        finally:
            self._manager.ready(self._summary())

    def _read_again(self) -> None:
        before = self._settings()
        try:
            config = self._config if self._load is None else self._load()
            policy = self._policy_of(config)
        except ConfigError as error:
            self._config_error = str(error)
            self._reloads["failure"] += 1
            self._journal.supervisor("not_reloaded", error.problems[0].message)
            self._log.error("configuration not reloaded, the old one stays", reason=str(error))
            raise
        has_new_agent_config = config.agent_config != self._config.agent_config
        self._config, self._config_error, self._loaded_at = config, None, _now()
        self._reloads["success"] += 1
        self._admission.policy = policy
        if has_new_agent_config:
            old, self._admission.pushed = self._admission.pushed, AgentConfig(config.agent_config)
            self._config_push.changed(old, self._admission.pushed)
        self._handshakes.config = config
        self._acceptor.handshake_timeout = config.limits.handshake_timeout
        self._handoffs.placement = config.placement
        self._set_quotas(config, policy)
        self._entrust()
        found = changes(before, self._settings())
        at_once = [change.node for change in found if not change.needs_restart]
        later = [change.node for change in found if change.needs_restart]
        told = [
            f"{what}: {', '.join(nodes)}" for what, nodes in (("changed", at_once), ("needs a restart", later)) if nodes
        ]
        self._journal.supervisor("reloaded", "; ".join(told) or "nothing changed")
        self._log.info("configuration reloaded", changed=at_once, restart_needed=later)


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
