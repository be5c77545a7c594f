"""Standard error, written to without ever waiting for its reader.

A pipe whose reader has stopped (a stuck log shipper, a terminal after Ctrl-S) would stop the loop, and with it every
agent. So each write is one that cannot wait (`ipc.log_streams`). What is not taken waits, up to `MOST_WAITING`; beyond
that lines are dropped, and the next one that gets through says how many.

A full disk takes a part of a line, and then nothing. The part is taken back, where the file ends with it; otherwise its
rest is kept, and written as soon as there is room.
"""

import asyncio
import contextlib
import errno
import io
import os
import stat
from collections.abc import Callable
from typing import TextIO

from ipc.log_streams import writer_for

GATHER_SECONDS = 0.02
"""For how long lines that are many may gather before they leave together."""

MOST_WAITING = 1024 * 1024
"""Bytes that wait for a reader."""

TRY_AGAIN = 0.1

ROOM_AGAIN = 1.0
"""Seconds between attempts to write the rest of a line to a full disk."""

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class LogOutput:
    """One stream of lines. Without a file under it (a test's own ``sys.stderr``) lines go to it directly.

    *dropped* makes the line that says how many were dropped. A signal handler may write while a write is under way: its
    line comes next.
    """

    def __init__(self, stream: TextIO | None, dropped: Callable[[int], str]) -> None:
        self._stream = stream
        self._line_for_dropped = dropped
        self._lines: list[str] = []
        self._waiting = bytearray()
        self._dropped = 0
        self._told = 0
        """How many dropped lines the lines that wait stand for, beside themselves."""
        self._begun = 0
        """Bytes of a line that are out while its rest still waits."""
        self._is_writing = False
        self._timer: asyncio.TimerHandle | None = None
        self._fd = -1
        if stream is None:
            return  # Standard error is closed.
        with contextlib.suppress(OSError, ValueError):
            fd = stream.fileno()
            self._write, self._chunk = writer_for(fd)
            self._is_file = stat.S_ISREG(os.fstat(fd).st_mode)
            self._fd = fd

    def put(self, line: str) -> None:
        """Write a line soon, with others."""
        self._lines.append(line)
        if self._timer is None:
            try:
                self._timer = asyncio.get_running_loop().call_later(GATHER_SECONDS, self._due)
            except RuntimeError:
                self.flush()

    def write(self, line: str) -> None:
        """Write a line now, behind those that have gathered."""
        self._lines.append(line)
        self.flush()

    def flush(self) -> None:
        """Write what has gathered, as far as it is taken."""
        if self._is_writing:
            return  # A signal handler has interrupted this, and what it appended is written below.
        self._is_writing = True
        try:
            self._flush()
            while self._lines:
                self._flush()
        finally:
            self._is_writing = False

    def _flush(self) -> None:
        lines, self._lines = self._lines, []
        if self._fd < 0:
            if self._stream is not None and not self._stream.closed:
                self._stream.write("".join(f"{line}\n" for line in lines))
            return
        if lines:
            lines.append("")
            self._add("\n".join(lines).encode("utf-8", "backslashreplace"), len(lines) - 1)
        self._send()

    def _due(self) -> None:
        self._timer = None
        self.flush()

    def _add(self, data: bytes, lines: int) -> None:
        if len(self._waiting) + len(data) > MOST_WAITING:
            self._dropped += lines
            return
        if self._dropped:
            self._waiting += f"{self._line_for_dropped(self._dropped)}\n".encode()
            self._told += self._dropped - 1
            self._dropped = 0
        self._waiting += data

    def _send(self) -> None:
        while self._waiting:
            # Whole lines where they fit: other processes write into the same file, between two writes of ours.
            chunk = self._waiting[: self._chunk]
            end = chunk.rfind(b"\n") + 1
            if end:
                del chunk[end:]
            try:
                sent = self._write(chunk)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                self._failed(error)
                return
            if not sent:
                self._again(TRY_AGAIN)
                return
            newline = chunk.rfind(b"\n", 0, sent) + 1
            self._begun = sent - newline if newline else self._begun + sent
            del self._waiting[:sent]
        self._told = 0

    def _failed(self, error: OSError) -> None:
        """Drop what waits: the disk is full, or the reader is gone for good (EPIPE)."""
        rest = 0
        if self._begun and error.errno in _FULL:
            if self._take_back():
                self._begun = 0
            else:
                rest = self._waiting.find(b"\n") + 1
        else:
            self._begun = 0
        self._dropped += self._waiting.count(b"\n", rest) + self._told
        self._told = 0
        del self._waiting[rest:]
        if rest:
            self._again(ROOM_AGAIN)

    def _take_back(self) -> bool:
        """Cut off the part of a line with which the file ends; False where something else came behind it."""
        if not self._is_file:
            return False
        try:
            end = os.lseek(self._fd, 0, os.SEEK_CUR)
            if os.fstat(self._fd).st_size != end:
                return False
            os.ftruncate(self._fd, end - self._begun)
            # Without O_APPEND the next write, of any process that shares the file, would leave a hole.
            os.lseek(self._fd, end - self._begun, os.SEEK_SET)
        except OSError:
            return False
        return True

    def _again(self, seconds: float) -> None:
        if self._timer is None:
            with contextlib.suppress(RuntimeError):
                self._timer = asyncio.get_running_loop().call_later(seconds, self._due)


class StandardError(io.TextIOBase):
    """Stands in for ``sys.stderr``, so that warnings and tracebacks of the interpreter wait for no reader either."""

    def __init__(self, stream: TextIO, output: LogOutput) -> None:
        self._stream = stream
        self._output = output
        self._begun = ""

    def write(self, text: str) -> int:
        """Write the lines that are complete; the rest waits for its end."""
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            self._output.write(line)
        return len(text)

    def flush(self) -> None:
        """Write what waits, as far as it is taken; a line that has begun still waits for its end."""
        self._output.flush()

    def fileno(self) -> int:
        """The descriptor, 2."""
        return self._stream.fileno()

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return self._stream.isatty()

    def writable(self) -> bool:
        """Yes."""
        return True

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """That of the stream."""
        return self._stream.encoding
