"""Takes locks of files and folders (flock(2)) within a time limit, and finds the processes that hold them."""

import fcntl
import os
import time
from pathlib import Path
from typing import NamedTuple

PAUSE = 0.02
"""Seconds between two attempts."""


class Holder(NamedTuple):
    """A process that holds a lock, and the uid that it runs as; -1 when the uid is not known."""

    pid: int
    uid: int


def taken_within(fd: int, seconds: float) -> bool:
    """Take the exclusive lock of *fd* within *seconds*. Returns False when another process still holds it."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(PAUSE)
        else:
            return True


def holders(fd: int) -> list[Holder]:
    """The processes that hold a lock of the file of *fd*, without other pid namespaces. See proc_locks(5)."""
    info = os.fstat(fd)
    wanted = f"{os.major(info.st_dev):02x}:{os.minor(info.st_dev):02x}:{info.st_ino}"
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return []
    # "1: FLOCK  ADVISORY  WRITE 4711 fd:01:1234 0 EOF". A waiting process has "->" behind the number.
    locks = [fields for line in lines if len(fields := line.split()) > 5 and fields[1] == "FLOCK"]
    # Some file systems report one device to stat(2) and another one for their locks (btrfs, overlayfs).
    found = [fields for fields in locks if fields[5] == wanted] or [
        fields for fields in locks if fields[5].endswith(f":{info.st_ino}")
    ]
    return [Holder(int(fields[4]), _uid_of(int(fields[4]))) for fields in found if fields[4].isdecimal()]


def _uid_of(pid: int) -> int:
    try:
        return Path(f"/proc/{pid}").stat().st_uid
    except OSError:
        return -1
