"""The state of each of an agent's connections, as a line for a log and as values for programs."""

from enum import StrEnum

from msgspec import Struct

from dialout.agent.errors import printable

__all__ = ["ConnectionState", "Phase"]


class Phase(StrEnum):
    """The phases of one connection, in their order. ``CONNECTING`` follows ``WAITING`` again."""

    CONNECTING = "connecting"
    REGISTERING = "registering"
    CONNECTED = "connected"
    WAITING = "waiting"
    DRAINING = "draining"
    CLOSED = "closed"


class ConnectionState(Struct, frozen=True, kw_only=True):
    """Connection ``number`` (from 1) of an agent. ``str`` makes the line, such as ``waiting 3.2 s: connection_limit``.

    ``wait`` are the seconds of a waiting connection. ``reason`` is the proxy's ``error_code`` if it gave one, and
    ``detail`` gives details. Both may be logged. ``connection_id`` is the proxy's name for it, which must be escaped
    for a log.
    """

    number: int
    phase: Phase
    wait: float = 0.0
    reason: str = ""
    detail: str = ""
    connection_id: str | None = None

    def __str__(self) -> str:
        match self.phase:
            case Phase.WAITING:
                return f"waiting {self.wait:.1f} s: {self.reason}"
            case Phase.CONNECTED if self.connection_id:
                return f"connected as {printable(self.connection_id, 160)}"
            case _:
                return f"{self.phase}: {self.reason}" if self.reason else self.phase.value
