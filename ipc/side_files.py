"""Files that are written for later: records, numbers, totals. The one place that writes and removes them.

What is written for later never stops what happens now: a full file system, one that is mounted read-only, a directory
that is gone or closed. So nothing here raises. What cannot be written is kept, said once, counted, and tried again with
back-off, with the newest content that there is.
"""

import asyncio
import os
from pathlib import Path

from ipc.logs import get_logger
from ipc.replacing import replace

FIRST_PAUSE, LONGEST_PAUSE = 0.25, 2.0
"""Seconds between two attempts to write one file: doubled each time. A small write costs 30 µs."""


class _Unwritten:
    """A file whose newest content is not on disk."""

    __slots__ = ("attempts", "content", "due", "reason")

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.attempts = 0
        self.due = 0.0
        self.reason = ""


class SideFiles:
    """Writes the side files of one process. Make it on a running loop."""

    def __init__(self) -> None:
        self.failures_total = 0
        """Attempts to write or to remove a file that failed."""
        self._loop = asyncio.get_running_loop()
        self._log = get_logger()
        self._unwritten: dict[Path, _Unwritten] = {}
        self._contents: dict[Path, bytes] = {}
        self._said: set[tuple[str, int]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def problems(self) -> list[str]:
        """What is not on disk as it should be, and why, for people."""
        return [f"{path} cannot be written: {one.reason}" for path, one in self._unwritten.items()]

    def write(self, path: Path, content: bytes) -> bool:
        """Have *path* hold *content*, in one step; whether it does by now. What fails is tried again."""
        if self._closed:
            return False
        self._contents[path] = content
        waiting = self._unwritten.get(path)
        if waiting is not None:
            waiting.content = content
            if self._loop.time() < waiting.due:
                return False
        return self._try(path, waiting or _Unwritten(content))

    def look(self) -> None:
        """Write those again that somebody has removed."""
        for path, content in list(self._contents.items()):
            if not os.path.lexists(path):
                self.write(path, content)

    def remove(self, *paths: Path) -> None:
        """Remove files, and write them no more. One that stays is in nobody's way, and is not tried again."""
        for path in paths:
            self._contents.pop(path, None)
            self._unwritten.pop(path, None)
            try:
                path.unlink()
            except FileNotFoundError:
                continue
            except OSError as error:
                self._failed("file cannot be removed", path, error)

    def close(self) -> None:
        """Write nothing any more: another process does, or none."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _try(self, path: Path, one: _Unwritten) -> bool:
        try:
            replace(path, one.content)
        except OSError as error:
            one.attempts += 1
            one.reason = error.strerror or str(error)
            pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(one.attempts - 1, 16))
            one.due = self._loop.time() + pause
            self._unwritten[path] = one
            self._failed("file cannot be written, trying again", path, error)
            if self._timer is None:
                self._timer = self._loop.call_later(pause, self._try_again)
            return False
        if one.attempts:
            del self._unwritten[path]
            self._log.info("file written again", path=str(path), failures=one.attempts)
            if not self._unwritten:
                # The next trouble is another one.
                self._said.clear()
        return True

    def _try_again(self) -> None:
        self._timer = None
        try:
            now = self._loop.time()
            for path, one in list(self._unwritten.items()):
                if one.due <= now:
                    self._try(path, one)
        finally:
            if self._unwritten and self._timer is None:
                self._timer = self._loop.call_later(FIRST_PAUSE, self._try_again)

    def _failed(self, event: str, path: Path, error: OSError) -> None:
        self.failures_total += 1
        kind = (event, error.errno or 0)
        if kind not in self._said:
            # The others of its kind are counted: a full disk has many files.
            self._said.add(kind)
            self._log.error(event, path=str(path), reason=error.strerror or str(error))
