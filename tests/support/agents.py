"""Agents for tests: real sockets that speak the frames of real agents."""

import socket
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import msgspec

from dialout import (
    Capabilities,
    Dialect,
    FrameDecoder,
    RegistrationRequest,
    RegistrationResponse,
    encode_frame,
    parse_registration_response,
)
from support.waiting import PATIENCE

PINGS = frozenset(dialect.ping_type for dialect in Dialect)
"""Types of the pings that a shard sends. None of them is another frame of a shard in any dialect."""


def without_pings(frames: Iterable[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """All frames but a shard's own pings: one comes within the first ping interval, so at any moment of a test."""
    return [frame for frame in frames if frame[0] not in PINGS]


def registration(agent_id: str, dialect: Dialect = Dialect.SDK, **fields: Any) -> bytes:
    """A registration frame as an agent of that dialect sends it."""
    request = RegistrationRequest(agent_id=agent_id, capabilities=fields.pop("capabilities", Capabilities()), **fields)
    return request.encode(dialect)


class Agent:
    """One connection of an agent; blocking, with a time limit on everything."""

    def __init__(self, address: Path | tuple[str, int], timeout: float = PATIENCE, source: str | None = None) -> None:
        if isinstance(address, Path):
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sock.settimeout(timeout)
            try:
                self.sock.connect(str(address))
            except OSError:
                self.sock.close()
                raise
        else:
            self.sock = socket.create_connection(address, timeout=timeout, source_address=source and (source, 0))
        self.decoder = FrameDecoder()
        self.frames: list[tuple[int, bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self.sock.close()

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.sock.sendall(data)

    def frame(self, *, pings: bool = False) -> tuple[int, bytes] | None:
        """The next frame, the shard's own *pings* left out unless they are asked for; None at the end of the stream."""
        while True:
            while not self.frames:
                data = self.sock.recv(65536)
                if not data:
                    self.decoder.feed_eof()
                    return None
                self.frames.extend(self.decoder.feed(data))
            frame = self.frames.pop(0)
            if pings or frame[0] not in PINGS:
                return frame

    def answer(self) -> RegistrationResponse:
        """The answer to the registration; AssertionError for a bare close."""
        frame = self.frame()
        assert frame is not None, "a bare close instead of an answer"
        return parse_registration_response(*frame)

    def register(self, agent_id: str, dialect: Dialect = Dialect.SDK, **fields: Any) -> RegistrationResponse:
        """Send a registration and read the answer."""
        self.send(registration(agent_id, dialect, **fields))
        return self.answer()

    def ping(self, dialect: Dialect, payload: bytes = b'{"timestamp":7}') -> tuple[int, bytes] | None:
        """Send a ping and read what comes back."""
        self.send(encode_frame(dialect.ping_type, payload))
        return self.frame()

    def at_end(self) -> bool:
        """Whether the other side has closed, waiting for it if need be; unread frames are thrown away."""
        try:
            while self.frame() is not None:
                pass
        except ConnectionResetError:
            pass
        return True

    def reset_on_close(self) -> None:
        """Have the close reset the connection (TCP)."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def json_of(payload: bytes) -> Any:
    """A frame's payload as JSON."""
    return msgspec.json.decode(payload)
