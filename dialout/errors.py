"""Errors of dialout.

::

    Exception
    └── DialoutError
        ├── LocalProtocolError        the caller asked for a message that must not go on the wire
        │   └── NotInDialect          a message that this agent's dialect does not have
        └── RemoteProtocolError       the peer sent a message that must not be on the wire
            ├── FrameError            no more frames can be read from the stream: close it
            │   ├── ZeroLengthFrame   a length field of 0
            │   ├── OversizedFrame    a length field above the limit
            │   └── TruncatedFrame    end of stream inside a frame
            ├── NotAgentProtocol      HTTP or TLS: close the connection without an answer
            ├── UnreadableEvent       an event (read by an agent) to answer with a failure, or not at all
            └── Rejection             a registration to refuse: answer with a rejection frame

Messages never quote the peer, except for integers. They are safe to log and to send back.
"""

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "DialoutError",
    "ErrorCode",
    "FrameError",
    "LocalProtocolError",
    "NotAgentProtocol",
    "NotInDialect",
    "OversizedFrame",
    "Rejection",
    "RemoteProtocolError",
    "TruncatedFrame",
    "UnreadableEvent",
    "ZeroLengthFrame",
]


class ErrorCode(StrEnum):
    """The reason why a registration was refused. It is the value of ``error_code`` in a rejection frame, and stable."""

    VERSION_MISMATCH = "version_mismatch"
    AUTH_FAILED = "auth_failed"
    NOT_ALLOWED = "not_allowed"
    CONNECTION_LIMIT = "connection_limit"
    TIMEOUT = "timeout"
    BAD_REGISTRATION = "bad_registration"
    OVERLOADED = "overloaded"
    SHUTTING_DOWN = "shutting_down"


class DialoutError(Exception):
    """Base of every error that dialout raises on purpose."""


class LocalProtocolError(DialoutError):
    """The caller asked for a message that the protocol forbids. Nothing was sent and no state changed."""


class NotInDialect(LocalProtocolError):
    """The dialect of this agent has no such message, so no frame was made.

    The message must not be sent in another form. An sdk agent answers every unknown frame with an "allow" for
    request 0. A core agent closes the connection.
    """


class RemoteProtocolError(DialoutError):
    """The peer broke the protocol."""


class FrameError(RemoteProtocolError):
    """The byte stream can no longer be cut into frames. Nothing after this point can be read.

    ``frames`` holds the (type, payload) frames that came before the bad one in the same feed. They are in order. Handle
    them before closing the connection.
    """

    def __init__(self, message: str, frames: "Sequence[tuple[int, bytes]]" = ()) -> None:
        super().__init__(message)
        self.frames = frames


class ZeroLengthFrame(FrameError):
    """A length field of 0. The smallest legal length is 1, the type byte alone."""


class OversizedFrame(FrameError):
    """A length field above the limit, refused from its four bytes alone.

    ``length`` is the announced length, ``limit`` the largest legal one. Both count the type byte.
    """

    def __init__(self, length: int, limit: int, frames: "Sequence[tuple[int, bytes]]" = ()) -> None:
        super().__init__(f"the peer announced a frame of {length} bytes, the limit is {limit}", frames)
        self.length = length
        self.limit = limit


class TruncatedFrame(FrameError):
    """The stream ended inside a frame, the length field included."""


class NotAgentProtocol(RemoteProtocolError):
    """The first bytes belong to another protocol, named by ``protocol`` (``"HTTP"`` or ``"TLS"``).

    Such a peer cannot read a rejection frame: close the connection without an answer.
    """

    def __init__(self, protocol: str) -> None:
        super().__init__(f"the peer speaks {protocol}, not Agent Protocol v2 frames")
        self.protocol = protocol


class UnreadableEvent(RemoteProtocolError):
    """A frame from the proxy that an agent cannot read. The ids are the ids of its request, where known."""

    def __init__(self, message: str, request_id: int | None = None, correlation_id: str | None = None) -> None:
        super().__init__(message)
        self.request_id = request_id
        self.correlation_id = correlation_id


class Rejection(RemoteProtocolError):
    """A registration that must be refused. It holds the fields of the rejection frame.

    ``answer_type`` is the type byte of that frame: 0x02 when the agent began with 0x01, otherwise 0x04.
    ``retry_after_ms`` is None where waiting would not help. Always send the frame before closing. A bare close makes
    Go agents crash, because they take a clean end of stream here for a message.
    """

    def __init__(
        self, error_code: ErrorCode, message: str, answer_type: int, retry_after_ms: int | None = None
    ) -> None:
        super().__init__(message)
        self.error_code = error_code
        self.message = message
        self.answer_type = answer_type
        self.retry_after_ms = retry_after_ms
