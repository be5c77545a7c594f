"""A service manager: a notification socket of its own, and what was told there (sd_notify(3))."""

import socket
import threading
from typing import Self

from support.waiting import PATIENCE, wait_for


class Manager:
    """Listens at *address* (``@name`` for an abstract one) until it is closed; *told* holds all messages in order.

    Each message is a pair of the sender's pid and its assignments.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.told: list[tuple[int, dict[str, str]]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._socket.settimeout(0.1)
        self._closing = False
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing = True
        self._thread.join(5)
        self._socket.close()

    def values(self, name: str, pid: int | None = None) -> list[str]:
        """What *name* was set to, by *pid* or by anybody."""
        return [told[name] for sender, told in list(self.told) if name in told and pid in (None, sender)]

    def wait_for(self, name: str, value: str, pid: int | None = None, seconds: float = PATIENCE) -> None:
        """Wait until *name* has been set to *value*."""
        wait_for(lambda: value in self.values(name, pid), f"{name}={value}, of {self.told}", seconds)

    def _listen(self) -> None:
        while not self._closing:
            try:
                data, ancillary, _, _ = self._socket.recvmsg(4096, socket.CMSG_SPACE(12))
            except TimeoutError:
                continue
            pid = int.from_bytes(ancillary[0][2][:4], "little")
            self.told.append((pid, dict(line.split("=", 1) for line in data.decode().splitlines())))
