"""The runtime directory: where the processes of one shardgate find each other.

It holds, mode 0700::

    lock                 flock of the one supervisor
    supervisor.json      record of the supervisor (pid, create time, epoch)
    supervisor.query     status queries to the supervisor
    supervisor.handoff   the next supervisor, which takes over from the running one
    bus                  the bus, bound by the supervisor
    counts               what the supervisor publishes
    numbers              connection numbers below this one have been used
    shard-<i>.json       record of shard i
    shard-<i>.handoff    descriptor handoff, listened on by shard i
    shard-<i>.query      status queries to shard i
    shard-<i>.proxy      events from proxies to shard i

A record names a process by pid *and* create time, so that a recycled pid is never taken for it.
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
    # It logs, which commands do not pay for.
    from ipc.side_files import SideFiles

ENVIRONMENT_VARIABLE = "SHARDGATE_RUNTIME_DIR"

_SUPERVISOR_SOCKETS = ("supervisor.query", "supervisor.handoff", "bus", "counts")
_FILES = ("lock", "numbers")
_SHARD_SOCKETS = ("handoff", "query", "proxy")
AGENTS_SOCKET = "agents.sock"
"""The Unix socket in the runtime directory where a configuration without a listener listens."""

_LONGEST_NAME = max(
    (*_SUPERVISOR_SOCKETS, AGENTS_SOCKET, *(f"shard-{MAX_SHARDS - 1}.{kind}" for kind in _SHARD_SOCKETS)), key=len
)


class RuntimeDirError(Exception):
    """The runtime directory cannot be used; the message says what to do."""


class RuntimeDirBusy(RuntimeDirError):
    """Another living supervisor holds the directory."""


class ProcessRecord(msgspec.Struct, frozen=True):
    """Which process serves a role of this runtime directory.

    *create_time* is seconds since 1970. It moves when somebody sets the clock, because the kernel keeps the time since
    boot only; so *started_after_boot*, where it is there, says whether a process is this one.
    """

    pid: int
    create_time: float
    epoch: str
    version: str
    started_after_boot: float | None = None

    def is_alive(self) -> bool:
        """Whether this very process still runs; a zombie does not."""
        try:
            process = psutil.Process(self.pid)
            # psutil derives the time from clock ticks of 10 ms, so equality needs that much room.
            if self.started_after_boot is None:
                difference = process.create_time() - self.create_time
            else:
                difference = _started_after_boot(process) - self.started_after_boot
            return abs(difference) < 0.02 and process.status() != psutil.STATUS_ZOMBIE
        except (psutil.Error, ValueError):
            # ValueError: no pid at all.
            return False

    def belongs_to(self, uid: int) -> bool:
        """Whether that process runs as user *uid*: no other's is to be adopted or ended, whatever a record says."""
        try:
            return psutil.Process(self.pid).uids().effective == uid
        except (psutil.Error, ValueError):
            return False


def record_of_this_process(epoch: str, version: str) -> ProcessRecord:
    """The record of the calling process."""
    process = psutil.Process()
    return ProcessRecord(process.pid, process.create_time(), epoch, version, _started_after_boot(process))


def _started_after_boot(process: psutil.Process) -> float:
    # psutil adds the boot time, which follows the system clock, to what the kernel says.
    return process.create_time() - psutil.boot_time()


def default_runtime_dir() -> Path:
    """The directory used when nobody names one.

    ``$SHARDGATE_RUNTIME_DIR``, else ``/run/shardgate`` for root, else ``$XDG_RUNTIME_DIR/shardgate``,
    else a folder of the user's own in ``/tmp``.
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
    """By how many bytes the longest path of a socket in the directory *path* is too long; 0 or less: it fits."""
    return len(os.fsencode(Path(path).absolute() / _LONGEST_NAME)) - UNIX_PATH_MAX


class RuntimeDir:
    """Paths, records and the lock of one runtime directory.

    Making the object touches nothing; `create` makes the directory, `lock` takes it. A process that serves sets
    *files*: then what is written and removed here never raises, see `ipc.side_files`. OSError otherwise.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()
        self.files: SideFiles | None = None
        self.maker: Callable[[], object] | None = None
        """Makes it again where that is not `create`."""
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
        """The socket on which a supervisor is asked to hand over to the next one."""
        return self.path / "supervisor.handoff"

    def shard_handoff(self, shard: int) -> Path:
        """The socket on which a shard takes descriptors."""
        return self.path / f"shard-{shard}.handoff"

    def shard_query(self, shard: int) -> Path:
        """A shard's query socket."""
        return self.path / f"shard-{shard}.query"

    def shard_proxy(self, shard: int) -> Path:
        """The socket on which a shard takes events from proxies."""
        return self.path / f"shard-{shard}.proxy"

    def is_ours(self, path: Path) -> bool:
        """Whether *path* is one that the processes of this directory use."""
        ours = path.suffix in (".json", ".query", ".handoff", ".proxy") or path.name in (*_SUPERVISOR_SOCKETS, *_FILES)
        return ours and path.parent == self.path

    def create(self) -> None:
        """Make the directory 0700, or check that the one that is there is a private one of ours.

        Raises `RuntimeDirError` when a socket in it would have too long a path, when it cannot be made, or
        when somebody else could put files into it.
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
            # systemd's RuntimeDirectory= defaults to 0755; what lies inside is for this user alone.
            self.path.chmod(0o700)

    def make_again(self) -> None:
        """Make the directory where it is gone, as it was made at first. Raises `RuntimeDirError`."""
        if self.maker is None:
            self.create()
        else:
            self.maker()

    def check_usable(self) -> None:
        """Raise OSError, with the path, when what a process of ours needs could not be made here now."""
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
        """Raise `RuntimeDirError` when a socket in it would have too long a path."""
        if (excess := excess_length(self.path)) > 0:
            raise RuntimeDirError(
                f"{self.path}: the path is {excess} bytes too long for Unix sockets"
                f" ({UNIX_PATH_MAX} at most); choose a shorter directory"
            )

    def lock(self) -> None:
        """Take the directory for this process until it ends or calls `unlock`; once more where the file was removed.

        Raises `RuntimeDirBusy` when a living supervisor holds it, `RuntimeDirError` when there is no way to lock.
        The lock must be taken before anything is bound here: ZeroMQ's bind removes whatever lies at its path, a
        living server's socket included.
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
            # The lock file may be a new one, in the place of one that was removed while a supervisor ran.
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
        """Take the names that go with the lock, where this process has only its file."""
        if not self._names:
            self._names, _ = names.take(self.path)

    @property
    def is_locked(self) -> bool:
        """Whether this process has the lock."""
        return self._lock_fd >= 0

    @property
    def lock_path(self) -> Path:
        """The file of the lock."""
        return self.path / "lock"

    @property
    def lock_descriptors(self) -> list[int]:
        """The descriptors of the lock, its file first, while this process has it. Copies are the same lock."""
        return [self._lock_fd, *self._names]

    def is_lock(self, fd: int) -> bool:
        """Whether *fd* is an open lock of this very directory."""
        if name := names.name_at(fd):
            return name in names.names_of(self.path)
        try:
            return os.path.samestat(os.fstat(fd), self.lock_path.stat())
        except OSError:
            return False

    def inherit_lock(self, fd: int) -> None:
        """Take the directory by a copy of one of the lock's descriptors, which is owned from now on."""
        if names.name_at(fd):
            self._names.append(fd)
        else:
            self._lock_fd = fd

    def holder(self) -> int | None:
        """The pid of the supervisor of this user that has the directory, be it gone or not; None when none is known."""
        return names.holder(self.path)

    def unlock(self) -> None:
        """Give the directory back, unless another process has got a copy of the lock."""
        names.release(self._names)
        self._names = []
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def read_supervisor(self) -> ProcessRecord | None:
        """The record of the supervisor, alive or not; None when there is none that can be read."""
        return self._read("supervisor.json")

    def read_shard(self, shard: int) -> ProcessRecord | None:
        """The record of a shard, alive or not; None when there is none that can be read."""
        return self._read(f"shard-{shard}.json")

    def write_supervisor(self, record: ProcessRecord) -> None:
        """Record the supervisor, in one step."""
        self._write("supervisor.json", record)

    def write_shard(self, shard: int, record: ProcessRecord) -> None:
        """Record a shard, in one step."""
        self._write(f"shard-{shard}.json", record)

    def read_first_number(self) -> int:
        """The lowest connection number that no supervisor of this directory has used."""
        try:
            return max(1, int((self.path / "numbers").read_text()))
        except (OSError, ValueError):
            return 1

    def write_first_number(self, number: int) -> bool:
        """Record that all connection numbers below *number* may have been used; whether that is recorded by now."""
        return self._replace("numbers", b"%d" % number)

    def read_totals(self) -> bytes:
        """What `write_totals` wrote last; empty when there is nothing."""
        try:
            return (self.path / "totals.json").read_bytes()
        except OSError:
            return b""

    def write_totals(self, totals: bytes) -> None:
        """Keep what ended shards have counted, for the supervisor after this one."""
        self._replace("totals.json", totals)

    def forget_totals(self) -> None:
        """Remove what `write_totals` wrote: the next supervisor starts at zero."""
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
        """Remove what is left of any shard, of one without a record too: it may have been killed as it started.

        For the end, when no shard runs any more.
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
