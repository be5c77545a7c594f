"""The three dialects of Agent Protocol v2: their frame types, and their pings.

All dialects use the same framing, but the same type byte can mean opposite things. 0x30 is a cancel *to* an SDK agent
and a health report *from* a core agent. So a connection keeps the dialect of its registration.

======  ======================================  ============  ========  ===========
value   agents                                  registration  answer    ping, pong
======  ======================================  ============  ========  ===========
sdk     agents built on the Go SDK              0x03          0x04      0xF0, 0xF1
core    agents built on the Rust crate          0x01          0x02      0x41, 0x42
docs    written from the published documents    0x01          0x02      0xF0, 0xF1
======  ======================================  ============  ========  ===========
"""

from enum import IntEnum, StrEnum
from typing import Annotated, Final

from msgspec import DecodeError, Meta, Struct
from msgspec.json import Decoder

from dialout.frames import encode_frame

__all__ = [
    "MAX_PING",
    "CoreFrame",
    "Dialect",
    "SdkFrame",
    "answer_type_for",
    "pong_for",
    "says_draining",
    "with_draining",
]


class SdkFrame(IntEnum):
    """Frame types of the sdk and docs dialects. Docs peers do not know 0xE0 to 0xE3."""

    HANDSHAKE_REQUEST = 0x01
    HANDSHAKE_RESPONSE = 0x02
    REGISTRATION = 0x03
    REGISTRATION_ACK = 0x04
    REQUEST_HEADERS = 0x10
    REQUEST_BODY_CHUNK = 0x11
    RESPONSE_HEADERS = 0x12
    RESPONSE_BODY_CHUNK = 0x13
    DECISION = 0x20
    BODY_MUTATION = 0x21
    CANCEL_REQUEST = 0x30
    CANCEL_ALL = 0x31
    HEALTH_REQUEST = 0xE0
    HEALTH_RESPONSE = 0xE1
    METRICS_REQUEST = 0xE2
    METRICS_RESPONSE = 0xE3
    PING = 0xF0
    PONG = 0xF1


class CoreFrame(IntEnum):
    """Frame types of the core dialect. On a reverse connection 0x01 is the agent's registration."""

    REGISTRATION = 0x01
    REGISTRATION_RESPONSE = 0x02
    REQUEST_HEADERS = 0x10
    REQUEST_BODY_CHUNK = 0x11
    RESPONSE_HEADERS = 0x12
    RESPONSE_BODY_CHUNK = 0x13
    REQUEST_COMPLETE = 0x14
    WEB_SOCKET_FRAME = 0x15
    GUARDRAIL_INSPECT = 0x16
    CONFIGURE = 0x17
    AGENT_RESPONSE = 0x20
    HEALTH_STATUS = 0x30
    METRICS_REPORT = 0x31
    CONFIG_UPDATE_REQUEST = 0x32
    FLOW_CONTROL = 0x33
    CANCEL = 0x40
    PING = 0x41
    PONG = 0x42


class Dialect(StrEnum):
    """The dialect of an agent. Its registration decides it once; see the table of this module."""

    SDK = "sdk"
    CORE = "core"
    DOCS = "docs"

    @property
    def registration_type(self) -> int:
        """Type byte of this dialect's registration frame."""
        return 0x03 if self is _SDK else 0x01

    @property
    def answer_type(self) -> int:
        """Type byte of the frame that accepts or refuses this dialect's registration."""
        return 0x04 if self is _SDK else 0x02

    @property
    def ping_type(self) -> int:
        """Type byte of a ping, in either direction."""
        return 0x41 if self is _CORE else 0xF0

    @property
    def pong_type(self) -> int:
        """Type byte of the answer to a ping."""
        return 0x42 if self is _CORE else 0xF1


_SDK: Final = Dialect.SDK
_CORE: Final = Dialect.CORE


def answer_type_for(first_type: int | None) -> int:
    """Return the type byte of the answer to a first frame of this type. None means that the type is not known yet.

    0x02 answers 0x01. Any other type gets 0x04. An SDK agent crashes if it reads another type. To a core agent 0x04 is
    no worse than any other failed read.
    """
    return 0x02 if first_type == 0x01 else 0x04


MAX_PING: Final = 1024
"""The most bytes in the payload of a ping. Known pings have up to 50."""

_Number = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]


class _Ping(Struct, gc=False):
    """The fields of a ping that the pong must repeat: ``timestamp`` (sdk, docs), the other two (core)."""

    timestamp: _Number = 0
    sequence: _Number | None = None
    timestamp_ms: _Number | None = None


_decode_ping: Final = Decoder(_Ping).decode


def with_draining(ping: bytes) -> bytes:
    """Add to the whole frame of a ping that the agent drains: it wants no new requests and closes when it is idle.

    Only core has a message for that. Every reader of a ping skips unknown keys. So a listener that does not know the
    key sees an ordinary ping.
    """
    return encode_frame(ping[4], ping[5:-1] + b',"draining":true}')


def says_draining(payload: bytes) -> bool:
    """Whether ``with_draining`` made this payload of a ping. It runs for every ping, so it decodes nothing."""
    return payload.endswith(b',"draining":true}')


def pong_for(dialect: Dialect, frame_type: int, payload: bytes) -> bytes | None:
    """Build the whole frame of the pong if the inbound frame is a ping of this dialect. Otherwise return None.

    A pong repeats only the numbers of its ping, by which the peer tells its pings apart. For a ping without numbers, or
    an unreadable one, the pong has a timestamp of 0 (sdk, docs) or an empty object (core). Real peers answer the same.
    A ping of more than ``MAX_PING`` bytes gets no pong.
    """
    if frame_type != dialect.ping_type or len(payload) > MAX_PING:
        return None
    try:
        ping = _decode_ping(payload)
    except (DecodeError, ValueError, RecursionError):
        ping = _Ping()
    if dialect is not _CORE:
        return encode_frame(dialect.pong_type, b'{"timestamp":%d}' % ping.timestamp)
    fields = {"sequence": ping.sequence, "timestamp_ms": ping.timestamp_ms}
    text = ",".join(f'"{name}":{value}' for name, value in fields.items() if value is not None)
    return encode_frame(dialect.pong_type, f"{{{text}}}".encode())
