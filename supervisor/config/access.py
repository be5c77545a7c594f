"""Checks that no other user can change a file that admits agents: its owner, its mode, and the folders above it.

The rule is the same for a configuration and for a token file. It resembles StrictModes of sshd_config(5):

- The file and each folder on the way to it must belong to root or to the user of this process.
- Other users must not be able to write the file or a folder. A writer of the folder can replace the file.
- A sticky folder such as /tmp is accepted: only the owner of a file can move it away. A symbolic link in such a folder
  must belong to root or to the user of this process.
- A folder on a read-only mount is accepted. Kubernetes mounts a ConfigMap as a folder of mode 0777 on such a mount.
- A group may write. The operator has chosen its members.
"""

import os
import pwd
import shlex
import stat
from collections.abc import Iterator

from supervisor.config.errors import Problem

_MAX_LINKS = 40
"""Symbolic links that Linux follows in one path: path_resolution(7)."""


def access_problems(path: str, status: os.stat_result | None) -> list[Problem]:
    """Report which other users could change the file at *path*.

    *status* is the status of the open file. None leaves the file out, and checks the way to it only.
    """
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
            if shared and not found.st_mode & stat.S_ISVTX and not _is_read_only(step):
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
    """Follow *path* as open(2) does. Yield each folder, link and file on the way, with its own status."""
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
        # Either the open failed too, or it went through /proc/self/fd. Then the file's own status has been checked.
        return


def _is_read_only(folder: str) -> bool:
    """Whether the folder is on a read-only mount: statvfs(3)."""
    try:
        return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
    except OSError:
        return False


def _is_trusted(uid: int) -> bool:
    return uid in (0, os.geteuid()) or uid == _outsider()


def _outsider() -> int | None:
    """The uid that files of users outside this user namespace show, user_namespaces(7).

    None when a process inside the namespace can have that uid.
    """
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
