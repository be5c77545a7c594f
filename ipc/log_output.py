"""Writes log lines to standard error, without ever waiting for the reader.

A pipe with a stopped reader (a stuck log shipper, a terminal after Ctrl-S) would stop the loop, and with it every
agent. So each write is one that cannot block (`ipc.log_streams`). Lines that the reader does not take wait in a buffer
of `MOST_WAITING` bytes. Beyond that lines are dropped, and the next written line gives their number.

A full disk may take a part of a line, and then nothing. The part is cut off, if it is still the end of the file.
Otherwise the rest of the line is kept, and written as soon as there is room.
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
"""Seconds for which lines given to `LogOutput.put` gather before they leave in one write."""

MOST_WAITING = 1024 * 1024
"""The most bytes that wait for a reader."""

TRY_AGAIN = 0.1

ROOM_AGAIN = 1.0
"""Seconds between attempts to write the rest of a line to a full disk."""

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class LogOutput:
    """One stream of lines. Lines go directly to a stream without a descriptor, such as the ``sys.stderr`` of a test.

    *dropped* makes the line with the number of dropped lines. A signal handler may write during another write. Its line
    comes next.
    """

    def __init__(self, stream: TextIO | None, dropped: Callable[[int], str]) -> None:
        self._stream = stream
        self._line_for_dropped = dropped
        self._lines: list[str] = []
        self._waiting = bytearray()
        self._dropped = 0
        self._told = 0
        """Dropped lines that the waiting reports stand for, without the reports themselves."""
        self._begun = 0
        """Bytes of a line that are written while its rest still waits."""
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
        """Write a line soon, together with other lines."""
        self._lines.append(line)
        if self._timer is None:
            try:
                self._timer = asyncio.get_running_loop().call_later(GATHER_SECONDS, self._due)
            except RuntimeError:
                self.flush()

    def write(self, line: str) -> None:
        """Write a line now, behind the gathered lines."""
        self._lines.append(line)
        self.flush()

    def flush(self) -> None:
        """Write the gathered lines, as far as the reader takes them."""
        if self._is_writing:
            return  # A signal handler interrupted a flush. The loop below writes its line.
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
            # Write whole lines where they fit. Other processes may write to the same file between two writes.
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
        """Drop the waiting lines: the disk is full, or the reader is gone for good (EPIPE)."""
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
        """Cut off the part of a line at the end of the file. Returns False when other text has come behind it."""
        if not self._is_file:
            return False
        try:
            end = os.lseek(self._fd, 0, os.SEEK_CUR)
            if os.fstat(self._fd).st_size != end:
                return False
            os.ftruncate(self._fd, end - self._begun)
            # Otherwise the next write without O_APPEND, of any process that shares the file, would leave a hole.
            os.lseek(self._fd, end - self._begun, os.SEEK_SET)
        except OSError:
            return False
        return True

    def _again(self, seconds: float) -> None:
        if self._timer is None:
            with contextlib.suppress(RuntimeError):
                self._timer = asyncio.get_running_loop().call_later(seconds, self._due)


class StandardError(io.TextIOBase):
    """Replaces ``sys.stderr``, so that warnings and tracebacks of the interpreter never wait for a reader."""

    def __init__(self, stream: TextIO, output: LogOutput) -> None:
        self._stream = stream
        self._output = output
        self._begun = ""

    def write(self, text: str) -> int:
        """Write the complete lines. The last part waits for the end of its line."""
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            self._output.write(line)
        return len(text)

    def flush(self) -> None:
        """Write the waiting lines, as far as the reader takes them. An incomplete line still waits for its end."""
        self._output.flush()

    def fileno(self) -> int:
        """The descriptor of the stream, usually 2."""
        return self._stream.fileno()

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        return self._stream.isatty()

    def writable(self) -> bool:
        """Return True."""
        return True

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The encoding of the stream."""
        return self._stream.encoding
