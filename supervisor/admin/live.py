"""Server-sent events for the page: a snapshot each second, and another one when the state of a shard changes."""

import asyncio
from collections.abc import Callable, Hashable
from time import thread_time

from ipc.turns import Turns
from supervisor.admin.http import Stream

EVERY = 1.0
"""Seconds between snapshots while nothing changes."""

LOOK = 0.1
"""Seconds between checks for a change of state, while there are streams."""

MOST_STREAMS = 16


class Live:
    """The open streams. *snapshot* makes the JSON text. A change of the value of *state* causes a snapshot at once.

    The processor time is charged to *turns*, but the work does not wait for a turn.
    """

    def __init__(self, snapshot: Callable[[], bytes], state: Callable[[], Hashable], turns: Turns) -> None:
        self._snapshot, self._state, self._turns = snapshot, state, turns
        self._loop = asyncio.get_running_loop()
        self._streams: set[Stream] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._seen: Hashable = None
        self._due = 0.0
        self._made = (b"", -LOOK)

    @property
    def is_full(self) -> bool:
        """Whether all places for streams are taken."""
        return len(self._streams) >= MOST_STREAMS

    def first(self) -> bytes:
        """The first bytes of a stream. While others watch, its snapshot may be `LOOK` old."""
        message, at = self._made
        is_recent = self._timer is not None and self._loop.time() - at < LOOK
        return b"retry: 1000\n\n" + (message if is_recent else self._message())

    def follow(self, stream: Stream) -> None:
        """Send snapshots to *stream* until its client is gone."""
        self._streams.add(stream)
        stream.on_lost = lambda: self._streams.discard(stream)
        if self._timer is None:
            self._seen, self._due = self._state(), self._loop.time() + EVERY
            self._timer = self._loop.call_later(LOOK, self._look)

    def close(self) -> None:
        """Stop sending."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self._timer = None
        if not self._streams:
            return
        self._timer = self._loop.call_later(LOOK, self._look)
        before = thread_time()
        try:
            self._tell()
        finally:
            self._turns.charge(thread_time() - before)

    def _tell(self) -> None:
        """Send a snapshot when it is due, or the state has changed."""
        state, now = self._state(), self._loop.time()
        if state == self._seen and now < self._due:
            return
        self._seen, self._due = state, now + EVERY
        message = self._message()
        for stream in list(self._streams):
            if not stream.write(message):
                self._streams.discard(stream)

    def _message(self) -> bytes:
        # JSON text has no newline of its own.
        message = b"data: " + self._snapshot() + b"\n\n"
        self._made = (message, self._loop.time())
        return message
