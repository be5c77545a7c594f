"""Reads the parts of a running supervisor into `Figures`. Changes nothing."""

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

import psutil

from ipc.status import ListenerRow, RequestLatency
from supervisor.acceptor import Acceptor
from supervisor.admin.figures import Figures, ShardFigures, process_name
from supervisor.admin.readiness import Readiness, grade
from supervisor.farewell import Farewell
from supervisor.fleet import Fleet
from supervisor.handoffs import Handoffs
from supervisor.handshakes import Handshakes
from supervisor.history import History
from supervisor.ledger import Ledger
from supervisor.merge import Status, problems
from supervisor.moves import Moves


class Observer:
    """Reads the state of one supervisor from its parts."""

    def __init__(
        self,
        *,
        status: Callable[[], Status],
        reloads: Mapping[str, int],
        acceptor: Acceptor,
        handshakes: Handshakes,
        handoffs: Handoffs,
        moves: Moves,
        farewell: Farewell,
        fleet: Fleet,
        ledger: Ledger,
        history: History,
    ) -> None:
        self.status = status
        self.history = history
        self._reloads = reloads
        self._acceptor, self._handshakes, self._handoffs, self._moves = acceptor, handshakes, handoffs, moves
        self._farewell, self._fleet, self._ledger = farewell, fleet, ledger
        self._started: dict[int, float] = {}

    @property
    def agent_total(self) -> int:
        """Agents with a slot on this host."""
        return self._ledger.agent_total

    def readiness(self, status: Status | None = None) -> Readiness:
        """The readiness of this host."""
        status = status or self.status()
        supervisor = status.supervisor
        assert supervisor is not None
        listeners: Sequence[ListenerRow] = () if supervisor.state == "stopping" else supervisor.listeners
        return grade(
            state=supervisor.state,
            wanted=supervisor.shards_wanted,
            rows=status.shards,
            takers=[n for n in self._fleet.shards if self._fleet.is_running(n) and not self._fleet.is_draining(n)],
            listeners=listeners,
            out_of_descriptors=not self._acceptor.has_room,
            problems=problems(status),
        )

    def figures(self) -> Figures:
        """All figures, as of now."""
        status = self.status()
        supervisor = status.supervisor
        assert supervisor is not None
        cares = {care.shard: care for care in self._fleet.cares}
        totals = self._fleet.totals
        shards = {}
        for number in sorted({*cares, *totals.shards}):
            care = cares.get(number)
            shards[number] = (
                ShardFigures(totals=totals.of(number, None, RequestLatency()))
                if care is None
                else ShardFigures(totals=totals.of(number, care.report, care.latency), gaps=care.gaps)
            )
        return Figures(
            status=status,
            readiness=self.readiness(status),
            shards=shards,
            slots_live=self._ledger.live_total,
            # A parked registration has a slot but no shard, so no load counts it.
            slots_reserved=sum(self._ledger.loads.values()) - self._ledger.live_total + self._handoffs.parked,
            agents=self._ledger.agent_total,
            not_agents=self._farewell.not_agents,
            handshake_seconds=self._handshakes.seconds,
            handoff_seconds=self._handoffs.handoff_seconds,
            registration_seconds=self._handoffs.registration_seconds,
            move_seconds=self._moves.seconds,
            loaded_at=datetime.fromisoformat(supervisor.config_loaded_at).timestamp(),
            reloads=dict(self._reloads),
            started_at=self._start_times(status),
        )

    def _start_times(self, status: Status) -> dict[str, float]:
        pids = {process_name(None): status.supervisor.pid if status.supervisor else None}
        pids |= {process_name(row.id): row.pid for row in status.shards}
        living = {name: pid for name, pid in pids.items() if pid is not None}
        self._started = {pid: self._started.get(pid) or _start_time(pid) for pid in living.values()}
        return {name: self._started[pid] for name, pid in living.items()}


def _start_time(pid: int) -> float:
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return time.time()
