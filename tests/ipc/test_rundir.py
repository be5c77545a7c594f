"""The runtime directory: whose it is, who holds it, and which processes it names."""

import contextlib
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.child import StartChild
from support.product import short_folder
from support.waiting import wait_for

from ipc import handoff
from ipc.capacity import MAX_SHARDS, UNIX_PATH_MAX
from ipc.rundir import (
    AGENTS_SOCKET,
    ProcessRecord,
    RuntimeDir,
    RuntimeDirBusy,
    RuntimeDirError,
    default_runtime_dir,
    record_of_this_process,
)

IS_ROOT = os.geteuid() == 0
NOBODY = 65534

CREATE = """
import sys
from ipc.rundir import RuntimeDir, RuntimeDirError

become_ordinary()
for path in sys.argv[1:]:
    directory = RuntimeDir(path)
    try:
        directory.create()
        directory.lock()
        print("ours", flush=True)
    except RuntimeDirError as error:
        print(f"{type(error).__name__}: {error}", flush=True)
"""
"""Makes and locks directories as an ordinary user."""


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def give_to_ordinary(path: Path) -> None:
    """Give *path* to the user that children of these tests become."""
    if IS_ROOT:
        os.chown(path, NOBODY, NOBODY)


# ---- whose it is


def test_create_makes_a_private_directory_and_its_parents(folder: Path) -> None:
    directory = RuntimeDir(folder / "a" / "run")
    assert not (folder / "a").exists(), "making the object touches nothing"
    directory.create()
    directory.create()
    assert mode(directory.path) == 0o700


@pytest.mark.parametrize("wrong", [0o755, 0o777, 0o750, 0o701])
def test_create_mends_a_mode_that_lets_others_in(folder: Path, wrong: int) -> None:
    folder.chmod(wrong)
    RuntimeDir(folder).create()
    assert mode(folder) == 0o700


def test_an_ordinary_user_makes_and_mends_its_own_directory(folder: Path, start: StartChild) -> None:
    home = folder / "home"
    home.mkdir()
    mine = home / "wide"
    mine.mkdir()
    mine.chmod(0o755)
    for path in (folder, home, mine):
        give_to_ordinary(path)
    child = start(CREATE, mine, home / "new" / "run")
    assert [child.line(), child.line()] == ["ours", "ours"]
    assert (mode(mine), mode(home / "new" / "run")) == (0o700, 0o700)


def test_an_ordinary_user_is_told_which_directory_it_cannot_have(folder: Path, start: StartChild) -> None:
    if IS_ROOT:
        folder.chmod(0o755)
        theirs, closed = folder / "theirs", folder / "closed" / "run"
        theirs.mkdir(0o755)
        (folder / "closed").mkdir(0o700)
    else:
        theirs, closed = Path("/etc"), Path("/etc/shardgate-of-nobody/run")
    child = start(CREATE, theirs, theirs / "run", closed)
    assert child.line().startswith(f"RuntimeDirError: {theirs}: belongs to uid 0, not to uid ")
    assert child.line() == f"RuntimeDirError: {theirs / 'run'}: Permission denied; choose another --runtime-dir"
    assert child.line() == f"RuntimeDirError: {closed}: Permission denied; choose another --runtime-dir"


@pytest.mark.skipif(not IS_ROOT, reason="only root can give a directory away")
def test_create_refuses_a_directory_of_somebody_else_and_leaves_it_alone(folder: Path) -> None:
    theirs = folder / "run"
    theirs.mkdir()
    theirs.chmod(0o777)
    os.chown(theirs, 1234, 1234)
    with pytest.raises(RuntimeDirError, match="belongs to uid 1234, not to uid 0"):
        RuntimeDir(theirs).create()
    assert mode(theirs) == 0o777


def test_create_refuses_what_is_no_directory(folder: Path) -> None:
    file, link, dangling = folder / "file", folder / "link", folder / "dangling"
    file.touch()
    (folder / "target").mkdir(mode=0o755)
    link.symlink_to(folder / "target")
    dangling.symlink_to(folder / "nowhere")
    for path, reason in ((file, "File exists"), (link, "not a directory"), (dangling, "File exists")):
        with pytest.raises(RuntimeDirError, match=f"^{path}: {reason}; choose another --runtime-dir"):
            RuntimeDir(path).create()
    with pytest.raises(RuntimeDirError, match=f"^{file}/run: Not a directory"):
        RuntimeDir(file / "run").create()
    assert mode(folder / "target") == 0o755


def every_socket(directory: RuntimeDir) -> list[Path]:
    of_shards = [directory.shard_handoff, directory.shard_query, directory.shard_proxy]
    return [
        directory.bus,
        directory.counts,
        directory.supervisor_query,
        directory.supervisor_handoff,
        directory.path / AGENTS_SOCKET,
        *(path(MAX_SHARDS - 1) for path in of_shards),
    ]


def test_create_refuses_a_path_that_is_too_long_for_its_sockets(folder: Path) -> None:
    def with_longest_socket(length: int) -> RuntimeDir:
        filling = length - len(str(folder)) - len("//supervisor.handoff")
        return RuntimeDir(folder / ("x" * filling))

    longest = with_longest_socket(UNIX_PATH_MAX)
    longest.create()
    for path in every_socket(longest):
        handoff.listen(path).close()

    for excess in (1, 50):
        directory = with_longest_socket(UNIX_PATH_MAX + excess)
        with pytest.raises(RuntimeDirError, match=f"{excess} bytes too long for Unix sockets"):
            directory.create()
        assert not directory.path.exists()
        with pytest.raises(OSError, match="too long"):
            handoff.listen(directory.supervisor_handoff)
    # Bytes count, not characters.
    with pytest.raises(RuntimeDirError, match="too long"):
        RuntimeDir(folder / ("ü" * 50)).create()


def test_the_default_directory_follows_the_environment(
    monkeypatch: pytest.MonkeyPatch, folder: Path, start: StartChild
) -> None:
    monkeypatch.setenv("SHARDGATE_RUNTIME_DIR", str(folder))
    assert default_runtime_dir() == folder
    monkeypatch.delenv("SHARDGATE_RUNTIME_DIR")
    if IS_ROOT:
        assert default_runtime_dir() == Path("/run/shardgate")
    child = start("""
from ipc.rundir import default_runtime_dir

become_ordinary()
for session in ("/run/user/1000", ""):
    os.environ["XDG_RUNTIME_DIR"] = session
    print(default_runtime_dir(), flush=True)
print(os.geteuid(), flush=True)
""")
    assert child.line() == "/run/user/1000/shardgate"
    assert child.line() == f"/tmp/shardgate-{child.line()}"


# ---- the lock

HOLDER = """
import sys, time
from ipc.rundir import RuntimeDir, record_of_this_process

directory = RuntimeDir(sys.argv[1])
directory.create()
directory.lock()
if sys.argv[2] == "recorded":
    directory.write_supervisor(record_of_this_process("epoch", "1"))
print("holds", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("recorded", ["recorded", "unrecorded"])
def test_a_busy_directory_names_the_process_that_holds_it(folder: Path, start: StartChild, recorded: str) -> None:
    holder = start(HOLDER, folder, recorded)
    assert holder.line() == "holds"
    directory = RuntimeDir(folder)
    directory.create()
    who = f"pid {holder.pid}" if recorded == "recorded" else "another process"
    with pytest.raises(RuntimeDirBusy) as busy:
        directory.lock()
    assert str(busy.value) == (
        f"{folder}: in use by a running supervisor ({who}); stop it with"
        f" 'shardgate stop --runtime-dir {folder}' or choose another --runtime-dir"
    )

    # Whatever it leaves behind, its death frees the directory.
    holder.kill()
    directory.lock()
    with pytest.raises(RuntimeDirBusy):
        RuntimeDir(folder).lock()
    directory.unlock()
    directory.unlock()
    RuntimeDir(folder).unlock()


def test_unlocking_gives_the_directory_back_although_a_child_runs(folder: Path) -> None:
    directory = RuntimeDir(folder)
    directory.lock()
    assert mode(folder / "lock") == 0o600
    # Not even a child that inherits everything keeps it.
    command = [sys.executable, "-c", "print('runs', flush=True); input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, close_fds=False) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"runs\n"
        directory.unlock()
        directory.lock()
        directory.unlock()
        child.communicate(b"\n")
    assert child.returncode == 0


def test_a_lock_file_that_cannot_be_opened_is_an_error_that_says_so(folder: Path) -> None:
    (folder / "lock").mkdir()
    with pytest.raises(RuntimeDirError, match=f"^{folder}/lock: Is a directory; remove it"):
        RuntimeDir(folder).lock()
    with pytest.raises(RuntimeDirError, match="No such file or directory"):
        RuntimeDir(folder / "missing").lock()


# ---- records

SLEEPER = 'print("runs", flush=True); import time; time.sleep(60)'


def record_of(pid: int) -> ProcessRecord:
    """A record as process *pid* would have made it."""
    process = psutil.Process(pid)
    return ProcessRecord(pid, process.create_time(), "epoch", "1", process.create_time() - psutil.boot_time())


def test_a_record_is_alive_as_long_as_its_process(start: StartChild) -> None:
    child = start(SLEEPER)
    assert child.line() == "runs"
    record = record_of(child.pid)
    assert record.is_alive()
    os.kill(child.pid, signal.SIGSTOP)
    assert record.is_alive(), "a stopped process is alive"

    os.kill(child.pid, signal.SIGKILL)
    wait_for(lambda: psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE, "a zombie")
    assert not record.is_alive(), "a zombie is not"
    child.kill()
    assert not record.is_alive()


def test_a_process_recognises_its_own_record_read_from_the_file(folder: Path) -> None:
    directory = RuntimeDir(folder)
    record = record_of_this_process("epoch", "1.2")
    assert (record.pid, record.epoch, record.version) == (os.getpid(), "epoch", "1.2")
    directory.write_supervisor(record)
    read = directory.read_supervisor()
    assert read == record
    assert read.is_alive()


def test_a_recycled_pid_is_not_the_process_of_the_record() -> None:
    own = record_of_this_process("epoch", "1")
    assert own.started_after_boot is not None
    for seconds in (-100.0, -0.1, 0.1, 100.0):
        other = msgspec.structs.replace(own, started_after_boot=own.started_after_boot + seconds)
        assert not other.is_alive()
        # A record of a version that did not write the time since boot.
        older = msgspec.structs.replace(own, create_time=own.create_time + seconds, started_after_boot=None)
        assert not older.is_alive()
    assert msgspec.structs.replace(own, started_after_boot=None).is_alive()


@pytest.mark.parametrize("seconds", [-3600, -1, 1, 3600])
def test_a_process_is_alive_although_the_system_clock_was_set(
    folder: Path, monkeypatch: pytest.MonkeyPatch, start: StartChild, seconds: int
) -> None:
    child = start(SLEEPER)
    record, own = record_of(child.pid), record_of_this_process("epoch", "1")
    # What a step of the clock changes is the boot time in /proc/stat, and with it all that psutil derives.
    shifted = Path("/proc/stat").read_text().replace(
        f"btime {psutil.boot_time():.0f}", f"btime {psutil.boot_time() + seconds:.0f}"
    )  # fmt: skip
    (folder / "stat").write_text(shifted)
    for pid in (child.pid, os.getpid()):
        (folder / str(pid)).symlink_to(f"/proc/{pid}")
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(folder))
    assert round(psutil.Process(child.pid).create_time() - record.create_time) == seconds
    assert record.is_alive()
    assert own.is_alive()


@pytest.mark.parametrize("pid", [-1, 0, 2**22 + 1, 2**31, 2**70])
def test_a_record_with_an_impossible_pid_is_not_alive(pid: int) -> None:
    assert not ProcessRecord(pid, 0.0, "epoch", "1").is_alive()


def test_records_are_kept_apart_listed_in_order_and_forgotten_with_their_sockets(folder: Path) -> None:
    directory = RuntimeDir(folder)
    assert (directory.read_supervisor(), directory.read_shard(0), list(directory.recorded_shards())) == (None, None, [])
    records = {shard: ProcessRecord(shard + 1, 1.5, f"epoch-{shard}", "1") for shard in (0, 2, 10, 63)}
    for shard, record in records.items():
        directory.write_shard(shard, record)
    supervisor = ProcessRecord(99, 1.5, "epoch", "1")
    directory.write_supervisor(supervisor)
    # Neither of these is a record.
    for name in ("shard-x.json", "shard-.json", "shard-5.json.123.part", "shard-6.handoff"):
        (folder / name).touch()

    assert list(directory.recorded_shards()) == [0, 2, 10, 63]
    assert {shard: directory.read_shard(shard) for shard in records} == records
    assert directory.read_supervisor() == supervisor

    def of_shard(shard: int) -> list[Path]:
        return [directory.shard_handoff(shard), directory.shard_query(shard), directory.shard_proxy(shard)]

    sockets = [directory.bus, directory.counts, directory.supervisor_query, *of_shard(2)]
    others = of_shard(10)
    for path in sockets + others:
        path.touch()
    directory.forget_shard(2)
    directory.forget_supervisor()
    directory.forget_supervisor()
    assert list(directory.recorded_shards()) == [0, 10, 63]
    assert directory.read_supervisor() is None
    assert not any(path.exists() for path in sockets)
    assert all(path.exists() for path in others)


WHOLE = msgspec.json.encode(ProcessRecord(1, 1.5, "epoch", "1"))


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", WHOLE[:-1], WHOLE + b"x", b"\xff", b'{"epoch":"\xff"}', b"[" * 9000, b'{"x":' * 9000, b"null"],
)
def test_a_damaged_record_is_none(folder: Path, content: bytes) -> None:
    (folder / "shard-0.json").write_bytes(content)
    assert RuntimeDir(folder).read_shard(0) is None


def test_a_record_of_a_newer_version_can_be_read(folder: Path) -> None:
    newer = msgspec.json.decode(WHOLE) | {"color": "blue"}
    (folder / "shard-0.json").write_bytes(msgspec.json.encode(newer))
    assert RuntimeDir(folder).read_shard(0) == ProcessRecord(1, 1.5, "epoch", "1")


WRITER = """
import select, sys
from ipc.rundir import ProcessRecord, RuntimeDir

directory = RuntimeDir(sys.argv[1])
records = [ProcessRecord(1, 1.5, "a", "1"), ProcessRecord(1, 1.5, "b" * 20_000, "1")]
directory.write_shard(0, records[0])
print("begins", flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    for record in records:
        directory.write_shard(0, record)
print("ends", flush=True)
"""


def test_a_record_is_replaced_in_one_step(folder: Path, start: StartChild) -> None:
    """Whoever reads while it is written finds the old one or the new one, never a part and never nothing."""
    directory = RuntimeDir(folder)
    writer = start(WRITER, folder)
    assert writer.line() == "begins"
    changes = 0
    last = directory.read_shard(0)
    while changes < 100:
        record = directory.read_shard(0)
        assert record is not None
        assert (record.epoch[0], len(record.epoch)) in {("a", 1), ("b", 20_000)}
        changes += record != last
        last = record
    writer.say("enough")
    assert writer.line() == "ends"
    assert [path.name for path in folder.iterdir()] == ["shard-0.json"]


def test_a_record_can_be_read_by_whoever_may_enter_the_directory_whatever_the_umask(folder: Path) -> None:
    """The status directory is for a group, and our systemd unit has UMask=0077."""
    previous = os.umask(0o077)
    try:
        RuntimeDir(folder).write_shard(0, record_of_this_process("epoch", "1"))
    finally:
        os.umask(previous)
    assert mode(folder / "shard-0.json") == 0o644


# ---- numbers


def test_connection_numbers_begin_with_one_and_are_kept(folder: Path) -> None:
    directory = RuntimeDir(folder)
    assert directory.read_first_number() == 1
    directory.write_first_number(4_000_000_000_000)
    assert RuntimeDir(folder).read_first_number() == 4_000_000_000_000
    assert [path.name for path in folder.iterdir()] == ["numbers"]


@pytest.fixture(scope="module")
def module_folder() -> Iterator[Path]:
    """A folder for tests that run many times."""
    with short_folder() as path:
        yield path


@given(st.binary(max_size=20) | st.integers().map(lambda number: b"%d" % number))
def test_any_numbers_file_gives_a_number_that_can_be_used(module_folder: Path, content: bytes) -> None:
    (module_folder / "numbers").write_bytes(content)
    number = RuntimeDir(module_folder).read_first_number()
    assert number >= 1
    with contextlib.suppress(ValueError):
        assert number == max(1, int(content))
