"""Server-sent events for the page: a snapshot each second, and one more whenever a shard's state changes."""

import asyncio
from collections.abc import Callable, Hashable
from time import thread_time

from ipc.turns import Turns
from supervisor.admin.http import Stream

EVERY = 1.0
"""Seconds between snapshots while nothing changes."""

LOOK = 0.1
"""Seconds between looks at whether something has changed, while somebody watches."""

MOST_STREAMS = 16


class Live:
    """Whoever watches. *snapshot* makes the JSON text of now; *state* is what must be told at once, to compare.

    What it costs is charged to *turns*, and does not wait for one.
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
        """Whether no one more may watch."""
        return len(self._streams) >= MOST_STREAMS

    def first(self) -> bytes:
        """What a stream begins with: a snapshot of now, or the last one while that is no older than a look."""
        message, at = self._made
        fresh = self._timer is not None and self._loop.time() - at < LOOK
        return b"retry: 1000\n\n" + (message if fresh else self._message())

    def follow(self, stream: Stream) -> None:
        """Send snapshots to *stream* until its client is gone."""
        self._streams.add(stream)
        stream.on_lost = lambda: self._streams.discard(stream)
        if self._timer is None:
            self._seen, self._due = self._state(), self._loop.time() + EVERY
            self._timer = self._loop.call_later(LOOK, self._look)

    def close(self) -> None:
        """Send nothing any more."""
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
        """Send a snapshot when it is time, or something has changed."""
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
