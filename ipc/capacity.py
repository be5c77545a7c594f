"""Limits and counts that the supervisor, the shards and the command line must agree on."""

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

SHARD_BITS = 6
"""Bits of a request's id that hold the number of its shard."""

MAX_SHARDS = 1 << SHARD_BITS
"""The largest number of shards. They are numbered from 0."""

UNIX_PATH_MAX = 107
"""Longest path of a Unix socket in bytes, without its final NUL (unix(7)). libzmq has the same limit."""

_CGROUPS = Path("/sys/fs/cgroup")


def default_shards() -> int:
    """The number of shards without a configured one: one for each usable processor, up to `MAX_SHARDS`."""
    return min(usable_processors(), MAX_SHARDS)


def usable_processors() -> int:
    """The number of processors that this process may use, by its affinity and the quotas of its control groups."""
    allowed = len(os.sched_getaffinity(0))
    quota = processor_quota()
    return allowed if quota is None else max(1, min(allowed, math.ceil(quota)))


def processor_quota(groups: str | None = None, root: Path = _CGROUPS) -> float | None:
    """The processor quota of the control groups, as set by ``docker run --cpus``; None without a quota.

    A group gets no more than its parents, so the lowest quota counts. *groups* is the text of ``/proc/self/cgroup``.
    *root* is the mount point of the hierarchies. See cgroups(7), and the kernel's documents cgroup-v2 (``cpu.max``) and
    sched-bwc (``cpu.cfs_quota_us``).
    """
    if groups is None:
        try:
            groups = Path("/proc/self/cgroup").read_text()
        except OSError:
            return None
    found = [quota for folder in _folders(groups, root) if (quota := _quota(folder)) is not None]
    return min(found, default=None)


def _folders(groups: str, root: Path) -> Iterator[Path]:
    """The folders of this process's groups with a cpu controller, and of all groups above them."""
    for line in groups.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        # A container with a cgroup namespace sees its group as "/". Without one it sees a path outside its mounts.
        parts = [part for part in PurePosixPath(path).parts if part not in ("/", "..")]
        for mounted in (root / controllers, root / "cpu") if controllers else (root, root / "unified"):
            for depth in range(len(parts) + 1):
                yield mounted.joinpath(*parts[:depth])


def _quota(folder: Path) -> float | None:
    try:
        if (both := folder / "cpu.max").exists():
            quota, period = both.read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        # No quota is "max", or -1 in version 1.
        processors = int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None
    return processors if processors > 0 else None
