"""The runtime directory, in which the processes of one shardgate find each other.

It has mode 0700 and contains::

    lock                 flock of the one supervisor
    supervisor.json      record of the supervisor (pid, create time, epoch)
    supervisor.query     status queries to the supervisor
    supervisor.handoff   takeover requests of the next supervisor
    bus                  the bus, bound by the supervisor
    counts               counts of agents, published by the supervisor
    agents.sock          agents, if the configuration has no listener
    numbers              connection numbers below this one have been used
    totals.json          counts of ended shards, for the next supervisor
    shard-<i>.json       record of shard i
    shard-<i>.handoff    descriptor handoff, listened on by shard i
    shard-<i>.query      status queries to shard i
    shard-<i>.proxy      events from proxies to shard i

A record identifies a process by pid *and* create time, so that a process with a recycled pid is not taken for it.
"""

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import psutil

from ipc import names
from ipc.capacity import MAX_SHARDS, UNIX_PATH_MAX
from ipc.folders import make_private
from ipc.replacing import replace

if TYPE_CHECKING:
    # It imports the logging, which commands do not need.
    from ipc.side_files import SideFiles

ENVIRONMENT_VARIABLE = "SHARDGATE_RUNTIME_DIR"

_SUPERVISOR_SOCKETS = ("supervisor.query", "supervisor.handoff", "bus", "counts")
_FILES = ("lock", "numbers")
_SHARD_SOCKETS = ("handoff", "query", "proxy")
AGENTS_SOCKET = "agents.sock"
"""The Unix socket in the runtime directory that is used if the configuration has no listener."""

_LONGEST_NAME = max(
    (*_SUPERVISOR_SOCKETS, AGENTS_SOCKET, *(f"shard-{MAX_SHARDS - 1}.{kind}" for kind in _SHARD_SOCKETS)), key=len
)


class RuntimeDirError(Exception):
    """The runtime directory cannot be used. The message says how to fix it."""


class RuntimeDirBusy(RuntimeDirError):
    """Another living supervisor holds the directory."""


class ProcessRecord(msgspec.Struct, frozen=True):
    """The process that has a role in this runtime directory.

    *create_time* is in seconds since 1970. It changes when the system clock is set, because the kernel keeps only the
    time since boot. So *started_after_boot*, if present, identifies the process instead.
    """

    pid: int
    create_time: float
    epoch: str
    version: str
    started_after_boot: float | None = None

    def is_alive(self) -> bool:
        """Whether this very process still runs. A zombie does not."""
        try:
            process = psutil.Process(self.pid)
            # psutil derives the time from clock ticks of 10 ms, so the comparison needs a tolerance.
            if self.started_after_boot is None:
                difference = process.create_time() - self.create_time
            else:
                difference = _started_after_boot(process) - self.started_after_boot
            return abs(difference) < 0.02 and process.status() != psutil.STATUS_ZOMBIE
        except (psutil.Error, ValueError):
            # ValueError: the number is not a valid pid.
            return False

    def belongs_to(self, uid: int) -> bool:
        """Whether that process runs as user *uid*. Processes of other users must not be adopted or ended."""
        try:
            return psutil.Process(self.pid).uids().effective == uid
        except (psutil.Error, ValueError):
            return False


def record_of_this_process(epoch: str, version: str) -> ProcessRecord:
    """Make the record of the calling process."""
    process = psutil.Process()
    return ProcessRecord(process.pid, process.create_time(), epoch, version, _started_after_boot(process))


def _started_after_boot(process: psutil.Process) -> float:
    # psutil adds the boot time, which follows the system clock, to the kernel's value.
    return process.create_time() - psutil.boot_time()


def default_runtime_dir() -> Path:
    """Return the runtime directory to use if none is configured.

    It is ``$SHARDGATE_RUNTIME_DIR``, else ``/run/shardgate`` for root, else ``$XDG_RUNTIME_DIR/shardgate``, else a
    directory of the user in ``/tmp``.
    """
    if named := os.environ.get(ENVIRONMENT_VARIABLE):
        return Path(named)
    if os.geteuid() == 0:
        return Path("/run/shardgate")
    if session := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(session) / "shardgate"
    return Path(f"/tmp/shardgate-{os.geteuid()}")  # noqa: S108 - created 0700 and checked to be ours


_WHAT_TO_DO = {
    errno.ENOSPC: "make room there, or choose another --runtime-dir",
    errno.EDQUOT: "make room there, or choose another --runtime-dir",
    errno.EROFS: "mount it for writing, or choose another --runtime-dir",
    errno.ENOENT: "choose another --runtime-dir",
}


def excess_length(path: str | os.PathLike[str]) -> int:
    """The number of bytes by which the longest socket path in *path* exceeds the limit, 0 or less if it fits."""
    return len(os.fsencode(Path(path).absolute() / _LONGEST_NAME)) - UNIX_PATH_MAX


class RuntimeDir:
    """Paths, records and the lock of one runtime directory.

    The constructor touches no files. `create` makes the directory and `lock` takes it. A process that serves sets
    *files*; then the methods that write and remove files never raise, see `ipc.side_files`. Otherwise they raise
    OSError.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()
        self.files: SideFiles | None = None
        self.maker: Callable[[], object] | None = None
        """Makes the directory again, if `create` is not the right way."""
        self._lock_fd = -1
        self._names: list[int] = []

    @property
    def bus(self) -> Path:
        """The socket of the bus."""
        return self.path / "bus"

    @property
    def counts(self) -> Path:
        """The socket on which the supervisor publishes counts."""
        return self.path / "counts"

    @property
    def supervisor_query(self) -> Path:
        """The supervisor's query socket."""
        return self.path / "supervisor.query"

    @property
    def supervisor_handoff(self) -> Path:
        """The socket on which a supervisor receives the takeover request of the next one."""
        return self.path / "supervisor.handoff"

    def shard_handoff(self, shard: int) -> Path:
        """The socket on which a shard receives descriptors."""
        return self.path / f"shard-{shard}.handoff"

    def shard_query(self, shard: int) -> Path:
        """A shard's query socket."""
        return self.path / f"shard-{shard}.query"

    def shard_proxy(self, shard: int) -> Path:
        """The socket on which a shard receives events from proxies."""
        return self.path / f"shard-{shard}.proxy"

    def is_ours(self, path: Path) -> bool:
        """Whether the processes of this directory use *path*."""
        ours = path.suffix in (".json", ".query", ".handoff", ".proxy") or path.name in (*_SUPERVISOR_SOCKETS, *_FILES)
        return ours and path.parent == self.path

    def create(self) -> None:
        """Make the directory with mode 0700. If it exists, check that it belongs to this user, and make it private.

        Raises `RuntimeDirError` if the directory cannot be made or belongs to another user. Also raises it if the path
        of a socket in it would be too long.
        """
        self.check_length()
        try:
            make_private(self.path)
            info = self.path.lstat()
        except OSError as error:
            raise RuntimeDirError(f"{self.path}: {error.strerror}; choose another --runtime-dir") from error
        if not stat.S_ISDIR(info.st_mode):
            raise RuntimeDirError(f"{self.path}: not a directory; choose another --runtime-dir")
        if info.st_uid != os.geteuid():
            raise RuntimeDirError(
                f"{self.path}: belongs to uid {info.st_uid}, not to uid {os.geteuid()}; choose another --runtime-dir"
            )
        if info.st_mode & 0o077:
            # systemd's RuntimeDirectory= defaults to 0755. The files inside are for this user alone.
            self.path.chmod(0o700)

    def make_again(self) -> None:
        """Make the directory again after it was removed, in the same way as before. Raises `RuntimeDirError`."""
        if self.maker is None:
            self.create()
        else:
            self.maker()

    def check_usable(self) -> None:
        """Check that the files of a shard can be made here now. Raises OSError with the path of the directory."""
        probes = [self.path / f"probe-{n}.{os.getpid()}.part" for n in range(1 + len(_SHARD_SOCKETS))]
        try:
            for probe in probes:
                os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        except OSError as error:
            raise OSError(error.errno, error.strerror, os.fspath(self.path)) from error
        finally:
            for probe in probes:
                with contextlib.suppress(OSError):
                    probe.unlink()

    def check_length(self) -> None:
        """Raise `RuntimeDirError` if the path of a socket in the directory would be too long."""
        if (excess := excess_length(self.path)) > 0:
            raise RuntimeDirError(
                f"{self.path}: the path is {excess} bytes too long for Unix sockets"
                f" ({UNIX_PATH_MAX} at most); choose a shorter directory"
            )

    def lock(self) -> None:
        """Take the directory for this process until it ends or calls `unlock`.

        Call it again if the lock file was removed. Raises `RuntimeDirBusy` if a living supervisor holds the directory,
        and `RuntimeDirError` if it cannot be locked. Take the lock before binding any socket here. ZeroMQ's bind
        removes an existing file at its path, even the socket of a living server.
        """
        try:
            fd = os.open(self.lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            hint = _WHAT_TO_DO.get(error.errno or 0, "remove it or choose another --runtime-dir")
            raise RuntimeDirError(f"{self.lock_path}: {error.strerror}; {hint}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            record = self.read_supervisor()
            raise self._busy(f"pid {record.pid}" if record else "another process") from None
        if not self._names:
            # The lock file may be new. The former one may have been removed while a supervisor ran.
            self._names, pid = names.take(self.path)
            if pid is not None:
                os.close(fd)
                raise self._busy(f"pid {pid}, whose lock file was removed")
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
        self._lock_fd = fd

    def _busy(self, who: str) -> RuntimeDirBusy:
        return RuntimeDirBusy(
            f"{self.path}: in use by a running supervisor ({who}); stop it with"
            f" 'shardgate stop --runtime-dir {self.path}' or choose another --runtime-dir"
        )

    def lock_names(self) -> None:
        """Take the names that belong to the lock, if this process has only its file."""
        if not self._names:
            self._names, _ = names.take(self.path)

    @property
    def is_locked(self) -> bool:
        """Whether this process has the lock."""
        return self._lock_fd >= 0

    @property
    def lock_path(self) -> Path:
        """The lock file."""
        return self.path / "lock"

    @property
    def lock_descriptors(self) -> list[int]:
        """The descriptors of the lock, its file first, while this process has it. Copies of them share the lock."""
        return [self._lock_fd, *self._names]

    def is_lock(self, fd: int) -> bool:
        """Whether *fd* is a descriptor of this directory's lock: its file or one of its names."""
        if name := names.name_at(fd):
            return name in names.names_of(self.path)
        try:
            return os.path.samestat(os.fstat(fd), self.lock_path.stat())
        except OSError:
            return False

    def inherit_lock(self, fd: int) -> None:
        """Take the directory with a copy of one of the lock's descriptors. This object then owns *fd*."""
        if names.name_at(fd):
            self._names.append(fd)
        else:
            self._lock_fd = fd

    def holder(self) -> int | None:
        """The pid of this user's supervisor that has the directory, even if the directory is gone. None if unknown."""
        return names.holder(self.path)

    def unlock(self) -> None:
        """Release the directory, unless another process has a copy of the lock."""
        names.release(self._names)
        self._names = []
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def read_supervisor(self) -> ProcessRecord | None:
        """Read the record of the supervisor, alive or not. Returns None if there is no readable record."""
        return self._read("supervisor.json")

    def read_shard(self, shard: int) -> ProcessRecord | None:
        """Read the record of a shard, alive or not. Returns None if there is no readable record."""
        return self._read(f"shard-{shard}.json")

    def write_supervisor(self, record: ProcessRecord) -> None:
        """Write the record of the supervisor, in one step."""
        self._write("supervisor.json", record)

    def write_shard(self, shard: int, record: ProcessRecord) -> None:
        """Write the record of a shard, in one step."""
        self._write(f"shard-{shard}.json", record)

    def read_first_number(self) -> int:
        """The lowest connection number that no supervisor of this directory has used."""
        try:
            return max(1, int((self.path / "numbers").read_text()))
        except (OSError, ValueError):
            return 1

    def write_first_number(self, number: int) -> bool:
        """Record that all connection numbers below *number* may have been used. Returns whether it is on disk now."""
        return self._replace("numbers", b"%d" % number)

    def read_totals(self) -> bytes:
        """Read the totals that `write_totals` wrote last. Returns empty bytes if there are none."""
        try:
            return (self.path / "totals.json").read_bytes()
        except OSError:
            return b""

    def write_totals(self, totals: bytes) -> None:
        """Write the counts of ended shards, for the next supervisor."""
        self._replace("totals.json", totals)

    def forget_totals(self) -> None:
        """Remove the totals, so that the next supervisor starts at zero."""
        self._remove("totals.json")

    def recorded_shards(self) -> Iterator[int]:
        """The numbers of the shards that have a record, ascending."""
        numbers = []
        for path in self.path.glob("shard-*.json"):
            number = path.stem.removeprefix("shard-")
            if number.isdecimal():
                numbers.append(int(number))
        yield from sorted(numbers)

    def forget_supervisor(self) -> None:
        """Remove the supervisor's record and sockets."""
        self._remove("supervisor.json", *_SUPERVISOR_SOCKETS)

    def forget_shard(self, shard: int) -> None:
        """Remove a shard's record and sockets."""
        self._remove(f"shard-{shard}.json", *(f"shard-{shard}.{kind}" for kind in _SHARD_SOCKETS))

    def forget_all_shards(self) -> None:
        """Remove the files of all shards. Call it at the end, when no shard runs any more.

        It includes shards without a record: a shard may have been killed during its start.
        """
        for path in self.path.glob("shard-*.*"):
            number = path.name.removeprefix("shard-").partition(".")[0]
            if number.isdecimal():
                self.forget_shard(int(number))

    def _read(self, name: str) -> ProcessRecord | None:
        try:
            return msgspec.json.decode((self.path / name).read_bytes(), type=ProcessRecord)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None

    def _write(self, name: str, record: ProcessRecord) -> None:
        self._replace(name, msgspec.json.encode(record))

    def _replace(self, name: str, content: bytes) -> bool:
        if self.files is not None:
            return self.files.write(self.path / name, content)
        replace(self.path / name, content)
        return True

    def _remove(self, *names: str) -> None:
        if self.files is not None:
            self.files.remove(*(self.path / name for name in names))
            return
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                (self.path / name).unlink()
