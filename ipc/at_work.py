"""What a process works on at this moment, for others to see: they cannot ask it while it is busy.

One number in shared memory. Writing it costs 30 ns; a reader opens the memory through ``/proc/<pid>/fd``, so that it
need not be this process's parent, and nothing is left when the process has ended. Of our own processes, for our user.
"""

import contextlib
import mmap
import os
from pathlib import Path

NOTHING = 0
"""Connections are numbered from 1."""

_NAME = "shardgate-at-work"
_BYTES = 8


def shared_note() -> memoryview:
    """A cell of one number, which others can read with `read_note`; a private one where there is no such memory.

    The memory is filled at once: writing to a hole of it later would be a SIGBUS when none is left.
    """
    try:
        fd = os.memfd_create(_NAME)
    except OSError:
        return private_note()
    try:
        os.write(fd, bytes(_BYTES))
        # It has a descriptor of its own, by which the memory is found.
        shared = mmap.mmap(fd, _BYTES)
    except OSError:
        return private_note()
    finally:
        os.close(fd)
    return memoryview(shared).cast("Q")


def private_note() -> memoryview:
    """A cell that no other process reads, where a pool is part of another program."""
    return memoryview(bytearray(_BYTES)).cast("Q")


def read_note(pid: int) -> int:
    """The number that process *pid* has noted; `NOTHING` when there is none, or it cannot be read."""
    folder = Path(f"/proc/{pid}/fd")
    try:
        descriptors = sorted(int(entry.name) for entry in folder.iterdir())
    except OSError:
        return NOTHING
    # It is opened early, and there may be tens of thousands behind it.
    for entry in (folder / str(number) for number in descriptors):
        with contextlib.suppress(OSError):  # Closed meanwhile.
            if str(entry.readlink()).startswith(f"/memfd:{_NAME}"):
                return int.from_bytes(entry.read_bytes()[:_BYTES], "little")
    return NOTHING
