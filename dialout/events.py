"""The events that a proxy sends to an agent: one model for all dialects.

This module has values only. ``dialout.codec`` turns them into frames and back. Bodies are bytes here and base64 on the
wire. The codec leaves out fields that a dialect does not have (``tls_cipher`` for sdk agents). It refuses an event that
has no frame in the dialect. A field of a wrong type raises TypeError when the event is constructed. Texts must not
contain lone surrogates. Decode header values from the network as Latin-1 or with ``errors="replace"``, not with
``surrogateescape``.
"""

from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import Annotated, Any, ClassVar, Final, Literal, TypeAlias

from msgspec import Meta, Struct

from dialout.capabilities import Event
from dialout.wrong_types import is_body, is_integer, is_text, wrong_type

__all__ = [
    "AgentEvent",
    "Cancel",
    "CancelAll",
    "CancelReason",
    "Configure",
    "FromProxy",
    "GuardrailInspect",
    "Headers",
    "HealthRequest",
    "MetricsRequest",
    "RequestBodyChunk",
    "RequestComplete",
    "RequestHeaders",
    "RequestMetadata",
    "ResponseBodyChunk",
    "ResponseHeaders",
    "WebSocketFrame",
    "headers_from_pairs",
]

# msgspec checks these where events are read. Where events are written, the codec checks the ranges.
_U16: TypeAlias = Annotated[int, Meta(ge=0, le=2**16 - 1)]
_U32: TypeAlias = Annotated[int, Meta(ge=0, le=2**32 - 1)]
_U64: TypeAlias = Annotated[int, Meta(ge=0)]

Headers: TypeAlias = dict[str, list[str]]
"""Header fields: each name with its values, in order. They reach agents unchanged, so spell each name one way."""


def headers_from_pairs(pairs: Iterable[tuple[str, str]]) -> Headers:
    """Build headers from (name, value) pairs. Values of the same name (case matters) keep their order."""
    headers: Headers = {}
    for name, value in pairs:
        headers.setdefault(name, []).append(value)
    return headers


class RequestMetadata(Struct, frozen=True, kw_only=True, gc=False):
    """The origin of a request. Every field has a default that all known agents can parse.

    The encoder ignores ``correlation_id`` and writes the one given to ``Codec.encode_event``. An empty ``request_id``
    becomes the correlation id. An empty ``timestamp`` (RFC 3339) becomes the encoder's ``now``.
    """

    correlation_id: str = ""
    client_ip: str = "0.0.0.0"  # noqa: S104  (an unknown client, nothing is bound to it)
    client_port: _U16 = 0
    protocol: str = "HTTP/1.1"
    server_name: str | None = None
    tls_version: str | None = None
    tls_cipher: str | None = None
    route_id: str | None = None
    upstream_id: str | None = None
    traceparent: str | None = None
    timestamp: str = ""
    request_id: str = ""


_NO_METADATA: Final = RequestMetadata()


def _explain(event: Struct, **checks: Callable[[object], bool]) -> None:
    """Raise TypeError for the first field of a wrong type. Subclasses of the right type are accepted."""
    for name, is_right in checks.items():
        value = getattr(event, name)
        if not is_right(value):
            raise wrong_type(f"{name} of {type(event).__name__}", _WANTED[is_right], value)


def _is_dict(value: object) -> bool:
    return isinstance(value, dict)


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


def _is_data(value: object) -> bool:
    return value is not None and is_body(value)


_WANTED: Final[dict[Callable[[object], bool], str]] = {
    is_text: "a text",
    is_integer: "a number",
    _is_dict: "a dict of lists of texts",
    _is_bool: "True or False",
    _is_data: "bytes",
}


# --- the events, in the order of their frame types ---------------------------------------------------


class RequestHeaders(Struct, frozen=True, gc=False):
    """A request has begun. ``has_body`` says whether body chunks follow; None means that this is not known.

    In core frames it is an additional key, which stock proxies do not send. Without it an agent derives the value from
    the headers (``dialout.bodies``). If they do not tell, the value is None and a body may follow. Only False says that
    there is no body.
    """

    method: str
    uri: str
    headers: Headers
    has_body: bool | None = False
    metadata: RequestMetadata = _NO_METADATA

    flag: ClassVar[Event] = Event.REQUEST_HEADERS
    frame_type: ClassVar[int] = 0x10

    def __post_init__(self) -> None:
        # One expression, since every request passes here. _explain finds the wrong field, if there is one.
        if not (type(self.method) is str is type(self.uri) and type(self.headers) is dict):
            _explain(self, method=is_text, uri=is_text, headers=_is_dict)


class RequestBodyChunk(Struct, frozen=True, gc=False):
    """A chunk of a request body. ``chunk_index`` counts from 0. Every chunk gets an answer of its own.

    A frame of 16 MiB holds slightly less than 12 MiB of ``data``. For more the encoder raises LocalProtocolError.
    ``total_size`` (bytes, None when unknown) and ``bytes_received`` (bytes so far) are not in sdk frames.
    """

    chunk_index: _U32
    data: bytes
    is_last: bool
    total_size: _U64 | None = None
    bytes_received: _U64 = 0

    flag: ClassVar[Event] = Event.REQUEST_BODY_CHUNK
    frame_type: ClassVar[int] = 0x11

    def __post_init__(self) -> None:
        if not (type(self.data) is bytes and type(self.is_last) is bool and type(self.chunk_index) is int):
            _explain(self, data=_is_data, is_last=_is_bool, chunk_index=is_integer)


class ResponseHeaders(Struct, frozen=True, gc=False):
    """The upstream has answered. ``has_body`` means the same as in ``RequestHeaders``."""

    status: _U16
    headers: Headers
    has_body: bool | None = False

    flag: ClassVar[Event] = Event.RESPONSE_HEADERS
    frame_type: ClassVar[int] = 0x12

    def __post_init__(self) -> None:
        if not (type(self.status) is int and type(self.headers) is dict):
            _explain(self, status=is_integer, headers=_is_dict)


class ResponseBodyChunk(Struct, frozen=True, gc=False):
    """A chunk of a response body; see ``RequestBodyChunk``."""

    chunk_index: _U32
    data: bytes
    is_last: bool
    total_size: _U64 | None = None
    bytes_sent: _U64 = 0

    flag: ClassVar[Event] = Event.RESPONSE_BODY_CHUNK
    frame_type: ClassVar[int] = 0x13

    def __post_init__(self) -> None:
        if not (type(self.data) is bytes and type(self.is_last) is bool and type(self.chunk_index) is int):
            _explain(self, data=_is_data, is_last=_is_bool, chunk_index=is_integer)


class RequestComplete(Struct, frozen=True, gc=False):
    """A request is over. Sizes are bytes. Core agents answer it."""

    status: _U16
    duration_ms: _U64
    request_body_size: _U64 = 0
    response_body_size: _U64 = 0
    upstream_attempts: _U32 = 1
    error: str | None = None

    flag: ClassVar[Event] = Event.REQUEST_COMPLETE
    frame_type: ClassVar[int] = 0x14


Opcode: TypeAlias = Literal["text", "binary", "ping", "pong", "close", "continuation"]


class WebSocketFrame(Struct, frozen=True, gc=False):
    """One WebSocket frame. ``frame_index`` counts the frames of its direction from 0."""

    opcode: Opcode
    data: bytes
    client_to_server: bool
    frame_index: _U64
    fin: bool = True
    client_ip: str = "0.0.0.0"  # noqa: S104  (an unknown client, nothing is bound to it)
    route_id: str | None = None

    flag: ClassVar[Event] = Event.WEB_SOCKET_FRAME
    frame_type: ClassVar[int] = 0x15

    def __post_init__(self) -> None:
        if not (type(self.opcode) is str and type(self.data) is bytes):
            _explain(self, opcode=is_text, data=_is_data)


Inspection: TypeAlias = Literal["prompt_injection", "pii_detection"]


class GuardrailInspect(Struct, frozen=True):
    """A text to inspect. The stock agent of the Rust crate never answers this event, so always set a timeout."""

    inspection_type: Inspection
    content: str
    model: str | None = None
    categories: tuple[str, ...] = ()
    route_id: str | None = None
    metadata: dict[str, str] = {}

    flag: ClassVar[Event] = Event.GUARDRAIL_INSPECT
    frame_type: ClassVar[int] = 0x16

    def __post_init__(self) -> None:
        if not (type(self.inspection_type) is str is type(self.content)):
            _explain(self, inspection_type=is_text, content=is_text)


class Configure(Struct, frozen=True):
    """A configuration for the agent: any JSON value. An agent refuses it by answering with a block."""

    config: Any = None
    config_version: str | None = None

    flag: ClassVar[Event] = Event.CONFIGURE
    frame_type: ClassVar[int] = 0x17


AgentEvent: TypeAlias = (
    RequestHeaders
    | RequestBodyChunk
    | ResponseHeaders
    | ResponseBodyChunk
    | RequestComplete
    | WebSocketFrame
    | GuardrailInspect
    | Configure
)
"""Any event. Each class has its ``flag`` (the bit in ``Capabilities.events``) and its ``frame_type``."""


# --- other messages of a proxy ------------------------------------------------------------------------


class CancelReason(IntEnum):
    """The reason of a cancel. Core frames carry the number, the other dialects the name in lower case."""

    CLIENT_DISCONNECT = 0
    TIMEOUT = 1
    BLOCKED_BY_AGENT = 2
    UPSTREAM_ERROR = 3
    PROXY_SHUTDOWN = 4
    MANUAL = 5


class Cancel(Struct, frozen=True, gc=False):
    """Stop working on one request. ``reason`` is None when the proxy gave none, or an unknown one."""

    reason: CancelReason | None = None


class CancelAll(Struct, frozen=True, gc=False):
    """Stop working on every request."""

    reason: CancelReason | None = None


class HealthRequest(Struct, frozen=True, gc=False):
    """The proxy asks for a health report (``Codec.encode_health``)."""


class MetricsRequest(Struct, frozen=True, gc=False):
    """The proxy asks for a metrics report (``Codec.encode_metrics``)."""


FromProxy: TypeAlias = AgentEvent | Cancel | CancelAll | HealthRequest | MetricsRequest
"""All messages that ``Codec.decode_event`` returns, besides ``Ping``, ``Pong`` and ``Ignored``."""
