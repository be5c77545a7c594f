"""One agent's connection, from commit to close."""

import os
import time
from typing import TYPE_CHECKING

from dialout import Capabilities, FrameDecoder, FrameError, pong_for
from ipc.handoff import Offer
from ipc.readiness import READ, WRITE

if TYPE_CHECKING:
    from shards.pool import Agent, Pool

READ_SIZE = 65536
"""Bytes of one read. One read for each readiness event: what is left reports again, after everybody else."""

MOST_UNSENT = 1024 * 1024
"""Bytes that may wait for an agent that does not read; beyond it the connection is closed with that reason."""


class Connection:
    """An agent's connection in the pool: the only owner of its descriptor.

    Frames of one turn of the loop leave in one write. The object exists once for every idle connection, so it has
    slots, and no containers while nothing is buffered.
    """

    __slots__ = (
        "agent",
        "capabilities",
        "connected_at",
        "decoder",
        "dialect",
        "fd",
        "frames",
        "frames_ignored",
        "metadata",
        "number",
        "peer",
        "pool",
        "transport",
        "unsent",
        "wants_write",
    )

    def __init__(self, pool: "Pool", agent: "Agent", offer: Offer, capabilities: Capabilities, fd: int) -> None:
        self.pool = pool
        self.agent = agent
        self.number = offer.number
        self.fd = fd
        self.dialect = offer.dialect
        self.capabilities = capabilities
        self.transport = offer.transport
        self.peer = offer.peer
        self.metadata = offer.metadata
        self.connected_at = time.time()
        self.decoder = FrameDecoder()
        self.frames = 0
        self.frames_ignored = 0
        self.unsent: bytes = b""
        self.wants_write = False

    @property
    def connection_id(self) -> str:
        """What the agent was told it is called."""
        return f"{self.agent.agent_id}-conn-{self.number}"

    def start(self, acceptance: bytes, residue: bytes) -> None:
        """Tell the agent that it is accepted, serve what it sent early, and begin to read."""
        self.pool.readiness.watch(self.fd, self)
        try:
            sent = os.write(self.fd, acceptance)
        except OSError as error:
            self.close(f"gone before its acceptance: {error.strerror}")
            return
        if sent < len(acceptance):
            self.unsent = acceptance[sent:]
            self._want_write(wanted=True)
        if residue:
            self._take(residue)

    def on_ready(self, _events: int) -> None:
        """Write what waits, then read once."""
        if self.wants_write:
            self._write()
        if self.fd >= 0:
            self.read()

    def read(self) -> None:
        """Read once and serve the frames that are complete by that; close at the end of the stream."""
        try:
            data = os.read(self.fd, READ_SIZE)
        except BlockingIOError:
            return
        except OSError as error:
            self.close(f"read failed: {error.strerror}")
            return
        if data:
            self._take(data)
            return
        try:
            self.decoder.feed_eof()
        except FrameError as error:
            self.close(str(error))
        else:
            self.close("closed by the agent")

    def send(self, frame: bytes) -> None:
        """Queue a frame; it leaves with everything else of this turn of the loop."""
        if not self.unsent:
            self.pool.write_soon(self)
            self.unsent = frame
        else:
            self.unsent = self.unsent + frame

    def flush(self) -> None:
        """Write what was queued in this turn of the loop."""
        if self.fd >= 0:
            self._write()

    def close(self, reason: str) -> None:
        """Close the descriptor and leave the pool. Closing again does nothing."""
        fd = self.fd
        if fd < 0:
            return
        self.pool.readiness.forget(fd)
        self.fd = -1
        os.close(fd)
        self.unsent = b""
        self.pool.remove(self, reason)

    def _take(self, data: bytes) -> None:
        try:
            frames = self.decoder.feed(data)
        except FrameError as error:
            for frame_type, payload in error.frames:
                self._serve(frame_type, payload)
            self.close(str(error))
            return
        for frame_type, payload in frames:
            self._serve(frame_type, payload)

    def _serve(self, frame_type: int, payload: bytes) -> None:
        self.frames += 1
        self.pool.frames_total += 1
        pong = pong_for(self.dialect, frame_type, payload)
        if pong is not None:
            self.send(pong)
        else:
            self.frames_ignored += 1

    def _write(self) -> None:
        unsent = self.unsent
        try:
            sent = os.write(self.fd, unsent)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self.close(f"write failed: {error.strerror}")
            return
        self.unsent = unsent[sent:] if sent < len(unsent) else b""
        if len(self.unsent) > MOST_UNSENT:
            self.close(f"the agent does not read: {len(self.unsent)} bytes wait for it")
            return
        self._want_write(wanted=bool(self.unsent))

    def _want_write(self, *, wanted: bool) -> None:
        if self.wants_write != wanted:
            self.wants_write = wanted
            self.pool.readiness.change(self.fd, READ | WRITE if wanted else READ)
