"""Watches the sockets and folders that a process needs on disk, and makes them again when they are removed.

A Unix socket cannot be linked again once its file is gone: linkat(2) takes no socket without a name. The kernel does
not report the loss to the process, which goes on listening on a socket that no peer can reach. So each file is compared
with its earlier identity, by one lstat(2) of 1 µs. The owner then makes the file again. The socket for agents is opened
beside the old one, because connections may still wait in the old socket's queue.
"""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ipc.logs import get_logger

LOOK_SECONDS = 1.0
"""Seconds between two calls of `Places.look`."""

Identity = tuple[int, int, int]


class CannotMend(Exception):
    """A place that the process cannot make again. The message gives the reason and the remedy."""


class _Place(NamedTuple):
    what: str
    mend: Callable[[], None]


def identity(path: str | os.PathLike[str]) -> Identity | None:
    """Identify the file at *path*: device, inode, and modification time in ns. Returns None when there is no file.

    The kernel reuses inode numbers at once, hence the time. It is 0 for a folder, because its entries may change.
    """
    try:
        info = os.lstat(path)
    except OSError:
        return None
    return info.st_dev, info.st_ino, 0 if stat.S_ISDIR(info.st_mode) else info.st_mtime_ns


class Places:
    """The places of one process.

    They are checked in the order in which they were added, so add a folder before its entries. *on_change* gets a code
    and a text for each change of a place. The codes are ``file_gone`` and ``file_mended``.
    """

    def __init__(self, on_change: Callable[[str, str], None] = lambda _code, _text: None) -> None:
        self.mended_total = 0
        """Number of places that were made again."""
        self._on_change = on_change
        self._log = get_logger()
        self._places: dict[Path, _Place] = {}
        self._seen: dict[Path, Identity | None] = {}
        self._problems: dict[Path, str] = {}

    @property
    def problems(self) -> list[str]:
        """One text for each missing or replaced place, with the reason why it cannot be made again."""
        return list(self._problems.values())

    def add(self, path: Path, what: str, mend: Callable[[], None]) -> None:
        """Watch *path*, which must exist now. *what* is its name in log lines and problems.

        *mend* makes it again. It raises OSError or `CannotMend` when that is not possible now.
        """
        self._places[path] = _Place(what, mend)
        self._seen[path] = identity(path)

    def drop(self, path: Path) -> None:
        """Stop watching *path*: the process does not need it any more."""
        self._places.pop(path, None)
        self._seen.pop(path, None)
        self._problems.pop(path, None)

    def clear(self) -> None:
        """Stop watching all places."""
        for path in list(self._places):
            self.drop(path)

    def look(self) -> None:
        """Check all places. Make a place again when it is missing or was replaced."""
        for path, place in list(self._places.items()):
            found = identity(path)
            if found is not None and found == self._seen.get(path):
                if self._problems.pop(path, None) is not None:
                    # The file was moved away, and has been moved back.
                    self._on_change("file_mended", f"{place.what} {path} is back")
                continue
            if path.is_symlink() and path.exists():
                # Only this user can have made the link, and on purpose: for a tool that records the traffic, say.
                continue
            self._mend(path, place, "is gone" if found is None else "was replaced")

    def _mend(self, path: Path, place: _Place, happened: str) -> None:
        try:
            place.mend()
        except (OSError, CannotMend) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
            if path not in self._problems:
                self._log.error("file is not there any more", what=place.what, path=str(path), reason=reason)
                self._on_change("file_gone", f"{place.what} {path} {happened}, and cannot be made again: {reason}")
            self._problems[path] = f"{place.what} {path} {happened}, and cannot be made again: {reason}"
            return
        self._problems.pop(path, None)
        self._seen[path] = identity(path)
        self.mended_total += 1
        self._log.warning("file was not there any more, made again", what=place.what, path=str(path))
        self._on_change("file_mended", f"{place.what} {path} {happened}, and was made again")
