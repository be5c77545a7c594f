"""Collect ended orphans. The kernel gives them to this process when it is process 1 or a subreaper.

A container image without an init has no other process that collects them. Our own children are watched by their pidfds,
and `Process.reap` needs their status. So only other processes are collected here, after a SIGCHLD.
"""

import asyncio
import signal

from ipc import signals
from supervisor.processes import reap_orphans

LOOK_AGAIN = 0.1
"""Seconds until the next attempt, when one of our children has ended and is not collected yet. It hides the others."""


class Reaper:
    """Collects ended orphans from now on, and those that have ended before. Create it on a running loop."""

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
