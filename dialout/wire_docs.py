"""The docs dialect: the sdk's frames, with payloads that every known parser accepts.

The published documents contradict each other and the SDK in places. So events carry both ids and both spellings of a
status, and answers may name their request by either id.
"""

from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from dialout.decisions import Decision
from dialout.dialects import Dialect, SdkFrame
from dialout.errors import LocalProtocolError, RemoteProtocolError
from dialout.events import (
    Cancel,
    CancelAll,
    Headers,
    RequestBodyChunk,
    RequestHeaders,
    ResponseBodyChunk,
    ResponseHeaders,
)
from dialout.frames import encode_frame
from dialout.inbound import Answer, Inbound, NotUnderstood
from dialout.received import WireIds
from dialout.responding import docs_response
from dialout.responses import READ_ERRORS, SCANNED_ABOVE, decode_response, read_response, unreadable
from dialout.scan import refuse_costly
from dialout.wire import checked, checked_size, has_body
from dialout.wire_sdk import SDK, check_ids

__all__ = ["DOCS"]


# --- events ------------------------------------------------------------------------------------------


class _Metadata(Struct, kw_only=True, omit_defaults=True, gc=False):
    correlation_id: str
    request_id: str
    client_ip: str
    client_port: int
    server_name: str | None
    protocol: str
    tls_version: str | None
    tls_cipher: str | None
    route_id: str | None
    upstream_id: str | None
    timestamp: str
    traceparent: str | None = None


class _RequestHeaders(Struct, gc=False):
    request_id: int
    correlation_id: str
    method: str
    uri: str
    headers: Headers
    has_body: bool
    metadata: _Metadata


class _RequestBodyChunk(Struct, kw_only=True, omit_defaults=True, gc=False):
    request_id: int
    correlation_id: str
    chunk_index: int
    data: bytes
    is_last: bool
    total_size: int | None = None
    bytes_received: int


class _ResponseHeaders(Struct, gc=False):
    request_id: int
    correlation_id: str
    status: int
    status_code: int
    headers: Headers
    has_body: bool


class _ResponseBodyChunk(Struct, kw_only=True, omit_defaults=True, gc=False):
    request_id: int
    correlation_id: str
    chunk_index: int
    data: bytes
    is_last: bool
    total_size: int | None = None
    bytes_sent: int


def _request_headers(event: RequestHeaders, request_id: int, correlation_id: str, now: str) -> Struct:
    metadata = event.metadata
    return _RequestHeaders(
        request_id,
        correlation_id,
        event.method,
        event.uri,
        event.headers,
        has_body(event) if event.has_body is None else event.has_body,
        _Metadata(
            correlation_id=correlation_id,
            request_id=metadata.request_id or correlation_id,
            client_ip=metadata.client_ip,
            client_port=checked("client_port", metadata.client_port, 16),
            server_name=metadata.server_name,
            protocol=metadata.protocol,
            tls_version=metadata.tls_version,
            tls_cipher=metadata.tls_cipher,
            route_id=metadata.route_id,
            upstream_id=metadata.upstream_id,
            timestamp=metadata.timestamp or now,
            traceparent=metadata.traceparent,
        ),
    )


def _request_body_chunk(event: RequestBodyChunk, request_id: int, correlation_id: str, _: str) -> Struct:
    return _RequestBodyChunk(
        request_id=request_id,
        correlation_id=correlation_id,
        chunk_index=checked("chunk_index", event.chunk_index, 32),
        data=event.data,
        is_last=event.is_last,
        total_size=checked_size("total_size", event.total_size),
        bytes_received=checked("bytes_received", event.bytes_received, 64),
    )


def _response_headers(event: ResponseHeaders, request_id: int, correlation_id: str, _: str) -> Struct:
    status = checked("status", event.status, 16)
    return _ResponseHeaders(request_id, correlation_id, status, status, event.headers, has_body(event))


def _response_body_chunk(event: ResponseBodyChunk, request_id: int, correlation_id: str, _: str) -> Struct:
    return _ResponseBodyChunk(
        request_id=request_id,
        correlation_id=correlation_id,
        chunk_index=checked("chunk_index", event.chunk_index, 32),
        data=event.data,
        is_last=event.is_last,
        total_size=checked_size("total_size", event.total_size),
        bytes_sent=checked("bytes_sent", event.bytes_sent, 64),
    )


# --- answers -----------------------------------------------------------------------------------------


def _read_decision(payload: bytes) -> Inbound:
    try:
        if len(payload) > SCANNED_ABOVE:
            refuse_costly(payload, SCANNED_ABOVE)
        wire = decode_response(payload)
        response = read_response(wire, payload)
        request_id, correlation_id = wire.request_id, wire.correlation_id
        if type(correlation_id) is not str or not correlation_id:
            correlation_id = None
        if type(request_id) is not int or not 0 <= request_id < 2**64:
            request_id = None
            if correlation_id is None:
                raise RemoteProtocolError("the answer has neither request_id nor correlation_id")
    except READ_ERRORS as error:
        return unreadable(0x20, payload, error)
    if not request_id and correlation_id is None:
        return NotUnderstood()
    return Answer(request_id or None, correlation_id, response)


def _answer(response: Decision, request_id: int | None, correlation_id: str | None) -> bytes:
    if request_id is None:
        raise LocalProtocolError("a docs agent names the request_id that it answers")
    check_ids(request_id, "")
    return encode_frame(SdkFrame.DECISION, docs_response(response, request_id, correlation_id))


def _ids_of(ids: WireIds) -> tuple[int | None, str | None]:
    request_id, _ = SDK.ids_of(ids)
    return request_id, ids.correlation_id if type(ids.correlation_id) is str else None


DOCS: Final = replace(
    SDK,
    dialect=Dialect.DOCS,
    writers={
        RequestHeaders: _request_headers,
        RequestBodyChunk: _request_body_chunk,
        ResponseHeaders: _response_headers,
        ResponseBodyChunk: _response_body_chunk,
    },
    readers={**SDK.readers, SdkFrame.DECISION: _read_decision},
    health_request=None,
    metrics_request=None,
    answer=_answer,
    health=None,
    metrics=None,
    controls={SdkFrame.CANCEL_REQUEST: Cancel, SdkFrame.CANCEL_ALL: CancelAll},
    ids_of=_ids_of,
)
