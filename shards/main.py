"""The process of a shard: its wiring, its start and its end."""

import asyncio
import os
import signal
import time
from collections.abc import Callable
from functools import partial

import uvloop

from dialout import awake
from ipc import events, handoff, messages, process, signals
from ipc.at_work import shared_note
from ipc.bus import close_context
from ipc.logs import Line, change_level, configure, flush, get_logger, log_loop_errors, take_standard_error
from ipc.options import PoolOptions
from ipc.peers import Owner
from ipc.places import LOOK_SECONDS, CannotMend, Places
from ipc.query_server import LOOKERS, Method, QueryServer
from ipc.readiness import Readiness
from ipc.rundir import RuntimeDir, RuntimeDirError, record_of_this_process
from ipc.side_files import SideFiles
from ipc.stacks import stacks
from ipc.status import ShardReport
from ipc.status_dir import READS_ONLY, socket_mode
from ipc.timers import Every, all_of
from ipc.version import __version__
from shards import listing
from shards.config_delivery import ConfigDelivery
from shards.directory import Directory
from shards.dispatch import Dispatch
from shards.drain import Drain
from shards.intake import Intake
from shards.kicks import Kicks
from shards.pool import AgentPool
from shards.proxy_server import ProxyServer
from shards.relay import Relay
from shards.reporter import Reporter

DIRECTORY_PAUSE = 0.2
"""Seconds between requests for a full directory, which may be megabytes."""


STOP_PAUSE = 0.01
"""Seconds between checks for requests of proxies in flight, before the end."""

CANNOT_BEGIN = 73
"""Exit status of a shard that cannot create its sockets or files: EX_CANTCREAT, sysexits.h."""

PROBE_PAUSE = 0.03
"""Seconds between the two checks of a probe."""


class Shard:
    """One shard with all its parts wired together. Create it on a running loop."""

    def __init__(
        self, shard: int, epoch: str, rundir: RuntimeDir, options: PoolOptions, status_dir: RuntimeDir | None = None
    ) -> None:
        self._started = time.monotonic()
        self._shard, self._epoch, self._rundir = shard, epoch, rundir
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._log = get_logger()
        self._cpu, self._requests_rate = process.CpuMeter(), process.RateMeter()
        self._closed_line = Line(
            "connection closed",
            "more connections closed",
            names=("agent_id", "connection_id", "code"),
            numbers=("shard", "duration_s"),
            texts=("reason",),
        )
        self._readiness = Readiness()
        self._pool = AgentPool(options, shard=shard, readiness=self._readiness, on_closed=self._closed)
        self._pool.at_work = shared_note()
        self._configs = ConfigDelivery(self._pool)
        self._directory = Directory()
        self._directory_asked_at = 0.0
        self._relay = Relay(shard, rundir, self._directory)
        self._dispatch = Dispatch(shard, self._pool, self._relay)
        self._proxies = ProxyServer(shard, epoch, rundir.shard_proxy(shard), options, self._dispatch, self._room)
        self._intake = Intake(
            handoff.listen(rundir.shard_handoff(shard)),
            self._pool,
            messages.Hello(shard, epoch, os.getpid()),
            self._room,
            self._orphaned,
            self._closed,
        )
        # A request that a proxy sent through this shard may still be in flight at another one.
        self._drain = Drain(self._pool, self._stop_by)
        self._kicks = Kicks(self._pool)
        self._directories = [rundir] if status_dir is None else [rundir, status_dir]
        self._files, self._places = SideFiles(), Places()
        for directory in self._directories:
            directory.files = self._files
        reading = self._answers()
        self._queries = [QueryServer(rundir.shard_query(shard), reading)]
        if status_dir is not None:
            path, mode = status_dir.shard_query(shard), partial(socket_mode, status_dir.path)
            self._queries.append(
                QueryServer(path, reading, mode=mode, refusal=READS_ONLY, access=LOOKERS, may_wait=True)
            )
        self._reporter = Reporter(
            rundir,
            events.identity(shard, epoch),
            self._on_command,
            self._on_counts,
            self.report,
            lambda: self._pool.requests.latency,
        )
        looking = 0 if status_dir is None else LOOKERS.limits.descriptors
        self._budget = process.DescriptorBudget(expected=8 + looking)

    async def run(self) -> None:
        """Serve until the shard is told to stop."""
        loop = asyncio.get_running_loop()
        log_loop_errors(loop)
        signals.on(loop, signal.SIGTERM, self.drain)
        await self._proxies.start()
        self._reporter.start()
        # The record tells others that all sockets of this shard exist.
        for rundir in self._directories:
            rundir.write_shard(self._shard, record_of_this_process(self._epoch, __version__))
        looking = self._look_after_places()
        # From here on the next supervisor can find this shard.
        process.end_with_parent(ends=False)
        process.settle_memory()
        try:
            await self._ended
        finally:
            all_of(
                looking.cancel,
                self._proxies.stop,
                self._drain.close,
                self._kicks.close,
                self._configs.close,
                # Before the agents' connections: nothing here would answer an agent that connects to a copy.
                self._intake.custody.close,
                lambda: self._pool.close("the shard stops"),
                self._relay.close,
                self._proxies.close,
                self._intake.close,
                self._reporter.close,
                *(queries.close for queries in self._queries),
                self._readiness.close,
                self._closed_line.close,
                self._forget_places,
                self._files.close,
            )

    def _look_after_places(self) -> Every:
        """Watch this shard's files and sockets on disk, and create again those that others remove."""
        places, rundir = self._places, self._rundir
        # The supervisor creates the status directory, because it knows the mode and the group.
        places.add(rundir.path, "the directory", partial(self._mend, rundir.make_again))
        handoffs = rundir.shard_handoff(self._shard)
        for path, what, mend in (
            (handoffs, "the socket for supervisors", lambda: self._intake.listen_again(handoff.listen(handoffs))),
            (rundir.shard_proxy(self._shard), "the socket for proxies", self._proxies.listen_again),
            *((queries.path, "the socket for queries", queries.bind) for queries in self._queries),
        ):
            places.add(path, what, partial(self._mend, mend))

        def look() -> None:
            places.look()
            self._files.look()

        return Every(LOOK_SECONDS, look)

    def _mend(self, make: Callable[[], None]) -> None:
        """Create something again, unless another process has this shard's place: its sockets have the same names."""
        record = self._rundir.read_shard(self._shard)
        if record is not None and record.epoch != self._epoch and record.is_alive():
            raise CannotMend(f"pid {record.pid} is shard {self._shard} now")
        try:
            make()
        except RuntimeDirError as error:
            raise CannotMend(str(error)) from error

    def _forget_places(self) -> None:
        self._places.clear()
        # Another process may have this shard's place by now, and its sockets have the same names.
        for rundir in self._directories:
            record = rundir.read_shard(self._shard)
            if record is None or record.epoch == self._epoch:
                rundir.forget_shard(self._shard)

    def drain(self) -> None:
        """Accept no more connections, and end when nothing is in flight, or after `DRAIN_LIMIT`."""
        self._places.clear()
        if not self._drain.has_begun:
            self._log.info("draining", connections=len(self._pool.connections))
            self._intake.retire()
            self._drain.begin()

    def stop(self) -> None:
        """End the process at once, with all its parts closed."""
        if not self._ended.done():
            self._ended.set_result(None)

    def report(self) -> ShardReport:
        """The counters and gauges of this shard."""
        requests = self._pool.requests
        ended = requests.answered + requests.failed.total()
        return ShardReport(
            connections=len(self._pool.connections),
            agents=len(self._pool.agents),
            in_flight=requests.in_flight + self._dispatch.waiting,
            requests_total=ended,
            prepared=len(self._intake.prepared),
            adopted_total=self._pool.adopted_total,
            closed_total=self._pool.closed_total,
            frames_total=self._pool.frames_total,
            cpu_percent=self._cpu.percent(),
            lag_ms=self._reporter.lag_ms,
            uptime_s=time.monotonic() - self._started,
            answered_total=requests.answered,
            failed_total=dict(requests.failed),
            late_total=requests.late,
            relayed_total=self._dispatch.relayed_total,
            moved_total=self._pool.moved_total,
            requests_per_s=self._requests_rate.per_second(ended),
            rss_bytes=process.resident_bytes(),
            descriptors=process.open_descriptors(),
            descriptor_limit=process.descriptor_limit(),
            cpu_seconds=round(time.process_time(), 3),
            capacity=len(self._pool.connections) + len(self._intake.prepared) + max(0, self._room()),
            problems=[*self._places.problems, *self._files.problems],
            write_failures_total=self._files.failures_total,
            mended_total=self._places.mended_total,
        )

    def _answers(self) -> dict[str, Method]:
        """The methods of the query sockets. Any process that can connect to one may call them."""
        return {
            "status": lambda _: {
                "shard": self._shard,
                "pid": os.getpid(),
                "epoch": self._epoch,
                "handoff": messages.VERSION[0],
                "report": self.report(),
            },
            **listing.methods(self._pool),
        }

    def _room(self) -> int:
        """How many more descriptors this process may hold, without its reserve. Below 0 the reserve is in use."""
        agents = len(self._pool.connections) + len(self._intake.prepared) + len(self._intake.custody)
        return self._budget.left(agents + len(self._proxies.connections) + self._relay.links)

    def _orphaned(self) -> None:
        self._log.error("no supervisor has come, ending; 'shardgate run' starts everything again")
        self.drain()

    def _closed(self, gone: events.Gone) -> None:
        self._reporter.closed(gone)
        agent_id, line = gone.agent_id, self._closed_line
        if line.allows(agent_id):
            name = f"{agent_id}-conn-{gone.number}"
            line.write(time.time(), agent_id, name, gone.code, self._shard, gone.seconds, gone.detail)

    def _on_command(self, command: events.Command) -> None:
        if isinstance(command, events.Probe):
            self._probe(command, looks=2)
        elif isinstance(command, events.SnapshotRequest):
            self._reporter.snapshot(
                command.request,
                [(number, connection.agent.agent_id) for number, connection in self._pool.connections.items()],
                [(n, offer.agent_id) for n, (offer, _) in self._intake.prepared.items() if offer.state is None],
                self._intake.moving,
                self._intake.let_go,
                self._owned(),
            )
        elif isinstance(command, events.FullDirectory):
            self._directory.replace(command.at, command.counts)
        elif isinstance(command, events.PushConfig):
            self._configs.push(command.config, command.agent_ids)
        elif isinstance(command, events.ListAgents):
            self._reporter.agents(command.request, listing.agents(self._pool, command.after, command.limit))
        elif isinstance(command, events.Kick):
            self._kicks.order(command)
        elif isinstance(command, events.SetLogLevel):
            change_level(command.level)
        elif isinstance(command, events.Stop):
            self._stop_by(awake.clock().time() + command.seconds)

    def _owned(self) -> list[tuple[str, str, list[int]]]:
        """The numbers of this shard's connections, by owner: (rule, peer, numbers)."""
        found: dict[Owner, list[int]] = {}
        for number, connection in self._pool.connections.items():
            found.setdefault(connection.owner, []).append(number)
        for number, (offer, _) in self._intake.prepared.items():
            found.setdefault(offer.owner, []).append(number)
        return [(owner.rule, owner.peer, numbers) for owner, numbers in found.items()]

    def _stop_by(self, deadline: float) -> None:
        """End when no request of a proxy is unfinished or on its way, at *deadline* at the latest.

        *deadline* is a time of `dialout.awake`.
        """
        loop = asyncio.get_running_loop()
        self._places.clear()
        if awake.clock().time() < deadline:
            self._proxies.go_away()
            if self._proxies.is_busy:
                loop.call_later(STOP_PAUSE, self._stop_by, deadline)
                return
        self.stop()

    def _probe(self, command: events.Probe, looks: int) -> None:
        """Close connections whose end has arrived; check again before the answer that there are none.

        Over TCP, different processors may handle the end of a connection and the start of the next one. The new
        connection may therefore arrive first.
        """
        if self._pool.probe(command.agent_id) or looks == 1:
            self._reporter.probed(command.probe)
        else:
            asyncio.get_running_loop().call_later(PROBE_PAUSE, self._probe, command, looks - 1)

    def _on_counts(self, counts: events.Counts) -> None:
        self._directory.change(counts.sequence, counts.counts)
        now = time.monotonic()
        if self._directory.stale and now - self._directory_asked_at > DIRECTORY_PAUSE:
            self._directory_asked_at = now
            self._reporter.ask_for_directory()


def main(
    shard: int,
    epoch: str,
    parent: int | None,
    runtime_dir: str,
    options: PoolOptions,
    log_level: str,
    log_format: str,
    status_dir: str | None = None,
) -> None:
    """Run shard *shard* until it is told to stop.

    Return at once if *parent*, the supervisor that started it, is gone already.
    """
    configure(f"shard-{shard}", log_level, log_format)
    take_standard_error()
    signals.log_to(get_logger(), stacks)
    if parent is not None:
        process.end_with_parent(ends=True)
    if parent is not None and os.getppid() != parent:
        # The next supervisor does not know this process, and has started another one in its place.
        get_logger().warning("the supervisor that started this shard is gone")
        return
    process.raise_descriptor_limit()

    async def serve() -> None:
        looking = None if status_dir is None else RuntimeDir(status_dir)
        await Shard(shard, epoch, RuntimeDir(runtime_dir), options, looking).run()

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve())
    except OSError as error:
        reason = ": ".join(str(part) for part in (error.filename, error.strerror) if part)
        get_logger().error("the shard cannot begin", reason=reason)
        raise SystemExit(CANNOT_BEGIN) from None
    finally:
        signals.over()
        close_context()
        flush()
