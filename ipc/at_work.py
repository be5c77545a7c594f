"""Shows other processes which connection a process works on. A busy process cannot answer a query.

The number is in shared memory. Writing it costs 30 ns. A reader opens the memory through ``/proc/<pid>/fd``. So the
reader need not be the parent, and the memory is freed when the process ends. Only processes of the same user can read
it.
"""

import contextlib
import mmap
import os
from pathlib import Path

NOTHING = 0
"""The process works on no connection. Connections are numbered from 1."""

_NAME = "shardgate-at-work"
_BYTES = 8


def shared_note() -> memoryview:
    """A cell of one number that other processes can read with `read_note`. Without shared memory it is a private cell.

    The memory is written at once. A later first write would raise SIGBUS when the host is out of memory.
    """
    try:
        fd = os.memfd_create(_NAME)
    except OSError:
        return private_note()
    try:
        os.write(fd, bytes(_BYTES))
        # mmap duplicates the descriptor, and readers find the memory by the duplicate.
        shared = mmap.mmap(fd, _BYTES)
    except OSError:
        return private_note()
    finally:
        os.close(fd)
    return memoryview(shared).cast("Q")


def private_note() -> memoryview:
    """A cell that no other process can read, for a pool embedded in another program."""
    return memoryview(bytearray(_BYTES)).cast("Q")


def read_note(pid: int) -> int:
    """The number in the cell of process *pid*. `NOTHING` when there is no cell, or it cannot be read."""
    folder = Path(f"/proc/{pid}/fd")
    try:
        descriptors = sorted(int(entry.name) for entry in folder.iterdir())
    except OSError:
        return NOTHING
    # The cell has a low number, because it is opened early. Tens of thousands of descriptors may follow.
    for entry in (folder / str(number) for number in descriptors):
        with contextlib.suppress(OSError):  # It was closed meanwhile.
            if str(entry.readlink()).startswith(f"/memfd:{_NAME}"):
                return int.from_bytes(entry.read_bytes()[:_BYTES], "little")
    return NOTHING
