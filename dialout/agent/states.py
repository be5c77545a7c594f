"""Where each of an agent's connections stands, in a line for people and in values for programs."""

from enum import StrEnum

from msgspec import Struct

from dialout.agent.errors import printable

__all__ = ["ConnectionState", "Phase"]


class Phase(StrEnum):
    """The life of one connection, in its order; after ``WAITING`` comes ``CONNECTING`` again."""

    CONNECTING = "connecting"
    REGISTERING = "registering"
    CONNECTED = "connected"
    WAITING = "waiting"
    DRAINING = "draining"
    CLOSED = "closed"


class ConnectionState(Struct, frozen=True, kw_only=True):
    """Connection ``number`` (from 1) of an agent. ``str`` makes the line, such as ``waiting 3.2 s: connection_limit``.

    ``wait`` are the seconds of a waiting one. ``reason`` is the proxy's ``error_code`` where it gave one, and
    ``detail`` says more; both may be logged. ``connection_id`` is what the proxy calls it: escape it first.
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
