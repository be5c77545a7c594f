"""An agent between accept and commit."""

import os
from collections.abc import Callable
from socket import SocketType

from dialout import Registration, answer_type_for
from ipc.handoff import Offer


class Newcomer:
    """One accepted connection that is not in a pool yet: the only owner of the supervisor's copy of its descriptor.

    *deadline* (loop time) bounds everything until the commit. *peer_key* is what connections are counted by: the uid of
    a Unix socket's peer, the address of a TCP one. *peer* is for people: ``uid 1000 pid 4711`` or ``192.0.2.1:50000``.

    Before its frame is complete a newcomer collects bytes in *received* and needs *wanted* of them to go on; later it
    has a *registration*, then a *number* (its reserved slot), an *offer*, and the *shard* that it is offered to.
    """

    __slots__ = (
        "deadline",
        "declined_by",
        "fd",
        "number",
        "offer",
        "on_readable",
        "peer",
        "peer_key",
        "received",
        "registration",
        "residue",
        "shard",
        "sock",
        "transport",
        "uid",
        "wanted",
    )

    def __init__(self, sock: SocketType, transport: str, peer_key: int | str, peer: str, uid: int | None) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.transport = transport
        self.peer_key = peer_key
        self.peer = peer
        self.uid = uid
        self.deadline = 0.0
        self.received: bytes | bytearray = b""
        self.wanted = 0
        self.registration: Registration | None = None
        self.residue = b""
        self.number = 0
        self.offer: Offer | None = None
        self.shard: int | None = None
        self.declined_by: set[int] | None = None
        self.on_readable: Callable[[Newcomer], None] | None = None

    @property
    def answer_type(self) -> int:
        """Type byte of the answer that this agent understands, as far as that can be known yet."""
        if self.registration is not None:
            return self.registration.answer_type
        return answer_type_for(self.received[4] if len(self.received) > 4 else None)

    def on_ready(self, _events: int) -> None:
        """Pass readiness on to whoever waits for it."""
        if self.on_readable is not None:
            self.on_readable(self)

    def close(self) -> None:
        """Close the supervisor's copy. It must not be watched any more."""
        self.sock.close()


def proxy_id() -> str:
    """What we call ourselves in answers: the host's name."""
    return os.uname().nodename
