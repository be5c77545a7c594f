"""Builds and drives the load generator (`loadgen.c`): agents that register and hold their connections.

The program is compiled on demand into the user's cache directory, under a name made of its source and its
compiler, so a changed source is built anew and an unchanged one costs nothing.
"""

import contextlib
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from bench.children import Child, ChildError

__all__ = ["Closed", "LoadGenerator", "LoadGeneratorError", "Registered", "Served", "build", "start"]

SOURCE = Path(__file__).with_name("loadgen.c")
FLAGS = ("-std=c11", "-O2")
#: Far above what a phase that makes progress takes; one that makes none ends earlier, see `start`.
ANSWER_TIMEOUT_S = 300.0


class LoadGeneratorError(Exception):
    """The load generator cannot be built, has ended, or refused a command."""


class _Report(msgspec.Struct, frozen=True, tag_field="phase", kw_only=True):
    """What every phase reports: the generator's own CPU in seconds, and held connections lost meanwhile."""

    cpu_user_s: float
    cpu_system_s: float
    lost: int

    @property
    def cpu_s(self) -> float:
        """The generator's own CPU, to see that it was not what the measurement waited for."""
        return self.cpu_user_s + self.cpu_system_s


class Registered(_Report, frozen=True, tag="register", kw_only=True):
    """One phase of registrations. Latencies run from before connect() to the whole answer read."""

    asked: int
    in_handshake: int
    accepted: int
    refused: int
    failed: int
    first_failure: str | None
    seconds: float
    p50_us: float
    p90_us: float
    p99_us: float
    max_us: float
    connect_retries: int
    held: int


class Closed(_Report, frozen=True, tag="close", kw_only=True):
    """All held connections closed."""

    closed: int
    seconds: float


class Served(_Report, frozen=True, tag="stats", kw_only=True):
    """Frames answered by held connections since the last such report."""

    held: int
    requests: int
    cancels: int
    pings: int
    ignored: int


_ReportT = TypeVar("_ReportT", bound=_Report)


class _Ready(msgspec.Struct, frozen=True, tag_field="phase", tag="ready"):
    descriptors: int


class _Refused(msgspec.Struct, frozen=True, tag_field="phase", tag="error"):
    error: str


_decoder = msgspec.json.Decoder(Registered | Closed | Served | _Ready | _Refused)


def build(cache: Path | None = None) -> Path:
    """The load generator's executable, compiled first when it is not in `cache` yet.

    `CC` names another compiler than `cc`. Raises `LoadGeneratorError` when there is none, or it fails.
    """
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise LoadGeneratorError(
            "the load generator is written in C and there is no C compiler: "
            "install one (Debian: apt-get install gcc libc6-dev) or name it in CC"
        )
    if cache is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shardgate-bench"
    name = hashlib.sha256(b"\0".join([SOURCE.read_bytes(), compiler.encode(), *map(str.encode, FLAGS)]))
    program = cache / f"loadgen-{name.hexdigest()[:16]}"
    if not program.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as directory:
            fresh = Path(directory) / "loadgen"
            command = [compiler, *FLAGS, "-o", str(fresh), str(SOURCE)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise LoadGeneratorError(f"{' '.join(command)} failed:\n{done.stderr}")
            fresh.rename(program)
    return program


class LoadGenerator:
    """A running load generator; one command at a time, each waits for its report.

    Every command raises `LoadGeneratorError` when the generator refuses it, has ended, or says nothing.
    """

    def __init__(self, child: Child) -> None:
        self._child = child

    def register(self, count: int, in_handshake: int) -> Registered:
        """`count` registrations, `in_handshake` of them at any moment; the accepted ones are held."""
        return self._command(f"register {count} {in_handshake}", Registered)

    def close(self) -> Closed:
        """Closes all held connections; the listener may still have to notice."""
        return self._command("close", Closed)

    def stats(self) -> Served:
        """What the held connections have answered since the last call."""
        return self._command("stats", Served)

    def _command(self, line: str, kind: type[_ReportT]) -> _ReportT:
        try:
            report = _decoder.decode(self._child.ask(line, ANSWER_TIMEOUT_S))
        except ChildError as silent:
            raise LoadGeneratorError(str(silent)) from silent
        if isinstance(report, kind):
            return report
        raise LoadGeneratorError(f"{line}: {report.error if isinstance(report, _Refused) else report}")


@contextlib.contextmanager
def start(
    address: str, *, per_id: int = 4, serve: bool = False, cancellation: bool = True, stall_s: float = 30.0
) -> Iterator[LoadGenerator]:
    """A load generator for `address`, a Unix socket's path or a TCP port of 127.0.0.1, ended on leaving.

    Agents have `per_id` connections each; `serve` makes held ones answer requests with "allow", and
    `cancellation` is what they declare: whether they can be told to forget a request. A phase in which nothing
    happens for `stall_s` seconds is given up, the handshakes under way counted as failed.
    """
    where = ["tcp", address] if address.isdigit() else ["uds", address]
    options = ["--per-id", str(per_id), "--stall-seconds", str(stall_s), *(["--serve"] if serve else [])]
    options += [] if cancellation else ["--no-cancellation"]
    with Child.start("load generator", [str(build()), *options, *where]) as child:
        try:
            _decoder.decode(child.read_line(ANSWER_TIMEOUT_S))
        except ChildError as failed:
            raise LoadGeneratorError(str(failed)) from failed
        yield LoadGenerator(child)
