"""Standard error, written to without ever waiting for whoever reads it.

A pipe whose reader has stopped (a stuck log shipper, a terminal after Ctrl-S) would stop the loop, and with it every
agent. O_NONBLOCK is no way out: it would hold for all processes that share the pipe. So before each write the kernel is
asked whether it takes one: at most PIPE_BUF bytes, which a pipe that is writable takes whole (pipe(7)), and a socket
that is writable has room for. What it does not take waits, up to `MOST_WAITING`; beyond that lines are dropped, and the
next one that gets through says how many.
"""

import asyncio
import contextlib
import os
import select
import stat
from collections.abc import Callable
from typing import TextIO

GATHER_SECONDS = 0.02
"""For how long lines that are many may gather before they leave together."""

MOST_WAITING = 1024 * 1024
"""Bytes that wait for a reader."""

TRY_AGAIN = 0.1


class LogOutput:
    """One stream of lines. Without a file under it (a test's own ``sys.stderr``) lines go to it directly.

    *dropped* makes the line that says how many were dropped.
    """

    def __init__(self, stream: TextIO, dropped: Callable[[int], str]) -> None:
        self._stream = stream
        self._line_for_dropped = dropped
        self._lines: list[str] = []
        self._waiting = bytearray()
        self._dropped = 0
        self._timer: asyncio.TimerHandle | None = None
        self._poll: select.poll | None = None
        try:
            self._fd = stream.fileno()
            mode = os.fstat(self._fd).st_mode
        except (OSError, ValueError):
            self._fd = -1
            return
        if not stat.S_ISREG(mode):
            self._poll = select.poll()
            self._poll.register(self._fd, select.POLLOUT)

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
        lines, self._lines = self._lines, []
        if self._fd < 0:
            if not self._stream.closed:
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
            self._dropped = 0
        self._waiting += data

    def _send(self) -> None:
        while self._waiting:
            try:
                sent = self._send_some()
            except BlockingIOError:
                sent = 0
            except OSError:
                # The reader is gone for good (EPIPE), or the disk is full: nobody can be told now.
                self._dropped += self._waiting.count(b"\n")
                self._waiting.clear()
                return
            if not sent:
                self._again()
                return
            del self._waiting[:sent]

    def _send_some(self) -> int:
        """Write something; 0, or BlockingIOError, when nothing is taken at the moment."""
        if self._poll is None:
            return os.write(self._fd, self._waiting)
        if not self._poll.poll(0):
            return 0
        # Whole lines where they fit: other processes write into the same pipe, between two writes of ours.
        chunk = self._waiting[: select.PIPE_BUF]
        end = chunk.rfind(b"\n") + 1
        return os.write(self._fd, chunk[:end] if end else chunk)

    def _again(self) -> None:
        if self._timer is None:
            with contextlib.suppress(RuntimeError):
                self._timer = asyncio.get_running_loop().call_later(TRY_AGAIN, self._due)
