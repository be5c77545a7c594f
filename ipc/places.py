"""What a process has on disk and needs there: looked at now and then, and made again when somebody has removed it.

A Unix socket cannot be linked again once its file is gone (linkat(2) takes no socket without a name), and whoever made
it hears nothing of that: it goes on listening where nobody can connect. So each file is compared with what it was,
by one lstat(2) of 1 µs, and the owner of a place makes it anew: beside the old socket, whose queue may hold somebody.
"""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ipc.logs import get_logger

LOOK_SECONDS = 1.0
"""Between two looks."""

Identity = tuple[int, int, int]


class CannotMend(Exception):
    """A place cannot be made again, or not by this process; the message says why, and what to do."""


class _Place(NamedTuple):
    what: str
    mend: Callable[[], None]


def identity(path: str | os.PathLike[str]) -> Identity | None:
    """Which file is at *path*; None when none is. A folder is the same one however its entries change.

    The number of an inode alone is used again at once, so a file also has the time of its making, in ns.
    """
    try:
        info = os.lstat(path)
    except OSError:
        return None
    return info.st_dev, info.st_ino, 0 if stat.S_ISDIR(info.st_mode) else info.st_mtime_ns


class Places:
    """The places of one process, looked at in the order in which they were added: a folder before what is in it.

    *on_change* is told what has happened to a place, as a code and as a text: ``file_gone``, ``file_mended``.
    """

    def __init__(self, on_change: Callable[[str, str], None] = lambda _code, _text: None) -> None:
        self.mended_total = 0
        """How often something was made again."""
        self._on_change = on_change
        self._log = get_logger()
        self._places: dict[Path, _Place] = {}
        self._seen: dict[Path, Identity | None] = {}
        self._problems: dict[Path, str] = {}

    @property
    def problems(self) -> list[str]:
        """What is not where it should be, and why it is not mended, for people."""
        return list(self._problems.values())

    def add(self, path: Path, what: str, mend: Callable[[], None]) -> None:
        """Look after *path*, which is there now; *what* is what it is for people.

        *mend* makes it again, and raises OSError or `CannotMend` when that is not possible now.
        """
        self._places[path] = _Place(what, mend)
        self._seen[path] = identity(path)

    def drop(self, path: Path) -> None:
        """Look after *path* no more: it is not needed."""
        self._places.pop(path, None)
        self._seen.pop(path, None)
        self._problems.pop(path, None)

    def clear(self) -> None:
        """Look after nothing any more."""
        for path in list(self._places):
            self.drop(path)

    def look(self) -> None:
        """Look at all places, and mend what is not as it was."""
        for path, place in list(self._places.items()):
            found = identity(path)
            if found is not None and found == self._seen.get(path):
                if self._problems.pop(path, None) is not None:
                    # It has come back by itself: it was only moved away.
                    self._on_change("file_mended", f"{place.what} {path} is back")
                continue
            if path.is_symlink() and path.exists():
                # Only this user can have put it there, on purpose: a tool that looks at what passes, say.
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
