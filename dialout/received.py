"""Read what a proxy sends to an agent: the agent's half of ``dialout.codec``.

One reader for every dialect. It is lenient where proxies differ (headers as an object of arrays or as a list
of pairs, ``status`` or ``status_code``), and it raises only what ``READ_ERRORS`` of ``dialout.responses`` names.
"""

from collections.abc import Callable
from typing import Any, Final, TypeAlias

from msgspec import Struct
from msgspec.json import Decoder

from dialout.bodies import body_by_headers
from dialout.errors import RemoteProtocolError
from dialout.events import (
    AgentEvent,
    CancelReason,
    Configure,
    GuardrailInspect,
    Headers,
    RequestBodyChunk,
    RequestComplete,
    RequestHeaders,
    RequestMetadata,
    ResponseBodyChunk,
    ResponseHeaders,
    WebSocketFrame,
    headers_from_pairs,
)
from dialout.scan import refuse_costly

__all__ = ["SCANNED_ABOVE", "WireIds", "read_event", "read_ids", "read_request"]


class WireIds(Struct, gc=False):
    """What may say which request a frame is about, and why it is cancelled; of any type."""

    request_id: Any = None
    correlation_id: Any = None
    reason: Any = None

    @property
    def cancel_reason(self) -> CancelReason | None:
        """The reason of a cancel: a name (sdk, docs) or a number (core); None for anything else."""
        reason = self.reason
        if type(reason) is int and 0 <= reason < len(CancelReason):
            return CancelReason(reason)
        return _REASONS.get(reason) if type(reason) is str else None


_REASONS: Final = {reason.name.lower(): reason for reason in CancelReason}
_WireHeaders: TypeAlias = dict[str, list[str]] | list[tuple[str, str]] | None


class _RequestHeaders(WireIds, kw_only=True, gc=False):
    method: str
    uri: str
    headers: _WireHeaders = None
    has_body: bool | None = None
    metadata: RequestMetadata | None = None


class _ResponseHeaders(Struct, gc=False):
    status: int | None = None
    status_code: int | None = None
    headers: _WireHeaders = None
    has_body: bool | None = None


def _headers(wire: _WireHeaders) -> Headers:
    if type(wire) is dict:
        return wire
    return headers_from_pairs(wire) if type(wire) is list else {}


SCANNED_ABOVE: Final = 2048
"""Bytes of an event above which it is looked at before it is decoded. Most requests are shorter."""

_decode_ids = Decoder(WireIds).decode
_decode_request_headers = Decoder(_RequestHeaders).decode
_decode_response_headers = Decoder(_ResponseHeaders).decode
_NO_METADATA: Final = RequestMetadata()
# The other events are written with the names and types that they have in the model.
_DECODERS: Final[dict[int, Callable[[bytes], AgentEvent]]] = {
    RequestBodyChunk.frame_type: Decoder(RequestBodyChunk).decode,
    ResponseBodyChunk.frame_type: Decoder(ResponseBodyChunk).decode,
    RequestComplete.frame_type: Decoder(RequestComplete).decode,
    WebSocketFrame.frame_type: Decoder(WebSocketFrame).decode,
    GuardrailInspect.frame_type: Decoder(GuardrailInspect).decode,
    Configure.frame_type: Decoder(Configure).decode,
}


def read_ids(payload: bytes) -> WireIds:
    """The ids in a frame of any type, and the reason in one that cancels."""
    if len(payload) > SCANNED_ABOVE:
        refuse_costly(payload, SCANNED_ABOVE)
    return _decode_ids(payload)


def read_request(payload: bytes) -> tuple[WireIds, RequestHeaders]:
    """The event in a frame of type 0x10, and its ids: both in one pass, for the frame that every request has."""
    if len(payload) > SCANNED_ABOVE:
        refuse_costly(payload, SCANNED_ABOVE)
    wire = _decode_request_headers(payload)
    headers, has_body = _headers(wire.headers), wire.has_body
    if has_body is None:
        has_body = body_by_headers(headers)
    return wire, RequestHeaders(wire.method, wire.uri, headers, has_body, wire.metadata or _NO_METADATA)


def read_event(frame_type: int, payload: bytes) -> AgentEvent:
    """The event in a frame of type 0x10 to 0x17, without its ids."""
    if frame_type == RequestHeaders.frame_type:
        return read_request(payload)[1]
    if frame_type == ResponseHeaders.frame_type:
        response = _decode_response_headers(payload)
        status = response.status_code if response.status is None else response.status
        if status is None or not 0 <= status < 2**16:
            raise RemoteProtocolError("the response has no status, or one that is none")
        headers, has_body = _headers(response.headers), response.has_body
        return ResponseHeaders(status, headers, body_by_headers(headers) if has_body is None else has_body)
    return _DECODERS[frame_type](payload)
