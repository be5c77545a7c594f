"""Reserves a directory for one process by abstract Unix sockets (unix(7)), even after the directory was removed.

A lock file protects nothing once it was removed, or the directory around it. The next process makes another lock file
and locks that one. An abstract name cannot be removed. It is free again when its last descriptor is closed.

Any user of the host may take such a name. So a name held by another user proves nothing, and is skipped. The holder is
found among the descriptors of this user's processes. It is not asked over a listening socket, because other users could
keep that socket busy.
"""

import contextlib
import hashlib
import os
import socket
from collections.abc import Iterable
from pathlib import Path

_PREFIX = b"\0shardgate/"


def names_of(directory: Path) -> list[bytes]:
    """The names for *directory*, which need not exist.

    The first name depends on the parent folder. So containers that share a network may each have a directory of this
    path. The second name depends on the path and on this mount namespace, in case the parent folders are removed too.
    """
    found = []
    path = Path(os.path.realpath(directory))
    with contextlib.suppress(OSError):
        parent = path.parent.stat()
        found.append(f"{parent.st_dev}:{parent.st_ino}/{path.name}")
    with contextlib.suppress(OSError):
        found.append(f"{Path('/proc/self/ns/mnt').stat().st_ino}{path}")
    return [_PREFIX + hashlib.sha256(os.fsencode(name)).hexdigest()[:32].encode() for name in found]


def take(directory: Path) -> tuple[list[int], int | None]:
    """Take the names of *directory*. Returns the descriptors that hold them, and None.

    When a process of this user holds a name already, returns no descriptors and the pid of that process.
    """
    taken: list[int] = []
    for name in names_of(directory):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.bind(name)
        except OSError:
            sock.close()
            pid = _holder(name)
            if pid is not None:
                release(taken)
                return [], pid
            continue
        taken.append(sock.detach())
    return taken, None


def holder(directory: Path) -> int | None:
    """The pid of the process of this user that holds *directory*; None when there is none."""
    return next((pid for pid in map(_holder, names_of(directory)) if pid is not None), None)


def name_at(fd: int) -> bytes:
    """The name that *fd* holds; empty when it holds none."""
    try:
        with socket.socket(fileno=os.dup(fd)) as sock:
            address = sock.getsockname()
    except OSError:
        return b""
    return address if isinstance(address, bytes) and address.startswith(_PREFIX) else b""


def release(descriptors: Iterable[int]) -> None:
    """Close descriptors that hold names."""
    for fd in descriptors:
        with contextlib.suppress(OSError):
            os.close(fd)


def _holder(name: bytes) -> int | None:
    """The pid of the process of this user that holds *name*; None when there is none. See proc(5), /proc/net/unix."""
    shown = b"@" + name[1:]
    try:
        lines = Path("/proc/net/unix").read_bytes().splitlines()
    except OSError:
        return None
    inodes = {line.split()[6].decode() for line in lines if line.endswith(shown)}
    wanted = {f"socket:[{inode}]" for inode in inodes}
    if not wanted:
        return None
    for process in Path("/proc").iterdir():
        if process.name.isdecimal() and _has_open(process, wanted):
            return int(process.name)
    return None


def _has_open(process: Path, wanted: set[str]) -> bool:
    try:
        if process.stat().st_uid != os.geteuid():
            return False
        with os.scandir(process / "fd") as entries:
            return any(_target(entry.path) in wanted for entry in entries)
    except OSError:
        return False


def _target(link: str) -> str:
    try:
        return os.readlink(link)  # noqa: PTH115 - a path of /proc
    except OSError:
        return ""
