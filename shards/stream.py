"""An agent's byte stream: frames out, frames in, and the descriptor under them."""

import errno
import os
from abc import ABC, abstractmethod
from typing import Protocol

from dialout import FrameDecoder, FrameError
from ipc.events import CloseCode
from ipc.options import PoolOptions
from ipc.readiness import READ, WRITE, Readiness

READ_SIZE = 65536
"""Bytes of one read. One read for each readiness event: what is left reports again, after everybody else."""


_RESET = frozenset({errno.ECONNRESET, errno.EPIPE})


class Host(Protocol):
    """What a stream needs of the pool that it belongs to."""

    options: PoolOptions
    readiness: Readiness

    def write_soon(self, stream: "Stream") -> None:
        """Flush the stream at the end of this turn of the loop."""

    def close_soon(self, stream: "Stream", code: CloseCode, reason: str) -> None:
        """Close the stream, but not under the feet of whoever is just using it."""


class Stream(ABC):
    """The only owner of one descriptor: it reads, writes and closes, and knows nothing of what frames mean.

    Frames of one turn of the loop leave in one write. Subclasses serve the frames that come (`_serve`), and clean up
    when the stream has been closed, by either side (`_closed`).
    """

    __slots__ = ("decoder", "fd", "offset", "out", "pool", "sending", "waiting_bytes", "wants_write")

    def __init__(self, pool: Host, fd: int) -> None:
        self.pool = pool
        self.fd = fd
        self.decoder = FrameDecoder()
        # What waits to be written: the frames of this turn, and what an earlier write left over.
        self.out: list[bytes] | None = None
        self.sending: memoryview | None = None
        self.waiting_bytes = 0
        self.offset = 0
        self.wants_write = False

    @abstractmethod
    def _serve(self, frame_type: int, payload: bytes) -> None:
        """Take a frame from the agent."""

    @abstractmethod
    def _closed(self, code: CloseCode, reason: str) -> None:
        """Clean up: the descriptor is closed, for *reason*."""

    def start(self, unsent: bytes, residue: bytes) -> None:
        """Write what is to be written first (the acceptance), serve what the agent sent early, and begin to read."""
        self.pool.readiness.watch(self.fd, self)
        try:
            sent = os.write(self.fd, unsent) if unsent else 0
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self.close(_code_for(error), f"gone before the first write: {error.strerror}")
            return
        self.offset += sent
        if sent < len(unsent):
            self.sending = memoryview(unsent)[sent:]
            self.waiting_bytes = len(self.sending)
            self._want_write(wanted=True)
        if residue:
            self._take(residue)

    def send(self, frame: bytes) -> None:
        """Queue a frame; it leaves with everything else of this turn of the loop."""
        if self.out is None:
            self.out = [frame]
            if self.sending is None:
                self.pool.write_soon(self)
        else:
            self.out.append(frame)
        self.waiting_bytes += len(frame)
        if self.waiting_bytes > self.pool.options.close_at:
            reason = f"the agent does not read: {self.waiting_bytes} bytes wait for it"
            self.pool.close_soon(self, CloseCode.NOT_READING, reason)

    def close(self, code: CloseCode, reason: str) -> None:
        """Close the descriptor and clean up. Closing again does nothing."""
        fd = self.fd
        if fd < 0:
            return
        self.pool.readiness.forget(fd)
        self.fd = -1
        os.close(fd)
        self.out = self.sending = None
        self._closed(code, reason)

    @property
    def unsent(self) -> bytes:
        """A copy of what waits to be written, in its order."""
        return b"".join([self.sending or b"", *(self.out or ())])

    def let_go(self) -> int:
        """Give the descriptor up and return it, open and unwatched. Nothing is cleaned up; the stream is over."""
        fd, self.fd = self.fd, -1
        self.pool.readiness.forget(fd)
        self.out = self.sending = None
        return fd

    def on_ready(self, _events: int) -> None:
        """Write what waits, then read once."""
        if self.wants_write:
            self.flush()
        if self.fd >= 0:
            self.read()

    def read(self) -> None:
        """Read once and serve the frames that are complete by that; close at the end of the stream."""
        try:
            data = os.read(self.fd, READ_SIZE)
        except BlockingIOError:
            return
        except OSError as error:
            self.close(_code_for(error), f"read failed: {error.strerror}")
            return
        if data:
            self._take(data)
            return
        try:
            self.decoder.feed_eof()
        except FrameError as error:
            self.close(CloseCode.BAD_FRAME, str(error))
        else:
            self.close(CloseCode.CLOSED_BY_AGENT, "closed by the agent")

    def flush(self) -> None:
        """Write what waits, as far as the agent takes it."""
        if self.fd < 0:
            return
        if self.sending is None:
            if self.out is None:
                return
            frames, self.out = self.out, None
            data: bytes | memoryview = frames[0] if len(frames) == 1 else b"".join(frames)
        else:
            data = self.sending
        try:
            sent = os.write(self.fd, data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self.close(_code_for(error), f"write failed: {error.strerror}")
            return
        self.offset += sent
        self.waiting_bytes -= sent
        # A view, not a copy of the rest: a frame of 16 MiB leaves in hundreds of writes.
        self.sending = memoryview(data)[sent:] if sent < len(data) else None
        self._want_write(wanted=self.sending is not None or self.out is not None)

    def _want_write(self, *, wanted: bool) -> None:
        if self.wants_write != wanted:
            self.wants_write = wanted
            self.pool.readiness.change(self.fd, READ | WRITE if wanted else READ)

    def _take(self, data: bytes) -> None:
        try:
            frames = self.decoder.feed(data)
        except FrameError as error:
            for frame_type, payload in error.frames:
                self._serve(frame_type, payload)
            self.close(CloseCode.BAD_FRAME, str(error))
            return
        for frame_type, payload in frames:
            self._serve(frame_type, payload)


def _code_for(error: OSError) -> CloseCode:
    return CloseCode.RESET_BY_AGENT if error.errno in _RESET else CloseCode.CONNECTION_LOST
