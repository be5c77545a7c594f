"""Which users may change a file that decides who gets in: its own owner and mode, and those of all folders above it.

The rule is the same for a configuration and for a token file, and resembles StrictModes of sshd_config(5):

- The file, each folder on the way to it and each link among them belong to root or to the user of this process.
- No other user may write the file, nor a folder: a folder's writer puts another file in its place. A sticky folder as
  /tmp is fine, since only an owner moves its files away; there a link has to be of root or of ours too.
- A group may write: an operator has chosen its members.
"""

import os
import pwd
import shlex
import stat
from collections.abc import Iterator

from supervisor.config.errors import Problem

_MAX_LINKS = 40
"""As many as Linux follows: path_resolution(7)."""


def access_problems(path: str, status: os.stat_result | None) -> list[Problem]:
    """Say which other users could change the file at *path*; *status* is that of the open file, None without one."""
    return [Problem(path, None, "", message, hint) for message, hint in _objections(path, status)]


def _objections(path: str, status: os.stat_result | None) -> Iterator[tuple[str, str]]:
    if status is not None:
        if status.st_mode & stat.S_IWOTH:
            yield (
                "everybody may write this file, so anybody could let himself in",
                f"run: chmod o-w {shlex.quote(path)}",
            )
        if not _is_trusted(status.st_uid):
            yield (f"belongs to {_named(status.st_uid)}, who could let any agent in", _chown(path, status.st_uid))
    shared = False
    for step, found in _way(path):
        if stat.S_ISDIR(found.st_mode):
            shared = bool(found.st_mode & stat.S_IWOTH)
            if shared and not found.st_mode & stat.S_ISVTX:
                yield (
                    f"everybody may write the folder {step}, and so put another file in its place",
                    f"run: chmod o-w {shlex.quote(step)}",
                )
        elif not (shared and stat.S_ISLNK(found.st_mode)):
            continue
        if not _is_trusted(found.st_uid):
            what = "folder" if stat.S_ISDIR(found.st_mode) else "link"
            yield (
                f"the {what} {step} belongs to {_named(found.st_uid)}, who could put another file in its place",
                _chown(step, found.st_uid),
            )


def _way(path: str) -> Iterator[tuple[str, os.stat_result]]:
    """Follow *path* as open(2) does, and give each folder, link and file on the way with its own status."""
    here, links = "/", 0
    try:
        left = [*reversed(os.path.join(os.getcwd(), path).split("/"))]  # noqa: PTH109, PTH118 - Path drops ".."
        yield here, os.lstat(here)
        while left:
            part = left.pop()
            if part in ("", "."):
                continue
            if part == "..":
                here = os.path.dirname(here)  # noqa: PTH120
                continue
            there = f"{here.rstrip('/')}/{part}"
            found = os.lstat(there)
            yield there, found
            if not stat.S_ISLNK(found.st_mode):
                here = there
                continue
            links += 1
            if links > _MAX_LINKS:
                return
            target = os.readlink(there)  # noqa: PTH115
            here = "/" if target.startswith("/") else here
            left += reversed(target.split("/"))
    except OSError:
        # Opening the file has failed too, or succeeded through /proc/self/fd: then its own status has been looked at.
        return


def _is_trusted(uid: int) -> bool:
    return uid in (0, os.geteuid()) or uid == _outsider()


def _outsider() -> int | None:
    """The uid under which files of users outside of this user namespace appear, when no process in it can have it."""
    try:
        with open("/proc/self/uid_map") as file:  # noqa: PTH123
            ranges = [tuple(map(int, line.split())) for line in file]
        with open("/proc/sys/kernel/overflowuid") as file:  # noqa: PTH123
            overflow = int(file.read())
    except (OSError, ValueError):
        return None
    mapped = any(first <= overflow < first + length for first, _, length in ranges)
    return None if mapped else overflow


def _named(uid: int) -> str:
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


def _chown(path: str, uid: int) -> str:
    me = os.geteuid()
    return f"run: chown {me} {shlex.quote(path)}; or run this as {_named(uid)}, if shardgate runs as that user"
