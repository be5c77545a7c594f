"""Locks of files and folders (flock(2)) that others may hold: taken within a time, or their holders are named."""

import fcntl
import os
import time
from pathlib import Path
from typing import NamedTuple

PAUSE = 0.02
"""Seconds between two attempts."""


class Holder(NamedTuple):
    """A process that has a lock, and the user that it runs as; -1 when that is not known."""

    pid: int
    uid: int


def taken_within(fd: int, seconds: float) -> bool:
    """Take the exclusive lock of *fd*, if that is possible within *seconds*."""
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
    """The processes that have a lock of what *fd* is; those of another pid namespace are not known. proc_locks(5)."""
    info = os.fstat(fd)
    wanted = f"{os.major(info.st_dev):02x}:{os.minor(info.st_dev):02x}:{info.st_ino}"
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return []
    # "1: FLOCK  ADVISORY  WRITE 4711 fd:01:1234 0 EOF"; a process that waits has "->" behind the number.
    locks = [fields for line in lines if len(fields := line.split()) > 5 and fields[1] == "FLOCK"]
    # Some file systems have a device for stat(2) that is not the one of their locks (btrfs, overlayfs).
    found = [fields for fields in locks if fields[5] == wanted] or [
        fields for fields in locks if fields[5].endswith(f":{info.st_ino}")
    ]
    return [Holder(int(fields[4]), _uid_of(int(fields[4]))) for fields in found if fields[4].isdecimal()]


def _uid_of(pid: int) -> int:
    try:
        return Path(f"/proc/{pid}").stat().st_uid
    except OSError:
        return -1
