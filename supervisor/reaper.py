"""Orphans that have ended: as process 1, or as a subreaper, this process is given them, and has to collect them.

An image without an init has no other process for it. Our own children are watched by their pidfds, and `Process.reap`
wants their status: only those that are not ours are collected here, when SIGCHLD says that there may be one.
"""

import asyncio
import signal

from ipc import signals
from supervisor.processes import reap_orphans

LOOK_AGAIN = 0.1
"""Seconds until the next look where a child of ours has ended and is not collected yet: it hides those behind it."""


class Reaper:
    """Collects orphans from now on, those included that have ended before. Make it on a running loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        signals.on(self._loop, signal.SIGCHLD, self._look)
        self._look()

    def close(self) -> None:
        """Collect no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self.close()
        self._timer = self._loop.call_later(LOOK_AGAIN, self._look) if reap_orphans() else None
