"""Names that hold a directory for a process although the directory is gone: abstract Unix sockets, unix(7).

A lock file protects nothing once somebody has removed it, or the directory around it: the next process makes another
one and locks that. An abstract name cannot be removed, and is free again when the last descriptor of it is closed.

Anybody on the host may take such a name, so one that another user holds says nothing, and is passed over. Who holds one
is found among the descriptors of this user's processes: asking at a listening socket, others could keep it busy.
"""

import contextlib
import hashlib
import os
import socket
from collections.abc import Iterable
from pathlib import Path

_PREFIX = b"\0shardgate/"


def names_of(directory: Path) -> list[bytes]:
    """The names that stand for *directory*, which need not exist.

    One by the folder around it, so that containers that share a network and each have a directory of this path do not
    meet; and one by the path within this mount namespace, for when the folders around it are removed as well.
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
    """Take the names of *directory*; the descriptors that hold them, and the pid of a process that has one already.

    No descriptor is open when there is such a process.
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
