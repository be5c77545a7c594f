"""The shard's end of the bus: reports to the supervisor, and commands from it."""

import asyncio
from collections.abc import Callable

import msgspec

from ipc import events
from ipc.bus import Bus
from ipc.logs import get_logger
from ipc.rundir import RuntimeDir
from ipc.status import RequestLatency, ShardReport
from ipc.timers import Every

HEARTBEAT_SECONDS = 0.5


class Reporter:
    """Sends events with a sequence number, and gathers the closes of one turn of the loop in one event.

    The bus may drop an event that it cannot take. Its number is not used again. The supervisor sees the gap and asks
    for a snapshot.
    """

    def __init__(
        self,
        rundir: RuntimeDir,
        identity: str,
        on_command: Callable[[events.Command], None],
        on_counts: Callable[[events.Counts], None],
        report: Callable[[], ShardReport],
        latency: Callable[[], RequestLatency],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_command, self._on_counts = on_command, on_counts
        self._report, self._latency = report, latency
        self._sequence = 0
        self._closed: list[events.Gone] = []
        self._log = get_logger()
        self._bus = Bus.dealer(identity, self._on_message)
        self._bus.connect(rundir.bus)
        self._counts = Bus.subscriber(self._on_published)
        self._counts.connect(rundir.counts)
        self._due = self._loop.time()
        self.lag_ms = 0.0
        self._timer: Every | None = None

    def start(self) -> None:
        """Send heartbeats from now on. The first one tells the supervisor that all sockets of the shard exist."""
        self._due = self._loop.time()
        self._timer = Every(HEARTBEAT_SECONDS, self._beat, at_once=True)

    def closed(self, gone: events.Gone) -> None:
        """Report a connection as gone."""
        if not self._closed:
            self._loop.call_soon(self._flush)
        self._closed.append(gone)

    def snapshot(
        self,
        request: int,
        live: list[tuple[int, str]],
        prepared: list[tuple[int, str]],
        moving: list[tuple[int, str]],
        let_go: list[int],
        owned: list[tuple[str, str, list[int]]],
    ) -> None:
        """Send the complete list of the shard's connections, after every close that was not reported yet."""
        self._flush()
        self._send(events.Snapshot(self._next(), request, live, prepared, moving, let_go, owned))

    def probed(self, probe: int) -> None:
        """Answer a probe, after every close that was not reported yet."""
        self._flush()
        self._send(events.Probed(self._next(), probe))

    def agents(self, request: int, agents: list[tuple[str, int, int, bool]]) -> None:
        """Answer a request for a list of agents."""
        self._send(events.AgentsPage(self._next(), request, agents))

    def ask_for_directory(self) -> None:
        """Ask for the counts of all agents."""
        self._send(events.DirectoryRequest(self._next()))

    def close(self) -> None:
        """Send the remaining closes and a last heartbeat, and stop."""
        self._flush()
        self._send(events.Heartbeat(self._next(), self._report(), self._latency()))
        if self._timer is not None:
            self._timer.cancel()
        self._counts.close()
        self._bus.close()

    def _next(self) -> int:
        self._sequence += 1
        return self._sequence

    def _flush(self) -> None:
        if self._closed:
            closed, self._closed = self._closed, []
            self._send(events.Closed(self._next(), closed))

    def _beat(self) -> None:
        now = self._loop.time()
        self.lag_ms = max(0.0, (now - self._due) * 1000)
        self._due = now + HEARTBEAT_SECONDS
        self._flush()
        self._send(events.Heartbeat(self._next(), self._report(), self._latency()))

    def _send(self, event: events.Event) -> None:
        self._bus.send(events.encode(event))

    def _on_message(self, parts: list[bytes]) -> None:
        try:
            command = events.decode_command(parts[-1])
        except msgspec.MsgspecError as error:
            # A supervisor of a newer version has taken over. The unknown command is skipped.
            self._log.warning("command not understood; is the supervisor of another version?", reason=str(error))
            return
        self._on_command(command)

    def _on_published(self, parts: list[bytes]) -> None:
        try:
            counts = events.decode_counts(parts[-1])
        except msgspec.MsgspecError:
            return  # The next counts show the gap.
        self._on_counts(counts)
