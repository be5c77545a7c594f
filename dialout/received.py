"""Read the frames that a proxy sends to an agent: the agent's half of ``dialout.codec``.

There is one reader for all dialects. It accepts all forms that proxies write. Headers are an object of arrays or a list
of pairs. The status is ``status`` or ``status_code``. It raises only the ``READ_ERRORS`` of ``dialout.responses``.
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
    """The fields that may name the request of a frame and the reason of a cancel. Each may be of any type."""

    request_id: Any = None
    correlation_id: Any = None
    reason: Any = None

    @property
    def cancel_reason(self) -> CancelReason | None:
        """The reason of a cancel, from a name (sdk, docs) or a number (core). None for any other value."""
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
"""Size in bytes above which an event is scanned before it is decoded. Most requests are shorter."""

_decode_ids = Decoder(WireIds).decode
_decode_request_headers = Decoder(_RequestHeaders).decode
_decode_response_headers = Decoder(_ResponseHeaders).decode
_NO_METADATA: Final = RequestMetadata()
# On the wire the other events have the same names and types as in the model.
_DECODERS: Final[dict[int, Callable[[bytes], AgentEvent]]] = {
    RequestBodyChunk.frame_type: Decoder(RequestBodyChunk).decode,
    ResponseBodyChunk.frame_type: Decoder(ResponseBodyChunk).decode,
    RequestComplete.frame_type: Decoder(RequestComplete).decode,
    WebSocketFrame.frame_type: Decoder(WebSocketFrame).decode,
    GuardrailInspect.frame_type: Decoder(GuardrailInspect).decode,
    Configure.frame_type: Decoder(Configure).decode,
}


def read_ids(payload: bytes) -> WireIds:
    """Read the ids in a frame of any type, and the reason if it is a cancel."""
    if len(payload) > SCANNED_ABOVE:
        refuse_costly(payload, SCANNED_ABOVE)
    return _decode_ids(payload)


def read_request(payload: bytes) -> tuple[WireIds, RequestHeaders]:
    """Read the event in a frame of type 0x10 and its ids, in one pass. Every request has such a frame."""
    if len(payload) > SCANNED_ABOVE:
        refuse_costly(payload, SCANNED_ABOVE)
    wire = _decode_request_headers(payload)
    headers, has_body = _headers(wire.headers), wire.has_body
    if has_body is None:
        has_body = body_by_headers(headers)
    return wire, RequestHeaders(wire.method, wire.uri, headers, has_body, wire.metadata or _NO_METADATA)


def read_event(frame_type: int, payload: bytes) -> AgentEvent:
    """Read the event in a frame of type 0x10 to 0x17, without its ids."""
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
