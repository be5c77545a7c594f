"""What this process uses of the host: processor, memory, descriptors."""

import os
import resource
import time

import psutil

LISTING_PAUSE = 5.0
"""Seconds between counts of descriptors where the kernel has to list them: 5 ms for 5,000."""


class Usage:
    """Looks at the calling process; every method tells what is so now, in a few microseconds."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._wall, self._cpu = time.monotonic(), time.process_time()
        self._percent = 0.0
        self._listed, self._listed_at = 0, -LISTING_PAUSE

    def cpu_seconds(self) -> float:
        """User and system time since the process started."""
        return round(time.process_time(), 3)

    def cpu_percent(self) -> float:
        """Percent of one processor since the last look that was at least a quarter second ago."""
        wall, cpu = time.monotonic(), time.process_time()
        if wall - self._wall >= 0.25:
            self._percent = 100 * (cpu - self._cpu) / (wall - self._wall)
            self._wall, self._cpu = wall, cpu
        return round(self._percent, 1)

    def rss_bytes(self) -> int:
        """Resident memory."""
        return int(self._process.memory_info().rss)

    def descriptors(self) -> int:
        """Open descriptors.

        Linux 6.2 and newer tell the number as the size of the folder (proc(5)). Older ones have to list it, so that
        there the number may be `LISTING_PAUSE` old.
        """
        size = os.stat("/proc/self/fd").st_size  # noqa: PTH116 - a third of the time of Path.stat
        if size:
            return size
        now = time.monotonic()
        if now - self._listed_at >= LISTING_PAUSE:
            # One of them is the listing's own.
            self._listed, self._listed_at = len(os.listdir("/proc/self/fd")) - 1, now  # noqa: PTH208 - names are enough
        return self._listed

    def descriptor_limit(self) -> int:
        """How many descriptors the process may have open (RLIMIT_NOFILE)."""
        return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
