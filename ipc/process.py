"""Settings and measurements of the current process: descriptors, memory and processor time."""

import contextlib
import ctypes
import fcntl
import gc
import os
import resource
import signal
import time
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def raise_descriptor_limit() -> int:
    """Raise RLIMIT_NOFILE to its hard limit and make the kernel's table that large now. Returns the limit.

    The table grows by doubling, and each growth stalls ``accept`` for 9 to 20 ms, at 256, 512 … 8192 descriptors.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        hard = max(soft, 1_048_576)
    if soft < hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    highest = min(soft, 65536) - 1
    with contextlib.suppress(OSError), open(os.devnull, "rb") as null:  # noqa: PTH123 - a descriptor, not a path
        os.close(fcntl.fcntl(null.fileno(), fcntl.F_DUPFD_CLOEXEC, highest))
    return soft


def descriptor_limit() -> int:
    """The number of descriptors that this process may have open."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def open_descriptors() -> int:
    """The number of descriptors that this process has open."""
    # Since Linux 6.2 the size of the folder is their number. Listing 50,000 takes 10 ms.
    return os.stat("/proc/self/fd").st_size or len(os.listdir("/proc/self/fd")) - 1  # noqa: PTH116, PTH208 - see above


def resident_bytes() -> int:
    """The resident memory of this process (proc(5), statm)."""
    with open("/proc/self/statm", "rb", buffering=0) as statm:  # noqa: PTH123 - twice a second, in every shard
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class RateMeter:
    """Measures how fast a total grows, over intervals of at least a quarter second."""

    def __init__(self) -> None:
        self._wall, self._total = time.monotonic(), 0
        self._rate = 0.0

    def per_second(self, total: int) -> float:
        """The growth of *total* per second, over the last interval."""
        wall = time.monotonic()
        if wall - self._wall >= 0.25:
            self._rate = (total - self._total) / (wall - self._wall)
            self._wall, self._total = wall, total
        return round(self._rate, 1)


class CpuMeter:
    """Measures the processor time of this process, over intervals of at least a quarter second."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.monotonic(), time.process_time()
        self._percent = 0.0

    def percent(self) -> float:
        """Processor time in percent of one processor, over the last interval."""
        wall, cpu = time.monotonic(), time.process_time()
        if wall - self._wall >= 0.25:
            self._percent = 100 * (cpu - self._cpu) / (wall - self._wall)
            self._wall, self._cpu = wall, cpu
        return round(self._percent, 1)


def end_with_parent(*, ends: bool) -> None:
    """Make the kernel kill this process when its parent ends, or stop that (PR_SET_PDEATHSIG, prctl(2)).

    This has a race: the parent may have ended before. The parent must not start this process from a thread that ends.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL if ends else 0, 0, 0, 0)


def descriptor_limit_of(pid: int) -> int | None:
    """The descriptor limit of process *pid*; None when it has ended (proc(5), ``/proc/PID/limits``)."""
    try:
        lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
        soft = next(line for line in lines if line.startswith("Max open files")).split()[3]
        return 1_048_576 if soft == "unlimited" else int(soft)
    except (OSError, ValueError, StopIteration, IndexError):
        return None


class DescriptorBudget:
    """The number of agents' descriptors that this process may hold, with a reserve for all other uses.

    The reserve is necessary. libzmq 4.3.5 aborts the process when accepting a peer of an ``ipc://`` socket fails with
    EMFILE (an assertion in ipc_listener.cpp). So one shard that connects to the bus at the limit would cost every agent
    its connection. Operators' queries take up to 48 descriptors of the reserve. *expected* is the number of descriptors
    that the process will open later for itself.
    """

    RESERVE = 64

    def __init__(self, expected: int) -> None:
        self._others = expected + len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names are enough

    def expect(self, more: int) -> None:
        """Add *more* to the number of descriptors that the process will open for itself. It may be negative."""
        self._others += more

    def left(self, held: int) -> int:
        """The number of further agents' descriptors beside *held*. Reads the limit, which prlimit(1) may change."""
        return resource.getrlimit(resource.RLIMIT_NOFILE)[0] - self._others - self.RESERVE - held


def settle_memory() -> None:
    """Exclude all objects made so far from garbage collection, and make full collections rare.

    A full collection over 100,000 connections takes 60 ms and finds nothing, because a connection leaves no cycles
    behind.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
