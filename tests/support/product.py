"""The real product: ``shardgate run`` in a process of its own, and everything that tests ask of it."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from support.fences import processes_with, sockets
from support.waiting import PATIENCE, wait_for


@contextlib.contextmanager
def short_folder() -> Iterator[Path]:
    """A folder with a short path: Unix sockets have 107 bytes, pytest's own folders use up most of them."""
    folder = Path(tempfile.mkdtemp(prefix="sg-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def environment() -> dict[str, str]:
    """The environment of children: it finds the same packages as this process, wherever they are."""
    found = {key: value for key, value in os.environ.items() if not key.startswith("SHARDGATE_")}
    found["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p and not p.endswith("/tests"))
    return found


class Product:
    """A running shardgate with a Unix socket, two shards and a runtime directory below *folder*.

    *options* go to ``shardgate run``, which is started behind *prefix*, with *variables* in its environment and
    *pass_fds* inherited. Its standard error is kept in *log* and printed when a test fails.
    """

    def __init__(
        self,
        folder: Path,
        *options: str,
        shards: int = 2,
        wait: bool = True,
        uds: bool = True,
        prefix: tuple[str, ...] = (),
        pass_fds: tuple[int, ...] = (),
        variables: Mapping[str, str] | None = None,
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.runtime_dir = folder / "run"
        self.socket = folder / "agents.sock"
        self.log = folder / "log"
        self._prefix, self._pass_fds = prefix, pass_fds
        self._environment = environment() | dict(variables or {})
        self._arguments = ["run", "--shards", str(shards), "--runtime-dir", str(self.runtime_dir), *options]
        if uds:
            self._arguments += ["--uds", str(self.socket)]
        self.process = self.start()
        if wait:
            try:
                self.wait_until_running()
            except BaseException:
                self.end()
                raise

    def start(self, *more: str) -> "subprocess.Popen[bytes]":
        """Start it, or start it again after it ended, with *more* options."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self._prefix, sys.executable, "-P", "-m", "shardgate", *self._arguments, *more],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=self._pass_fds,
                env=self._environment,
            )
        return self.process

    def take_over(self, *more: str) -> None:
        """Start another one in the place of this one, which must end well."""
        old = self.process
        new = self.start("--takeover", *more)
        try:
            assert old.wait(PATIENCE) == 0
        except BaseException:
            # So that `end` finds both.
            new.kill()
            new.wait()
            self.process = old
            raise
        self.wait_until_running()

    def command(
        self, *arguments: str, timeout: float = 2 * PATIENCE, stdin: str = ""
    ) -> "subprocess.CompletedProcess[str]":
        """Run another ``shardgate`` command against this one."""
        return subprocess.run(
            [sys.executable, "-P", "-m", "shardgate", *arguments, "--runtime-dir", str(self.runtime_dir)],
            capture_output=True,
            text=True,
            timeout=timeout,
            input=stdin,
            env=environment(),
            check=False,
        )

    def ask(self, *arguments: str) -> Any:
        """What a command prints with ``--json``; None when that is nothing."""
        done = self.command(*arguments, "--json")
        return json.loads(done.stdout) if done.stdout.strip() else None

    def status(self) -> Any:
        """What ``shardgate status --json`` prints."""
        return self.ask("status")

    def connections(self) -> list[dict[str, Any]]:
        """What ``shardgate connections --json`` prints."""
        return list(self.ask("connections") or [])

    def query(self, method: str, shard: int | None = None) -> Any:
        """The supervisor's or a shard's own answer, without the time that a command takes to start."""
        from ipc import query
        from ipc.rundir import RuntimeDir

        rundir = RuntimeDir(self.runtime_dir)
        path = rundir.supervisor_query if shard is None else rundir.shard_query(shard)
        return query.ask(path, method, timeout=20.0)

    def query_connections(self, shard: int) -> list[dict[str, Any]]:
        """What a shard itself says that it holds."""
        from ipc import query
        from ipc.rundir import RuntimeDir

        path = RuntimeDir(self.runtime_dir).shard_query(shard)
        return list(query.ask(path, "connections", {"limit": 10_000}, timeout=20.0))

    def counts(self) -> list[int]:
        """Connections in the pool of each shard that answers."""
        from ipc import query
        from ipc.rundir import RuntimeDir

        rundir = RuntimeDir(self.runtime_dir)
        paths = [rundir.shard_query(shard) for shard in rundir.recorded_shards()]
        answers = query.ask_many(paths, "status", timeout=5.0)
        return [answers[path]["report"][0] for path in paths if path in answers]

    def in_flight(self) -> list[int]:
        """Requests in flight in each shard, by its own word."""
        from ipc import query
        from ipc.rundir import RuntimeDir

        rundir = RuntimeDir(self.runtime_dir)
        paths = [rundir.shard_query(shard) for shard in rundir.recorded_shards()]
        return [answer["report"][2] for answer in query.ask_many(paths, "status", timeout=5.0).values()]

    def wait_until_running(self) -> None:
        """Wait until the supervisor and all shards are running."""

        def running() -> bool:
            if self.process.poll() is not None:
                raise AssertionError(f"it ended with status {self.process.returncode}:\n{self.log.read_text()}")
            try:
                answer = self.query("status")
            except Exception:  # noqa: BLE001 - not there yet
                return False
            if answer["supervisor"]["pid"] != self.process.pid:
                return False
            return answer["supervisor"]["state"] == "running" and all(
                shard["state"] == "running" for shard in answer["shards"]
            )

        wait_for(running, "the product to run")

    def tcp_address(self) -> tuple[str, int]:
        """The first address where the product listens for TCP."""
        rows = self.query("status")["supervisor"]["listeners"]
        host, _, port = next(row["address"] for row in rows if row["kind"] == "tcp").rpartition(":")
        return host.strip("[]"), int(port)

    def shard_pid(self, shard: int) -> int:
        """The pid of a shard."""
        return int(next(row["pid"] for row in self.query("status")["shards"] if row["id"] == shard))

    def pids(self) -> list[int]:
        """The pids of the supervisor and of all shards that run."""
        return [self.process.pid, *(row["pid"] for row in self.query("status")["shards"] if row["pid"])]

    def sockets(self) -> dict[int, int]:
        """Open sockets of each process."""
        return {pid: sockets(pid) for pid in self.pids()}

    def end(self) -> list[str]:
        """Stop it and return what it left: processes, socket files, an exit status other than 0."""
        leftovers = []
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                leftovers.append(f"the supervisor did not end within {PATIENCE:g} s of SIGTERM")
                self.process.kill()
                self.process.wait()
            else:
                if self.process.returncode != 0:
                    leftovers.append(f"the supervisor ended with status {self.process.returncode}")
        processes = processes_with(str(self.runtime_dir))
        for line in processes:
            os.kill(int(line.split()[0]), signal.SIGKILL)
        leftovers += [f"process {line}" for line in processes]
        leftovers += [f"file {path}" for path in self.folder.rglob("*") if path.is_socket()]
        text = self.log.read_text()
        leftovers += [
            f"log: {line}" for line in text.splitlines() if "Traceback" in line or "exception" in line.lower()
        ]
        print(f"---- log of {self.folder} ----\n{text}")
        return leftovers


@contextlib.contextmanager
def shared_product(*options: str) -> Iterator[Product]:
    """A shardgate for the tests of a module that leave it as they found it."""
    with short_folder() as folder:
        product = Product(folder / "p", *options)
        try:
            yield product
        finally:
            leftovers = product.end()
    assert leftovers == []


StartProduct = Callable[..., Product]
"""What the fixture ``start_product`` is: options of ``shardgate run`` to a running one."""
