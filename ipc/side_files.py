"""Writes and removes side files: records, numbers and totals for later processes. No other module writes them.

A side file must never stop the service. Its file system may be full or mounted read-only, and its directory may be gone
or closed. So no method here raises an OSError. A failed write is kept, logged once and counted. It is tried again with
backoff, with the newest content.
"""

import asyncio
import os
from pathlib import Path

from ipc.logs import get_logger
from ipc.replacing import replace

FIRST_PAUSE, LONGEST_PAUSE = 0.25, 2.0
"""Seconds between two attempts to write one file, doubled after each attempt. A small write costs 30 µs."""


class _Unwritten:
    """A file that could not be written, with its newest content."""

    __slots__ = ("attempts", "content", "due", "reason")

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.attempts = 0
        self.due = 0.0
        self.reason = ""


class SideFiles:
    """Writes the side files of one process. Needs a running loop."""

    def __init__(self) -> None:
        self.failures_total = 0
        """Number of failed attempts to write or to remove a file."""
        self._loop = asyncio.get_running_loop()
        self._log = get_logger()
        self._unwritten: dict[Path, _Unwritten] = {}
        self._contents: dict[Path, bytes] = {}
        self._said: set[tuple[str, int]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def problems(self) -> list[str]:
        """One text for each file that could not be written, with the reason."""
        return [f"{path} cannot be written: {one.reason}" for path, one in self._unwritten.items()]

    def write(self, path: Path, content: bytes) -> bool:
        """Write *content* to *path*, in one step. Returns whether it is on disk now; a failed write is tried again."""
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
        """Write the files again that were removed from disk."""
        for path, content in list(self._contents.items()):
            if not os.path.lexists(path):
                self.write(path, content)

    def remove(self, *paths: Path) -> None:
        """Remove files, and write them no more. A failed removal does no harm, and is not tried again."""
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
        """Stop writing. Another process may write the files from now on."""
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
                # A later failure is a new one, and is logged again.
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
            # Further failures of this kind are only counted: a full disk affects many files.
            self._said.add(kind)
            self._log.error(event, path=str(path), reason=error.strerror or str(error))
