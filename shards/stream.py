"""An agent's byte stream: frames out, frames in, and the descriptor that carries them."""

import errno
import os
from abc import ABC, abstractmethod
from time import monotonic, thread_time
from typing import Protocol, cast

from dialout import FrameDecoder, FrameError
from ipc.at_work import NOTHING
from ipc.events import CloseCode
from ipc.options import PoolOptions
from ipc.readiness import READ, WRITE, Readiness
from shards.holding import Holding

READ_SIZE = 65536
"""Bytes of one read. A readiness event causes one read; unread bytes report again after all other streams had a
turn."""

SMALL_READ = 1024
"""The same until an agent has filled such a read with answers. 200 useless frames take 0.4 ms, and many agents may send
them."""

LARGE_READ = 16 * 1024
"""Bytes of a read from which on its duration is checked, even if all of its frames are of use."""

SLICE = 0.005
"""Seconds after which the duration is checked in the middle of a read, if some of its frames were of no use."""

_RESET = frozenset({errno.ECONNRESET, errno.EPIPE})


class Host(Protocol):
    """The interface of a pool that its streams use."""

    options: PoolOptions
    close_at: int
    readiness: Readiness
    holding: "Holding[Stream]"
    at_work: memoryview
    """Holds the number of the stream that is being served at this moment (`ipc.at_work`)."""

    def write_soon(self, stream: "Stream") -> None:
        """Flush the stream at the end of this turn of the loop."""

    def close_soon(self, stream: "Stream", code: CloseCode, reason: str) -> None:
        """Close the stream in a later callback, so that the calling code can finish with it."""


class Stream(ABC):
    """The only owner of one descriptor: it reads, writes and closes. It does not know the meaning of frames.

    All frames of one turn of the loop leave in one write. Subclasses set *number*, serve incoming frames (`_serve`) and
    clean up after a close by either side (`_closed`).

    *useless* counts the frames of a read that were of no use, *useless_bytes* their bytes. If there are any, `_spent`
    receives the cost of the read. The monotonic clock is cheap to read, but runs on while another process has the
    processor. The thread's processor clock is read only for a stream that is *watched*.
    """

    __slots__ = (
        "decoder",
        "fd",
        "holds",
        "number",
        "offset",
        "out",
        "pool",
        "read_size",
        "sending",
        "useless",
        "useless_bytes",
        "waiting_bytes",
        "wants_write",
        "watched",
    )

    number: int

    def __init__(self, pool: Host, fd: int) -> None:
        self.pool = pool
        self.fd = fd
        self.decoder = FrameDecoder(pool.options.max_answer_bytes)
        # Unwritten bytes: *out* has the frames of this turn, *sending* the rest of an earlier write.
        self.out: list[bytes | bytearray] | None = None
        self.sending: memoryview | None = None
        self.waiting_bytes = 0
        self.offset = 0
        self.wants_write = False
        # Whether the pool's *holding* has an entry for this stream.
        self.holds = False
        self.useless = self.useless_bytes = 0
        self.read_size = SMALL_READ
        self.watched = False

    @abstractmethod
    def _serve(self, frame_type: int, payload: bytes) -> None:
        """Take a frame from the agent."""

    @abstractmethod
    def _spent(self, seconds: float, frames: int) -> None:
        """Note that *frames* frames of a read took *seconds*. Called for large reads and those with useless frames."""

    @abstractmethod
    def _closed(self, code: CloseCode, reason: str) -> None:
        """Clean up. The descriptor has been closed for *reason*."""

    def start(self, unsent: bytes, residue: bytes) -> None:
        """Write *unsent* (the acceptance), serve *residue* (the agent's early bytes), and begin to read."""
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
            self._note_held(begun=False)
        if residue:
            self._take(residue)

    def send(self, frame: bytes) -> None:
        """Queue a frame. It leaves in one write with all other frames of this turn of the loop."""
        waiting = self.waiting_bytes = self.waiting_bytes + len(frame)
        if self.sending is not None:
            self._pile_up(frame)
        elif self.out is None:
            self.out = [frame]
            self.pool.write_soon(self)
        else:
            self.out.append(frame)
        if waiting > self.pool.close_at:
            reason = f"the agent does not read: {waiting} bytes wait for it"
            self.pool.close_soon(self, CloseCode.NOT_READING, reason)

    def close(self, code: CloseCode, reason: str) -> None:
        """Close the descriptor and clean up. A second call does nothing."""
        fd = self.fd
        if fd < 0:
            return
        self.pool.readiness.forget(fd)
        self.fd = -1
        os.close(fd)
        self.out = self.sending = None
        self._hold_nothing()
        self._closed(code, reason)

    @property
    def unsent(self) -> bytes:
        """A copy of the unwritten bytes, in their order."""
        return b"".join([self.sending or b"", *(self.out or ())])

    def let_go(self) -> int:
        """Give up the descriptor and return it, open and unwatched.

        The stream is over after that. `_closed` is not called.
        """
        fd, self.fd = self.fd, -1
        self.pool.readiness.forget(fd)
        self.out = self.sending = None
        self._hold_nothing()
        return fd

    def make_room(self) -> None:
        """Close this stream, a large holder, because all streams together hold more than `max_held_bytes`."""
        unsent, options = self.waiting_bytes, self.pool.options
        half = self.decoder.buffered
        held = f"{half} bytes of an unfinished frame" if half >= unsent else f"{unsent} bytes that wait for it"
        reason = f"agents make the shard hold more than {options.max_held_bytes} bytes, this one {held}"
        self.pool.close_soon(self, CloseCode.BAD_FRAME if half >= unsent else CloseCode.NOT_READING, reason)

    def on_ready(self, _events: int) -> None:
        """Write unsent bytes, then read once."""
        if self.wants_write:
            self.flush()
        if self.fd >= 0:
            self.read()

    def read(self) -> None:
        """Read once and serve the complete frames. Close at the end of the stream."""
        size, decoder = self.read_size, self.decoder
        if decoder.wanted > size:
            # The rest of a large frame is one frame, so a large read of it serves one frame.
            size = min(READ_SIZE, max(size, decoder.wanted - decoder.buffered))
        try:
            data = os.read(self.fd, size)
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
        """Write unsent bytes, as many as the socket takes."""
        if self.fd < 0:
            return
        if self.sending is None:
            if self.out is None:
                return
            frames, self.out = self.out, None
            data: bytes | bytearray | memoryview = frames[0] if len(frames) == 1 else b"".join(frames)
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
        wanted = self.sending is not None or self.out is not None
        if self.wants_write is not wanted:
            self._want_write(wanted=wanted)
        if wanted or self.holds:
            self._note_held(begun=False)

    def _pile_up(self, frame: bytes) -> None:
        """Queue a frame behind unread bytes. One bytearray for all takes much less memory than an object for each."""
        if self.out is None:
            self.out = [bytearray(frame)]
        elif type(self.out[-1]) is bytearray:
            self.out[-1] += frame
        else:
            self.out.append(bytearray(frame))
        self._note_held(begun=False)

    def _note_held(self, *, begun: bool) -> None:
        """Update the pool's count of held bytes: the incomplete frame and the rest of a write."""
        holding, half = self.pool.holding, self.decoder.buffered
        size = half
        if self.sending is not None:
            # The whole buffer stays in memory until its last byte has been written.
            size += len(cast("bytes", self.sending.obj)) + self.waiting_bytes - len(self.sending)
        self.holds = holding.note(self, size, unfinished=half > 0, begun=begun)
        if holding.total > holding.limit:
            for stream in holding.take_largest():
                stream.holds = False
                stream.make_room()

    def _hold_nothing(self) -> None:
        if self.holds:
            self.holds = self.pool.holding.note(self, 0, unfinished=False, begun=False)

    def _want_write(self, *, wanted: bool) -> None:
        if self.wants_write != wanted:
            self.wants_write = wanted
            self.pool.readiness.change(self.fd, READ | WRITE if wanted else READ)

    def _take(self, data: bytes) -> None:
        clock = thread_time if self.watched else monotonic
        began = clock()
        at_work = self.pool.at_work
        at_work[0] = self.number
        try:
            frames = self.decoder.feed(data)
        except FrameError as error:
            for frame_type, payload in error.frames:
                self._serve(frame_type, payload)
            self.close(CloseCode.BAD_FRAME, str(error))
            at_work[0] = NOTHING
            return
        served = 0
        for frame_type, payload in frames:
            self._serve(frame_type, payload)
            served += 1
            if self.useless and (seconds := clock() - began) > SLICE:
                self._spent(seconds, served)
                clock = thread_time
                began, served, self.useless, self.useless_bytes = clock(), 0, 0, 0
        at_work[0] = NOTHING
        if self.useless or len(data) >= LARGE_READ:
            self._spent(clock() - began, served)
            self.useless = self.useless_bytes = 0
        elif served and len(data) == self.read_size:
            self.read_size = READ_SIZE
        if (self.decoder.wanted or self.holds) and self.fd >= 0:
            self._note_held(begun=bool(frames))


def _code_for(error: OSError) -> CloseCode:
    return CloseCode.RESET_BY_AGENT if error.errno in _RESET else CloseCode.CONNECTION_LOST
