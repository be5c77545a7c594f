"""What the service manager is told (sd_notify(3)): ready, status, reloading, stopping, and that we are alive.

Own code, since the protocol is one datagram, and the packages that speak it either block or need libsystemd. Without
``NOTIFY_SOCKET`` everything here does nothing.
"""

import asyncio
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping, MutableMapping

from ipc.timers import Every

VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")

STATUS_SECONDS = 1.0
"""Seconds between looks at whether the status has changed."""


class ServiceManager:
    """The one who started us, if it wants to be told anything. The variables that say so leave *environment*.

    Nothing here waits for the manager: what its socket does not take now stays queued, and goes before anything newer.
    """

    def __init__(self, environment: MutableMapping[str, str] = os.environ) -> None:
        found = {name: environment.pop(name) for name in VARIABLES if name in environment}
        path = found.get("NOTIFY_SOCKET", "")
        # An abstract socket is written with "@" for its leading NUL.
        self._address = "\0" + path[1:] if path.startswith("@") else path if path.startswith("/") else None
        self._socket = None if self._address is None else socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._unsent: deque[bytes] = deque(maxlen=64)
        microseconds = found.get("WATCHDOG_USEC", "")
        is_ours = found.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self.watchdog_seconds = int(microseconds) / 1e6 if is_ours and microseconds.isdecimal() else 0.0
        """Seconds within which the manager wants to hear that we are alive; 0 for never."""
        # For who takes over from us; not WATCHDOG_PID, which would be ours. Unset stands for "whoever reads this".
        self.variables: Mapping[str, str] = {name: value for name, value in found.items() if name != "WATCHDOG_PID"}
        self._told_status: str | None = None
        self._timer: Every | None = None

    @property
    def is_there(self) -> bool:
        """Whether anybody listens."""
        return self._socket is not None

    def tell(self, *assignments: str) -> None:
        """Send one message of ``NAME=value`` assignments, as soon as the manager takes it."""
        if self._socket is not None:
            self._unsent.append("\n".join(assignments).encode())
            self._flush()

    def ready(self, status: str) -> None:
        """Say that agents are served, by this process."""
        self._told_status = status
        self.tell("READY=1", f"MAINPID={os.getpid()}", f"STATUS={status}")

    def reloading(self) -> None:
        """Say that the configuration is being read again; `ready` ends it."""
        self.tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, status: str) -> None:
        """Say that the end has begun."""
        self._told_status = status
        self.tell("STOPPING=1", f"STATUS={status}")

    def replaced_by(self, pid: int) -> None:
        """Say that another process is the service from now on."""
        self.tell(f"MAINPID={pid}")

    def begin(self, status: Callable[[], str], turns: Callable[[], int]) -> None:
        """Keep *status* current, and say that we are alive whenever *turns*, a count of work done, has grown.

        A loop that still turns but does not get its work done is as good as dead: somebody else should have a try.
        """
        if self._socket is None:
            return
        loop = asyncio.get_running_loop()
        # Half of the time, as sd_watchdog_enabled(3) recommends.
        beat = self.watchdog_seconds / 2
        seen, due = turns(), loop.time()

        def look() -> None:
            nonlocal seen, due
            self._flush()
            if self._unsent:
                return
            text = status()
            if text != self._told_status:
                self._told_status = text
                self.tell(f"STATUS={text}")
            now = loop.time()
            if beat and now >= due and turns() != seen:
                seen, due = turns(), now + beat
                self.tell("WATCHDOG=1")

        self.end()
        self._timer = Every(min(STATUS_SECONDS, beat or STATUS_SECONDS), look, at_once=True)

    def end(self) -> None:
        """Say nothing more by ourselves."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def close(self) -> None:
        """Let go of the manager."""
        self.end()
        if self._socket is not None:
            self._socket.close()

    def _flush(self) -> None:
        assert self._socket is not None
        assert self._address is not None
        while self._unsent:
            try:
                self._socket.sendto(self._unsent[0], socket.MSG_DONTWAIT, self._address)
            except BlockingIOError:
                return  # Its queue is full.
            except OSError:
                pass  # Nobody is there, or nobody we may talk to; that must not hurt the agents.
            self._unsent.popleft()
