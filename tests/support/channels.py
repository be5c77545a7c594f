"""Handoff channels, and what goes over them."""

import contextlib
import os
import select
import socket
from collections.abc import Iterator
from pathlib import Path

from dialout import Capabilities, Dialect
from ipc import handoff
from ipc.handoff import HandoffChannel
from ipc.messages import Message, Offer


def offer(number: int, residue: bytes = b"", acceptance: bytes = b"") -> Offer:
    """A newcomer."""
    return Offer(
        number=number, agent_id="waf-1", dialect=Dialect.SDK, capabilities=Capabilities(), transport="uds",
        metadata=b"{}", residue=residue, unsent=acceptance,
    )  # fmt: skip


@contextlib.contextmanager
def pipes(count: int) -> Iterator[tuple[list[int], list[int]]]:
    """Writing ends to hand over and reading ends, which see the end of the stream when no copy is left anywhere."""
    pairs = [os.pipe() for _ in range(count)]
    writing = [pair[1] for pair in pairs]
    try:
        yield writing, [pair[0] for pair in pairs]
    finally:
        handoff.close_all(writing)
        handoff.close_all([pair[0] for pair in pairs])


def is_ended(fd: int) -> bool:
    """Whether the stream has ended: nobody holds its other end any more."""
    return bool(select.select([fd], [], [], 0)[0]) and os.read(fd, 1) == b""


def send_raw(sock: socket.socket, data: bytes, descriptors: list[int]) -> None:
    """Send any bytes with descriptors."""
    socket.send_fds(sock, [data], descriptors)


def pair(folder: Path) -> tuple[socket.socket, socket.socket]:
    """The two ends of a channel as the product opens it: the one that connected, the one that was accepted."""
    with handoff.listen(folder / "handoff") as listener:
        connected = handoff.connect(folder / "handoff")
        accepted, _ = listener.accept()
    return connected, accepted


class End:
    """A channel's end that keeps what arrives."""

    def __init__(self, sock: socket.socket) -> None:
        self.messages: list[Message] = []
        self.descriptors: list[int] = []
        self.lost: list[str] = []
        self.channel = HandoffChannel(sock, self._take, self.lost.append)

    def _take(self, message: Message, descriptors: list[int]) -> None:
        self.messages.append(message)
        self.descriptors += descriptors

    def close(self) -> None:
        """Close the channel and what it brought."""
        self.channel.close()
        handoff.close_all(self.descriptors)
