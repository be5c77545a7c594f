"""CPU and memory of a set of processes, as the kernel accounts for them: nothing is sampled.

CPU is each process's own clock (`clock_getcpuclockid(3)`): nanoseconds of all its threads, those that have
ended included. `/proc/<pid>/schedstat` would show the first thread only, and ours have ZeroMQ's beside it;
`/proc/<pid>/stat` counts in ticks of 10 ms. What the kernel does for a process in threads of its own
(work queues, interrupts) appears in neither.

Memory is the proportional set size without file-backed pages. Those are code: their share falls whenever an
unrelated program starts that maps the same libraries, which moves three processes by more than a megabyte,
as much as a thousand connections. Kernel memory of sockets is in neither; it is the same for whoever holds them.
"""

import ctypes
import os
import time
from collections.abc import Iterable
from pathlib import Path

__all__ = ["ProcessGoneError", "cpu_ns", "memory_bytes"]

_libc = ctypes.CDLL(None)


class ProcessGoneError(Exception):
    """A process that was to be accounted for has ended; restart the measurement."""


def cpu_ns(pids: Iterable[int]) -> int:
    """CPU time that these processes have used since they started, user and system, in nanoseconds.

    Raises `ProcessGoneError` when one has ended: a sum without it would look like work saved.
    """
    return sum(map(_process_cpu_ns, pids))


def memory_bytes(pids: Iterable[int]) -> int:
    """Anonymous and shared memory of these processes in bytes, each shared page divided by its users.

    Raises `ProcessGoneError` when one has ended.
    """
    return sum(map(_process_memory_bytes, pids))


def _process_cpu_ns(pid: int) -> int:
    clock = ctypes.c_int()
    error = _libc.clock_getcpuclockid(pid, ctypes.byref(clock))
    if error:
        raise ProcessGoneError(f"process {pid}: {os.strerror(error)}")
    try:
        return time.clock_gettime_ns(clock.value)
    except OSError as gone:
        raise ProcessGoneError(f"process {pid}: {gone}") from gone


def _process_memory_bytes(pid: int) -> int:
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError as gone:
        raise ProcessGoneError(f"process {pid}: {gone}") from gone
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in rollup.splitlines()[1:]}
    return (kilobytes["Pss_Anon"] + kilobytes["Pss_Shmem"]) * 1024
