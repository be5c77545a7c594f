"""A shard's process: wiring, and the start and end of it."""

import asyncio
import faulthandler
import os
import signal
import time

import uvloop

from ipc import events, handoff, process
from ipc.bus import close_context
from ipc.logs import configure, get_logger
from ipc.query import QueryServer
from ipc.readiness import Readiness
from ipc.rundir import RuntimeDir, record_of_this_process
from ipc.status import ShardReport
from ipc.version import __version__
from shards.intake import Intake
from shards.pool import Pool
from shards.reporter import CpuMeter, Reporter


class Shard:
    """One shard: everything that it has, wired together. Make it on a running loop."""

    def __init__(self, shard: int, epoch: str, rundir: RuntimeDir) -> None:
        self._started = time.monotonic()
        self._shard, self._epoch, self._rundir = shard, epoch, rundir
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._log = get_logger()
        self._cpu = CpuMeter()
        self._readiness = Readiness()
        self._pool = Pool(self._readiness, self._closed)
        self._intake = Intake(
            handoff.listen(rundir.shard_handoff(shard)), self._pool, handoff.Hello(shard, epoch, os.getpid())
        )
        self._queries = QueryServer(
            rundir.shard_query(shard),
            {
                "status": lambda _: {
                    "shard": shard,
                    "pid": os.getpid(),
                    "epoch": epoch,
                    "report": self.report(),
                },
                "agents": lambda args: self._pool.list_agents(args.get("after", ""), args.get("limit", 1000)),
                "connections": lambda args: self._pool.list_connections(
                    args.get("after", 0), args.get("limit", 1000), args.get("agent")
                ),
            },
        )
        rundir.write_shard(shard, record_of_this_process(epoch, __version__))
        self._reporter = Reporter(rundir.bus, events.identity(shard, epoch), self._on_command, self.report)

    async def run(self) -> None:
        """Serve until told to stop."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.stop)
        process.settle_memory()
        try:
            await self._ended
        finally:
            self._pool.close_all("the shard stops")
            self._intake.close()
            self._reporter.close()
            self._queries.close()
            self._readiness.close()
            self._rundir.forget_shard(self._shard)

    def stop(self) -> None:
        """End the process in good order."""
        if not self._ended.done():
            self._ended.set_result(None)

    def report(self) -> ShardReport:
        """What this shard counts about itself."""
        return ShardReport(
            connections=len(self._pool.connections),
            agents=len(self._pool.agents),
            in_flight=0,
            requests_total=0,
            prepared=len(self._intake.prepared),
            adopted_total=self._pool.adopted_total,
            closed_total=self._pool.closed_total,
            frames_total=self._pool.frames_total,
            cpu_percent=self._cpu.percent(),
            lag_ms=self._reporter.lag_ms,
            uptime_s=time.monotonic() - self._started,
        )

    def _closed(self, number: int, agent_id: str) -> None:
        self._reporter.closed(number, agent_id)

    def _on_command(self, command: events.Command) -> None:
        if isinstance(command, events.Probe):
            self._pool.probe(command.agent_id)
            self._reporter.probed(command.probe)
        elif isinstance(command, events.SnapshotRequest):
            self._reporter.snapshot(
                command.request,
                [(number, connection.agent.agent_id) for number, connection in self._pool.connections.items()],
                [(number, offer.agent_id) for number, (offer, _) in self._intake.prepared.items()],
            )
        elif isinstance(command, events.Stop):
            self.stop()


def main(shard: int, epoch: str, runtime_dir: str, log_level: str, log_format: str) -> None:
    """Run shard *shard* until it is told to stop."""
    # The supervisor asks a stuck shard for its stacks with SIGABRT before it kills it.
    faulthandler.enable()
    configure(f"shard-{shard}", log_level, log_format)
    process.raise_descriptor_limit()

    async def serve() -> None:
        await Shard(shard, epoch, RuntimeDir(runtime_dir)).run()

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve())
    finally:
        close_context()
