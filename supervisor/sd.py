"""Notifications to the service manager (sd_notify(3)): ready, status, reloading, stopping, and the watchdog.

The protocol is one datagram. The packages for it either block or need libsystemd, so this is our own code. Without
``NOTIFY_SOCKET`` nothing is sent.
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
"""Seconds between two checks whether the status has changed."""


class ServiceManager:
    """The service manager that started this process, if it wants notifications.

    Its variables are removed from *environment*. Nothing here waits for the manager: messages that its socket does not
    take now stay queued, and are sent before newer ones.
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
        """Seconds within which the manager expects a watchdog message; 0 for never."""
        # For the next supervisor. Without WATCHDOG_PID, which would be this process: unset means any process.
        self.variables: Mapping[str, str] = {name: value for name, value in found.items() if name != "WATCHDOG_PID"}
        self._told_status: str | None = None
        self._timer: Every | None = None

    @property
    def is_there(self) -> bool:
        """Whether there is a service manager to notify."""
        return self._socket is not None

    def tell(self, *assignments: str) -> None:
        """Queue one message of ``NAME=value`` assignments. It is sent when the manager's socket takes it."""
        if self._socket is not None:
            self._unsent.append("\n".join(assignments).encode())
            self._flush()

    def ready(self, status: str) -> None:
        """Notify that this process serves agents."""
        self._told_status = status
        self.tell("READY=1", f"MAINPID={os.getpid()}", f"STATUS={status}")

    def reloading(self) -> None:
        """Notify that the configuration is being read again. `ready` ends this state."""
        self.tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, status: str) -> None:
        """Notify that this process is stopping."""
        self._told_status = status
        self.tell("STOPPING=1", f"STATUS={status}")

    def replaced_by(self, pid: int) -> None:
        """Notify that another process is the main process of the service from now on."""
        self.tell(f"MAINPID={pid}")

    def begin(self, status: Callable[[], str], turns: Callable[[], int]) -> None:
        """Keep the manager's *status* current, and send watchdog messages while *turns*, a count of work done, grows.

        Without progress the manager gets no watchdog message, although the loop still runs. It may restart the service.
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
        """Stop the timer for status and watchdog messages."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def close(self) -> None:
        """Stop the timer, and close the socket."""
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
                pass  # The manager is gone, or denies access. Agents must not be affected by that.
            self._unsent.popleft()
