"""What is measured: shardgate itself and the plain listeners beside it, each started, watched and ended alike.

A target is asked what is in its pool by its own means (`shardgate status --json`, the listener's `count`), so
that a benchmark can tell whether the connections it paid for exist.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, Protocol

import msgspec
import psutil

from bench.children import ROOT, Child, ChildError

__all__ = [
    "Pool",
    "Shardgate",
    "Streams",
    "Target",
    "TargetError",
    "command",
    "environment",
    "shardgate",
    "streams",
    "wait_for_connections",
]

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 20.0
QUERY_TIMEOUT_S = 10.0
POLL_S = 0.05
PER_AGENT = 4
#: Exit code of `shardgate status` when neither supervisor nor shards can be reached.
NOT_REACHABLE = 4


class TargetError(Exception):
    """A target did not start, died, or does not answer."""


class Pool(msgspec.Struct, frozen=True):
    """What a target says of itself: connections in its pool, per shard if it has any, and who serves them.

    `requests_total` and `answered_total` count events for agents, and those that got a decision.
    """

    connections: int
    accepted_total: int
    pids: frozenset[int]
    per_shard: dict[int, int] = {}
    restarts: int = 0
    requests_total: int = 0
    answered_total: int = 0
    rejected_total: dict[str, int] = {}


class Target(Protocol):
    """A listener under measurement."""

    @property
    def name(self) -> str:
        """What the tables call it."""

    @property
    def address(self) -> str:
        """The Unix socket that agents dial."""

    def pool(self) -> Pool:
        """What is in its pool now. Raises `TargetError`."""


def wait_for_connections(target: Target, connections: int, timeout_s: float = 10.0) -> Pool:
    """The pool once it holds exactly `connections`, or as it is when `timeout_s` is over."""
    deadline = time.monotonic() + timeout_s
    while (pool := target.pool()).connections != connections and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return pool


class Streams:
    """The plain asyncio-streams listener of `bench.streams_listener`."""

    class _Count(msgspec.Struct):
        connections: int
        accepted_total: int

    def __init__(self, loop: str, address: str, child: Child) -> None:
        self.name = f"streams on {loop}"
        self.address = address
        self._child = child

    def pool(self) -> Pool:
        """What the listener counts."""
        try:
            count = msgspec.json.decode(self._child.ask("count", QUERY_TIMEOUT_S), type=self._Count)
        except ChildError as silent:
            raise TargetError(str(silent)) from silent
        return Pool(count.connections, count.accepted_total, frozenset({self._child.pid}))


@contextlib.contextmanager
def streams(directory: Path, loop: Literal["asyncio", "uvloop"]) -> Iterator[Streams]:
    """A plain listener on `loop`, listening in `directory`, ended on leaving."""
    address = str(directory / f"{loop}.sock")
    options = ["--loop", loop, "--uds", address, "--max-connections-per-agent", str(PER_AGENT)]
    with Child.start(f"{loop} listener", [sys.executable, "-m", "bench.streams_listener", *options]) as child:
        try:
            child.read_line(START_TIMEOUT_S)
        except ChildError as failed:
            raise TargetError(str(failed)) from failed
        yield Streams(loop, address, child)


class _Supervisor(msgspec.Struct):
    pid: int
    accepted_total: int
    rejected_total: dict[str, int]


class _Shard(msgspec.Struct):
    id: int
    #: None while there is no process, as between two of them.
    pid: int | None
    state: str
    connections: int
    restarts: int
    requests_total: int
    answered_total: int


class _Status(msgspec.Struct):
    supervisor: _Supervisor | None
    shards: list[_Shard]


class Shardgate:
    """The product, started by its own command line and asked by it."""

    name = "shardgate"

    def __init__(self, directory: Path, process: subprocess.Popen[bytes], log: Path) -> None:
        self.address = str(directory / "agents.sock")
        self.runtime_dir = directory / "run"
        self._process = process
        self.log = log

    def pool(self) -> Pool:
        """What `shardgate status` says, with every process that the supervisor has started."""
        status = self._status()
        if status is None or status.supervisor is None:
            raise self._error("does not answer `status`")
        supervisor = status.supervisor
        pids = {supervisor.pid, *(shard.pid for shard in status.shards if shard.pid)}
        pids.update(child.pid for child in psutil.Process(supervisor.pid).children(recursive=True))
        return Pool(
            connections=sum(shard.connections for shard in status.shards),
            accepted_total=supervisor.accepted_total,
            pids=frozenset(pids),
            per_shard={shard.id: shard.connections for shard in status.shards},
            restarts=sum(shard.restarts for shard in status.shards),
            requests_total=sum(shard.requests_total for shard in status.shards),
            answered_total=sum(shard.answered_total for shard in status.shards),
            rejected_total=supervisor.rejected_total,
        )

    def wait_until_running(self, shards: int) -> None:
        """Returns when all shards are running. Raises `TargetError` when they are not in time."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise self._error(f"ended with exit code {self._process.returncode}")
            status = self._status()
            if status and status.supervisor and [s.state for s in status.shards] == ["running"] * shards:
                return
            time.sleep(POLL_S)
        raise self._error(f"had not {shards} shards running within {START_TIMEOUT_S:.0f} s")

    def _status(self) -> _Status | None:
        """What `status` prints; `None` when nobody can be reached, as before the start is complete."""
        arguments = [*command(), "status", "--json", "--runtime-dir", str(self.runtime_dir)]
        try:
            done = subprocess.run(
                arguments, capture_output=True, cwd=ROOT, env=environment(), check=False, timeout=QUERY_TIMEOUT_S
            )
            if done.returncode == NOT_REACHABLE:
                return None
            return msgspec.json.decode(done.stdout, type=_Status)
        except subprocess.TimeoutExpired as silent:
            raise self._error(f"did not answer `status` within {QUERY_TIMEOUT_S:.0f} s") from silent
        except msgspec.MsgspecError as wrong:
            said = done.stderr[-1000:].decode(errors="replace")
            raise self._error(f"`status` exited with {done.returncode} and no status ({wrong}): {said}") from wrong

    def _error(self, what: str) -> TargetError:
        said = self.log.read_bytes()[-2000:].decode(errors="replace").strip()
        return TargetError(f"shardgate {what}; it wrote:\n{said}")


@contextlib.contextmanager
def shardgate(
    directory: Path, shards: int = 2, *, log_level: str = "info", options: Sequence[str] = ()
) -> Iterator[Shardgate]:
    """The product with `shards` shards and further `options`, listening in `directory`, ended on leaving."""
    options = [*options, "--uds", str(directory / "agents.sock"), "--runtime-dir", str(directory / "run")]
    options += ["--shards", str(shards), "--max-connections-per-agent", str(PER_AGENT)]
    options += ["--log-level", log_level]
    log = directory / "shardgate.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command(), "run", *options],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=ROOT,
            env=environment(),
        )
    target = Shardgate(directory, process, log)
    try:
        target.wait_until_running(shards)
        yield target
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Asks the supervisor to stop, and kills what it started when anything is left: shards outlive a killed one."""
    with contextlib.suppress(psutil.NoSuchProcess):
        everyone = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
        for left in psutil.wait_procs(everyone, timeout=STOP_TIMEOUT_S)[1]:
            left.kill()
    process.wait()


def command() -> list[str]:
    """`shardgate` beside this interpreter, or the module of this checkout when it is not installed there."""
    installed = Path(sys.executable).with_name("shardgate")
    return [str(installed)] if installed.exists() else [sys.executable, "-m", "shardgate"]


def environment() -> dict[str, str]:
    """The environment of the product: its shards, started without the current directory, find this checkout."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path}
