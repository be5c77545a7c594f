"""Standard error that is shared with other processes, is a terminal, or lies on a full disk."""

import json
import os
import pty
import resource
import select
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from support.child import Child, StartChild

from ipc.log_output import LogOutput, StandardError

STRANGER_FILLS_THE_PIPE = """
import fcntl, os, select, sys
from ipc.log_output import LogOutput, StandardError

shared = int(sys.argv[1])
mine = os.open(f"/proc/self/fd/{shared}", os.O_WRONLY | os.O_NONBLOCK)

def fill():
    try:
        while True:
            os.write(mine, b"x" * 4096)
    except BlockingIOError:
        pass

class Poll:
    '''Says that the pipe takes a write, and then another process is faster.'''
    def register(self, *_): pass
    def poll(self, *_):
        fill()
        return [(shared, 4)]

select.poll = Poll
output = LogOutput(os.fdopen(shared, "w"), str)
print("begin", flush=True)
output.write("a")
fill()
output.write("b")
print("done", flush=True)
"""


def told_in_time(child: Child, seconds: float = 20) -> str:
    """The next line of a child; nothing when it tells none within *seconds*."""
    assert child.process.stdout is not None
    ready, _, _ = select.select([child.process.stdout], [], [], seconds)
    return child.line() if ready else ""


def test_a_pipe_that_another_process_fills_just_before_a_write_stops_nothing(start: StartChild) -> None:
    ours, theirs = os.pipe()
    try:
        child = start(STRANGER_FILLS_THE_PIPE, theirs, keep=[theirs])
        assert child.line() == "begin"
        assert told_in_time(child) == "done"
    finally:
        os.close(ours)
        os.close(theirs)


TERMINAL = """
import os, sys
from ipc.log_output import LogOutput, StandardError

output = LogOutput(os.fdopen(int(sys.argv[1]), "w"), str)
print("begin", flush=True)
for n in range(500):
    output.write(f"{n:>300}")
print("done", flush=True)
"""


def test_a_terminal_without_a_reader_stops_nothing(start: StartChild) -> None:
    master, slave = pty.openpty()
    try:
        child = start(TERMINAL, slave, keep=[slave])
        assert child.line() == "begin"
        assert told_in_time(child) == "done"
        assert os.get_blocking(slave), "the terminal is shared with strangers"
    finally:
        os.close(master)
        os.close(slave)


@pytest.fixture
def small_files() -> Callable[[int | None], None]:
    """Lets files of this process grow to so many bytes and no more; None: as large as before."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size: int | None) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft if size is None else size, hard))

    return limit


@pytest.mark.parametrize("flags", [os.O_APPEND, 0], ids=["appended", "at a shared offset"])
def test_a_full_disk_leaves_no_half_line_also_where_another_process_writes_next(
    tmp_path: Path, small_files: Callable[[int | None], None], flags: int
) -> None:
    path = tmp_path / "log"
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | flags)
    try:
        with os.fdopen(fd, "w") as stream:
            output = LogOutput(stream, lambda n: json.dumps({"dropped": n}))
            try:
                small_files(1000)
                for n in range(8):
                    output.write(json.dumps({"n": n, "text": "x" * 300}))
            finally:
                small_files(None)
            os.write(fd, b'{"another": "process"}\n')
            output.write(json.dumps({"n": 8}))
    finally:
        signal.signal(signal.SIGXFSZ, before)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["n"] for line in lines if "n" in line] == [0, 1, 2, 8]
    assert {"another": "process"} in lines
    assert sum(line.get("dropped", 0) for line in lines) == 5


def test_the_rest_of_a_half_line_comes_before_the_next_when_it_cannot_be_taken_back(
    tmp_path: Path, small_files: Callable[[int | None], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(*_: object) -> None:
        raise PermissionError

    path = tmp_path / "log"
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with path.open("a") as stream, monkeypatch.context() as patch:
            patch.setattr(os, "ftruncate", cannot)
            output = LogOutput(stream, "dropped {}".format)
            try:
                small_files(1000)
                for n in range(6):
                    output.write(f"{n:>300}")
            finally:
                small_files(None)
            output.write(f"{6:>300}")
    finally:
        signal.signal(signal.SIGXFSZ, before)
    assert [line.strip() for line in path.read_text().splitlines()] == ["0", "1", "2", "3", "dropped 2", "6"]


def test_a_line_from_a_signal_handler_comes_behind_the_line_that_it_interrupts() -> None:
    ours, theirs = os.pipe()
    with os.fdopen(ours) as reader:
        with os.fdopen(theirs, "w") as stream:
            output = LogOutput(stream, str)
            write = output._write

            def interrupted(data: bytes | bytearray, /) -> int:
                output._write = write
                sent = write(data)
                output.write("from the handler")
                return sent

            output._write = interrupted
            output.write("first")
            output.write("last")
        assert reader.read().splitlines() == ["first", "from the handler", "last"]


def test_without_standard_error_lines_go_nowhere() -> None:
    LogOutput(None, str).write("nowhere")


WARNS = """
import os, sys, warnings
os.dup2(int(sys.argv[1]), 2)
from ipc import logs
logs.configure("shard-0")
logs.take_standard_error()
print("begin", flush=True)
for n in range(2000):
    print(f"{n:>300}", file=sys.stderr)
warnings.warn("of the interpreter", RuntimeWarning)
print("done", sys.stderr.isatty(), sys.stderr.fileno(), flush=True)
"""


def test_what_the_interpreter_writes_itself_waits_for_no_reader_either(start: StartChild) -> None:
    ours, theirs = os.pipe()
    try:
        child = start(WARNS, theirs, keep=[theirs])
        assert child.line() == "begin"
        assert told_in_time(child) == "done False 2"
    finally:
        os.close(ours)
        os.close(theirs)


def test_lines_of_the_interpreter_are_whole_and_in_the_order_of_all_lines() -> None:
    ours, theirs = os.pipe()
    with os.fdopen(ours) as reader:
        with os.fdopen(theirs, "w") as stream:
            output = LogOutput(stream, str)
            stderr = StandardError(stream, output)
            print("a warning", file=stderr)
            output.write("a line")
            stderr.write("in ")
            stderr.flush()
            output.write("another line")
            stderr.write("two parts\nbegun")
        assert reader.read().splitlines() == ["a warning", "a line", "another line", "in two parts"]
