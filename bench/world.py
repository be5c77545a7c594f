"""The product with agents and a proxy around it, faults that can be done to it, and what must hold nevertheless.

A `World` starts ``shardgate run``, a crowd of agents (`bench.crowd`) and a proxy that asks them without a pause
(`bench.asker`), each a process of its own. Everything that it kills it has started.
"""

import contextlib
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import msgspec

from bench.asker import AskerReport, Failed
from bench.attackers import AttackReport
from bench.children import Child
from bench.crowd import FICKLE, Closed, CrowdReport, Refused
from bench.kernel import descriptors, ends_by_process
from bench.small_disk import SmallDisk
from bench.targets import command, environment
from ipc import query
from ipc.rundir import RuntimeDir
from ipc.status import OperationRow, ShardReport

__all__ = ["Account", "BrokenError", "World"]

ANSWER_S = 20.0

SETTLE_S = 30.0
"""Seconds until a request has certainly ended: three times its own limit, since the host may be busy."""
_Report = TypeVar("_Report", CrowdReport, AskerReport)


class BrokenError(AssertionError):
    """What must hold does not; the message says what."""


class Account:
    """Everything that agents and proxy have met, added up over their reports."""

    def __init__(self) -> None:
        self.closed: list[Closed] = []
        self.refused: list[Refused] = []
        self.overshoots: list[tuple[float, str, int]] = []
        self.failed: list[Failed] = []
        self.wrong: list[str] = []
        self.accepted = self.cut = self.cannot_connect = self.answered = self.relayed = self.left_by_themselves = 0
        self.longest_ms = self.slowest_s = 0.0

    def add(self, crowd: CrowdReport, asker: AskerReport | None) -> None:
        """Add what is new."""
        self.closed += crowd.closed
        self.refused += crowd.refused
        self.overshoots += crowd.overshoots
        self.accepted += crowd.accepted
        self.cut += crowd.cut
        self.cannot_connect += crowd.cannot_connect
        self.left_by_themselves += crowd.left_by_themselves
        self.slowest_s = max(self.slowest_s, crowd.slowest_s)
        if asker is not None:
            self.failed += asker.failed
            self.wrong += asker.wrong
            self.answered += asker.answered
            self.relayed += asker.relayed
            self.longest_ms = max(self.longest_ms, asker.longest_ms)


class World:
    """One running shardgate and everybody who uses it; make it with `World.begin`."""

    def __init__(
        self, folder: Path, shards: int, agents: int, connections: int, limit: int, options: list[str]
    ) -> None:
        self.folder = folder
        self.rundir = RuntimeDir(folder / "run")
        self.uds = folder / "agents.sock"
        self.log = folder / "log"
        self.shards, self.agents, self.connections, self.limit = shards, agents, connections, limit
        self.total = Account()
        self.crowd: Child | None = None
        self.asker: Child | None = None
        self.attackers: Child | None = None
        self.disk: SmallDisk | None = None
        self._options = options
        self._children = contextlib.ExitStack()
        self.supervisor = self._start()
        self._rest: dict[str, int] = {}

    @classmethod
    @contextlib.contextmanager
    def begin(
        cls,
        *,
        shards: int = 2,
        agents: int = 100,
        connections: int = 1,
        limit: int = 1,
        in_flight: int = 16,
        pause_s: float = 0.02,
        options: tuple[str, ...] = (),
        small_disk: bool = False,
    ) -> "Iterator[World]":
        """A world with everybody connected and asking; at the end nothing of it may be left, or `BrokenError`.

        No proxy asks with *in_flight* 0. With *small_disk* root gets the runtime directory on a `SmallDisk`.
        """
        folder = Path(tempfile.mkdtemp(prefix="sg-"))
        disk = SmallDisk.at(folder / "run") if small_disk and SmallDisk.can_be else None
        world = cls(folder, shards, agents, connections, limit, list(options))
        world.disk = disk
        try:
            world.wait_until_running()
            world._rest = world.own_descriptors()
            world._begin_load(in_flight, pause_s)
            yield world
            leftovers = world.end()
        except BaseException:
            sys.stderr.write(f"---- the end of the log ----\n{world.log.read_text()[-20_000:]}\n")
            raise
        finally:
            world._kill_all()
            if disk is not None:
                disk.remove()
            shutil.rmtree(folder)
        if leftovers:
            raise BrokenError("\n".join(["left over:", *leftovers]))

    def _begin_load(self, in_flight: int, pause_s: float) -> None:
        rows = self.ask("status")["supervisor"]["listeners"]
        tcp = next((row["address"] for row in rows if row["kind"] == "tcp"), None)
        arguments = ["--uds", str(self.uds), *(["--tcp", tcp] if tcp else [])]
        arguments += ["--agents", str(self.agents), "--connections", str(self.connections), "--limit", str(self.limit)]
        self.crowd = self._child("crowd", "bench.crowd", *arguments)
        self.wait_for(self.everybody_is_connected, "all agents to be connected", 60)
        self.attackers = self._child("attackers", "bench.attackers", "--uds", str(self.uds))
        if in_flight:
            # Those who come and go by themselves are not asked: a request that they leave behind is no fault.
            where = ["--runtime-dir", str(self.rundir.path), "--agents", str(self.agents - self.agents // FICKLE)]
            how_many = ["--in-flight", str(in_flight), "--pause", str(pause_s)]
            self.asker = self._child("asker", "bench.asker", *where, *how_many)
        self.collect()
        self.total = Account()

    def _child(self, name: str, module: str, *arguments: str) -> Child:
        child = self._children.enter_context(Child.start(name, [sys.executable, "-m", module, *arguments]))
        child.read_line(ANSWER_S)
        return child

    # The product.

    def _start(self) -> "subprocess.Popen[bytes]":
        options = ["--runtime-dir", str(self.rundir.path), "--uds", str(self.uds), "--shards", str(self.shards)]
        options += ["--max-connections-per-agent", str(self.limit), *self._options]
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [*command(), "run", *options], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment()
            )

    def kill_supervisor(self) -> None:
        """SIGKILL it and wait for its end."""
        self.supervisor.kill()
        self.supervisor.wait()

    def start_supervisor(self) -> None:
        """Start the next one."""
        self.supervisor = self._start()

    def pids(self) -> dict[int, int]:
        """The process of each shard that has a record and lives."""
        found = {}
        for shard in self.rundir.recorded_shards():
            record = self.rundir.read_shard(shard)
            if record is not None and record.is_alive():
                found[shard] = record.pid
        return found

    def running(self) -> list[int]:
        """The shards that the supervisor says are running; none while it does not answer."""
        try:
            rows = self.ask("status")["shards"]
        except query.QueryError:
            return []
        return [row["id"] for row in rows if row["state"] in ("running", "draining")]

    def kill_shard(self, shard: int) -> tuple[float, dict[str, str]]:
        """SIGKILL a shard; when, and all connections that died with it, as the kernel knew: end → connection id."""
        pid = self.pids()[shard]
        known = self.ends()
        # Stopped first: what it holds must not change between the look and the end.
        os.kill(pid, signal.SIGSTOP)
        ends = {end: known.get(end, "") for end in ends_by_process([pid])[pid]}
        now = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        return now, ends

    def ask(self, method: str, arguments: dict[str, Any] | None = None) -> Any:
        """Ask the supervisor; `QueryError` when it does not answer."""
        return query.ask(self.rundir.supervisor_query, method, arguments, timeout=5.0)

    def operate(self, what: str, seconds: float = 30.0, **arguments: Any) -> OperationRow:
        """Do an operation (drain, restart, scale, rebalance) and return how it went."""
        row = self.begin_operation(what, seconds, **arguments)
        self.wait_for(lambda: self.operation() is None or self.operation().is_done, f"{what} to end", 180)  # type: ignore[union-attr]
        return self.operation() or row

    def begin_operation(self, what: str, seconds: float = 30.0, **arguments: Any) -> OperationRow:
        """Start an operation."""
        answer = self.ask("operate", {"what": what, "seconds": seconds, **arguments})
        return msgspec.convert(answer, OperationRow)

    def operation(self) -> OperationRow | None:
        """The operation that runs, or the last one of this supervisor."""
        answer = self.ask("operation")
        return None if answer is None else msgspec.convert(answer, OperationRow)

    def wait_until_running(self, seconds: float = 60.0) -> None:
        """Wait until the supervisor and all shards are."""

        def is_running() -> bool:
            if self.supervisor.poll() is not None:
                raise BrokenError(f"the supervisor has ended with status {self.supervisor.returncode}")
            try:
                answer = self.ask("status")
            except query.QueryError:
                return False
            return answer["supervisor"]["state"] == "running" and all(
                row["state"] in ("running", "draining") for row in answer["shards"]
            )

        self.wait_for(is_running, "everything to run", seconds)

    def wait_for(self, condition: Callable[[], object], what: str, seconds: float = 30.0) -> float:
        """Wait until *condition* holds; how many seconds that took. `BrokenError` when it does not in time."""
        began = time.monotonic()
        while not condition():
            if time.monotonic() - began > seconds:
                raise BrokenError(f"waited {seconds:g} s for {what}")
            time.sleep(0.01)
        return time.monotonic() - began

    # The load.

    def pace(self, churn: float, extra: float) -> None:
        """Have agents close and open so many connections a second, and try for so many beyond their limit."""
        assert self.crowd is not None
        self.crowd.ask(f"pace {churn} {extra}", ANSWER_S)

    @contextlib.contextmanager
    def attacked(self) -> Iterator[None]:
        """Agents that mean harm, beside the others; `BrokenError` when one of their attacks was not made."""
        assert self.attackers is not None
        self.attackers.ask("attack", ANSWER_S)
        try:
            yield
        finally:
            self.attackers.ask("rest", ANSWER_S)
        done = msgspec.json.decode(self.attackers.ask("report", ANSWER_S), type=AttackReport)
        idle = [name for name, sent in done.sent.items() if not sent]
        if idle or not done.accepted:
            raise BrokenError(f"the attackers did nothing: {idle}, {done.accepted} connections")

    def ends(self) -> dict[str, str]:
        """All connections that agents hold: end → connection id."""
        assert self.crowd is not None
        return msgspec.json.decode(self.crowd.ask("ends", ANSWER_S), type=dict[str, str])

    def everybody_is_connected(self, but: Mapping[str, str] = MappingProxyType({})) -> bool:
        """Whether every agent has all its connections, none of those in *but* (end → connection id) among them."""
        ends = self.ends()
        return len(ends) == self.agents * self.connections and not ends.items() & but.items()

    def collect(self) -> Account:
        """What agents and proxy have met since the last time.

        Requests that have begun by now are waited for. A proxy that has had no processor time since a fault has not
        noticed yet what it cost: that would be found in the account of what comes next.
        """
        assert self.crowd is not None
        now = time.monotonic()
        self.wait_for(lambda: self._oldest_request() > now, "the requests in flight to end", SETTLE_S)
        new = Account()
        crowd = msgspec.json.decode(self.crowd.ask("report", ANSWER_S), type=CrowdReport)
        asker = None
        if self.asker is not None:
            asker = msgspec.json.decode(self.asker.ask("report", ANSWER_S), type=AskerReport)
        new.add(crowd, asker)
        self.total.add(crowd, asker)
        return new

    def _oldest_request(self) -> float:
        """When the oldest request in flight began; infinity when there is none."""
        if self.asker is None:
            return math.inf
        oldest = msgspec.json.decode(self.asker.ask("oldest", ANSWER_S), type=float | None)
        return math.inf if oldest is None else oldest

    # What must hold.

    def inexact(self) -> list[str]:
        """Where the counts of agents, kernel, shards and supervisor differ, when nobody comes or goes."""
        ends = self.ends()
        pids = self.pids()
        holders = ends_by_process([self.supervisor.pid, *pids.values()])
        wrong = []
        if len(ends) != self.agents * self.connections:
            wrong.append(f"agents have {len(ends)} of {self.agents * self.connections} connections")
        held = {pid: sum(end in ends for end in found) for pid, found in holders.items()}
        all_held = [end for found in holders.values() for end in found if end in ends]
        if len(all_held) != len(ends) or len(set(all_held)) != len(ends):
            wrong.append(f"agents hold {len(ends)} connections, {len(all_held)} of them are held by us")
        if held[self.supervisor.pid]:
            wrong.append(f"the supervisor holds {held[self.supervisor.pid]}")
        for pid, found in holders.items():
            strangers = [end for end in found if end.startswith("t") and end not in ends]
            if strangers:
                wrong.append(f"pid {pid} holds connections that no agent has: {strangers[:5]}")
        try:
            status = self.ask("status")
            reports = query.ask_many([self.rundir.shard_query(shard) for shard in pids], "status", timeout=5.0)
        except query.QueryError as error:
            return [*wrong, str(error)]
        slots = {row["id"]: row["slots"] for row in status["shards"]}
        for shard, pid in pids.items():
            answer = reports.get(self.rundir.shard_query(shard))
            if answer is None:
                wrong.append(f"shard {shard} does not answer")
                continue
            report = msgspec.convert(answer["report"], ShardReport)
            counts = (held[pid], report.connections, slots.get(shard))
            if len(set(counts)) > 1 or report.prepared:
                wrong.append(
                    f"shard {shard}: {counts[0]} by the kernel, {counts[1]} by itself, {counts[2]} by the supervisor,"
                    f" {report.prepared} prepared"
                )
        if sum(slots.values()) != len(ends):
            wrong.append(f"the supervisor counts {sum(slots.values())}, agents hold {len(ends)}")
        if status["supervisor"]["held_descriptors"]:
            wrong.append(f"the supervisor says it holds {status['supervisor']['held_descriptors']}")
        return wrong

    def wait_until_exact(self, seconds: float = 30.0) -> float:
        """Wait until everybody is connected and all counts agree; how long that took.

        Nobody may come or go meanwhile (`pace`).
        """
        found: list[str] = []

        def is_exact() -> bool:
            nonlocal found
            found = self.inexact()
            return not found

        try:
            return self.wait_for(is_exact, "exact counts", seconds)
        except BrokenError as error:
            raise BrokenError("\n".join([str(error), *found])) from None

    def check_never(self) -> None:
        """Raise `BrokenError` for what may never happen, whatever was done."""
        wrong = [f"overshoot: {agent} had {n} connections" for _, agent, n in self.total.overshoots]
        wrong += [f"wrong answer: {line}" for line in self.total.wrong]
        if wrong:
            raise BrokenError("\n".join(wrong[:20]))

    # The end.

    def own_descriptors(self) -> dict[str, int]:
        """Descriptors of each process, but for connections (to agents, proxies, each other) and one for each shard."""
        shards = self.pids()
        pids = {f"shard-{shard}": pid for shard, pid in shards.items()} | {"supervisor": self.supervisor.pid}
        connected = ends_by_process(list(pids.values()))
        own = {name: len(descriptors(pid)) - len(connected[pid]) for name, pid in pids.items()}
        own["supervisor"] -= len(shards)
        return own

    def excess(self, seconds: float = 15.0) -> list[str]:
        """Processes that have more descriptors of their own than at first, for so long."""
        most = max(count for name, count in self._rest.items() if name != "supervisor")
        found: list[str] = []

        def has_no_more() -> bool:
            # Those of a query that has just been answered take a moment to go.
            nonlocal found
            found = [
                f"{name} has {count} descriptors of its own, had {self._rest.get(name, most)} at first"
                + self._shown(name)
                for name, count in self.own_descriptors().items()
                if count > self._rest.get(name, most)
            ]
            return not found

        with contextlib.suppress(BrokenError):
            self.wait_for(has_no_more, "no more descriptors than at first", seconds)
        return found

    def _shown(self, name: str) -> str:
        """What the descriptors of the supervisor or ``shard-N`` are, and how many of each."""
        pid = self.supervisor.pid if name == "supervisor" else self.pids().get(int(name.removeprefix("shard-")))
        kinds = Counter(what.split(":")[0] for what in descriptors(pid or 0).values())
        return f": {dict(kinds)}"

    def end(self) -> list[str]:
        """Stop everything; what is left over."""
        assert self.crowd is not None
        self.pace(0, 0)
        self.collect()
        self.check_never()
        self._children.close()
        self.crowd = self.asker = self.attackers = None
        self.wait_until_running()
        self.wait_for(self._is_empty, "empty shards", 30)
        leftovers = self.excess()
        pids = list(self.pids().values())
        self.supervisor.terminate()
        try:
            status = self.supervisor.wait(60)
        except subprocess.TimeoutExpired:
            leftovers.append("the supervisor did not end within 60 s of SIGTERM")
        else:
            leftovers += [f"the supervisor ended with status {status}"] if status else []
        leftovers += [f"process {pid}" for pid in pids if Path(f"/proc/{pid}/fd").exists() and descriptors(pid)]
        leftovers += [f"file {path}" for path in self.folder.rglob("*") if path.is_socket()]
        leftovers += [f"file {path}" for path in self.rundir.path.glob("*.json*")]
        lines = self.log.read_text().splitlines()
        leftovers += [f"log: {line}" for line in lines if "Traceback" in line or "exception" in line.lower()]
        return leftovers

    def _is_empty(self) -> bool:
        rows = self.ask("status")["shards"]
        return all(row["connections"] == 0 and row["slots"] == 0 for row in rows)

    def _kill_all(self) -> None:
        self._children.close()
        if self.supervisor.poll() is None:
            self.supervisor.kill()
            self.supervisor.wait()
        for pid in self.pids().values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
