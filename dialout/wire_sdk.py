"""The sdk dialect: a number identifies a request, and answers come in the order of the events.

Sources of the rules: the Go SDK's ``v2/protocol.go`` and ``v2/handler.go``.
"""

from typing import Final

from msgspec import Struct
from msgspec.json import Decoder

from dialout.capabilities import Capabilities, Event
from dialout.decisions import ALLOWED, BodyMutation, Decision
from dialout.dialects import MAX_PING, Dialect, SdkFrame
from dialout.errors import LocalProtocolError, RemoteProtocolError
from dialout.events import (
    Cancel,
    CancelAll,
    CancelReason,
    Headers,
    HealthRequest,
    MetricsRequest,
    RequestBodyChunk,
    RequestHeaders,
    ResponseBodyChunk,
    ResponseHeaders,
)
from dialout.frames import HEADER, encode_frame
from dialout.inbound import Answer, Health, Ignored, Inbound, Metrics, MutationAnswer, NotUnderstood, Ping, Pong
from dialout.received import WireIds
from dialout.reports import read_sdk_health, read_sdk_metrics, sdk_health, sdk_metrics
from dialout.responding import sdk_response
from dialout.responses import READ_ERRORS, SCANNED_ABOVE, Mutation, decode_response, read_response, unreadable
from dialout.scan import refuse_costly
from dialout.wire import Wire, checked, encode_json, has_body, report_reader

__all__ = ["SDK", "check_ids", "forget_frame"]

_MAX_ID: Final = 2**64 - 1
_FLAG_EVENTS: Final = (
    Event.REQUEST_HEADERS | Event.REQUEST_BODY_CHUNK | Event.RESPONSE_HEADERS | Event.RESPONSE_BODY_CHUNK
)


# --- events ------------------------------------------------------------------------------------------


class _Metadata(Struct, kw_only=True, omit_defaults=True, gc=False):
    correlation_id: str
    client_ip: str
    client_port: int
    server_name: str | None = None
    protocol: str
    tls_version: str | None = None
    route_id: str | None = None
    upstream_id: str | None = None
    traceparent: str | None = None


class _RequestHeaders(Struct, gc=False):
    request_id: int
    method: str
    uri: str
    headers: Headers
    has_body: bool
    metadata: _Metadata


class _Chunk(Struct, gc=False):
    request_id: int
    chunk_index: int
    data: bytes
    is_last: bool


class _ResponseHeaders(Struct, gc=False):
    request_id: int
    status_code: int
    headers: Headers
    has_body: bool


def _request_headers(event: RequestHeaders, request_id: int, correlation_id: str, _: str) -> Struct:
    metadata = event.metadata
    return _RequestHeaders(
        request_id,
        event.method,
        event.uri,
        event.headers,
        has_body(event) if event.has_body is None else event.has_body,
        _Metadata(
            correlation_id=correlation_id,
            client_ip=metadata.client_ip,
            client_port=checked("client_port", metadata.client_port, 16),
            server_name=metadata.server_name,
            protocol=metadata.protocol,
            tls_version=metadata.tls_version,
            route_id=metadata.route_id,
            upstream_id=metadata.upstream_id,
            traceparent=metadata.traceparent,
        ),
    )


def _chunk(event: RequestBodyChunk | ResponseBodyChunk, request_id: int, _: str, __: str) -> Struct:
    return _Chunk(request_id, checked("chunk_index", event.chunk_index, 32), event.data, event.is_last)


def _response_headers(event: ResponseHeaders, request_id: int, _: str, __: str) -> Struct:
    return _ResponseHeaders(request_id, checked("status", event.status, 16), event.headers, has_body(event))


# --- frames from an agent ----------------------------------------------------------------------------


class _Mutation(Mutation, gc=False):
    request_id: int | None = None


class _Timestamp(Struct, gc=False):
    timestamp: int | None = None


_decode_mutation = Decoder(_Mutation).decode
_decode_timestamp = Decoder(_Timestamp).decode


def _read_decision(payload: bytes) -> Inbound:
    try:
        if len(payload) > SCANNED_ABOVE:
            refuse_costly(payload, SCANNED_ABOVE)
        wire = decode_response(payload)
        response = read_response(wire, payload)
        request_id = wire.request_id
        if type(request_id) is not int or not 0 <= request_id <= _MAX_ID:
            raise RemoteProtocolError("the answer has no request_id")
    except READ_ERRORS as error:
        return unreadable(0x20, payload, error)
    return Answer(request_id, None, response) if request_id else NotUnderstood()


def _read_mutation(payload: bytes) -> Inbound:
    """Read a 0x21. The documents give no schema for it, so it must name both its request and its chunk."""
    try:
        refuse_costly(payload, SCANNED_ABOVE)
        wire = _decode_mutation(payload)
        request_id, index = wire.request_id, wire.chunk_index
        if request_id is None or not 0 < request_id <= _MAX_ID or index is None:
            raise RemoteProtocolError("a body mutation must name its request_id and its chunk_index")
    except READ_ERRORS as error:
        found = unreadable(0x21, payload, error)
        # A mutation without a request id does not answer any request.
        return Ignored(0x21, found.reason) if found.request_id is None else found
    return MutationAnswer(request_id, BodyMutation(wire.data, index))


def _read_pong(payload: bytes) -> Pong:
    if len(payload) > MAX_PING:
        return Pong(None, b"")
    try:
        return Pong(_decode_timestamp(payload).timestamp, payload)
    except READ_ERRORS:
        return Pong(None, payload)


# --- other frames from a proxy ------------------------------------------------------------------------


def check_ids(request_id: int, _: str) -> None:
    """Refuse an id that no answer could carry back."""
    if not 0 < request_id <= _MAX_ID:
        raise LocalProtocolError("a request_id is 1 to 2**64 - 1; 0 is what agents answer when they cannot read")


def forget_frame(request_id: int) -> bytes:
    """Build the cancel that makes an sdk agent forget a finished request. It runs for each one, so without checks."""
    payload = b'{"request_id":%d,"reason":"manual"}' % request_id
    return HEADER.pack(len(payload) + 1, 0x30) + payload


_REASONS: Final = {reason: reason.name.lower().encode() for reason in CancelReason}


def _cancel(request_id: int, _: str, reason: CancelReason, __: int) -> bytes:
    return encode_frame(0x30, b'{"request_id":%d,"reason":"%b"}' % (request_id, _REASONS[reason]))


def _cancel_all(reason: CancelReason | None) -> bytes:
    fields = {} if reason is None else {"reason": reason.name.lower()}
    return encode_frame(SdkFrame.CANCEL_ALL, encode_json(fields))


def _ping(_: int, timestamp_ms: int) -> bytes:
    return encode_frame(SdkFrame.PING, b'{"timestamp":%d}' % timestamp_ms)


def _ping_mark(_: int, timestamp_ms: int) -> int:
    return timestamp_ms


def _receivable(capabilities: Capabilities) -> Event:
    return Event(capabilities.events) & _FLAG_EVENTS


# --- the agent's side ---------------------------------------------------------------------------------


def _answer(response: Decision, request_id: int | None, _: str | None) -> bytes:
    if response is ALLOWED and request_id is not None and 0 < request_id <= _MAX_ID:
        # This is the answer to nearly every event. It skips the checks that it cannot fail.
        payload = b'{"request_id":%d,"decision":"allow"}' % request_id
        return HEADER.pack(len(payload) + 1, 0x20) + payload
    if request_id is None:
        raise LocalProtocolError("an sdk agent names the request_id that it answers")
    check_ids(request_id, "")
    return encode_frame(SdkFrame.DECISION, sdk_response(response, request_id))


def _health(health: Health, _: str, timestamp_ms: int) -> bytes:
    return encode_frame(SdkFrame.HEALTH_RESPONSE, encode_json(sdk_health(health, timestamp_ms)))


def _metrics(metrics: Metrics, _: str, timestamp_ms: int, __: int) -> bytes:
    return encode_frame(SdkFrame.METRICS_RESPONSE, encode_json(sdk_metrics(metrics, timestamp_ms)))


def _ids_of(ids: WireIds) -> tuple[int | None, str | None]:
    request_id = ids.request_id
    if type(request_id) is not int or not 0 < request_id <= _MAX_ID:
        raise RemoteProtocolError("it names no request_id")
    return request_id, None


SDK: Final = Wire(
    dialect=Dialect.SDK,
    writers={
        RequestHeaders: _request_headers,
        RequestBodyChunk: _chunk,
        ResponseHeaders: _response_headers,
        ResponseBodyChunk: _chunk,
    },
    readers={
        SdkFrame.DECISION: _read_decision,
        SdkFrame.BODY_MUTATION: _read_mutation,
        SdkFrame.HEALTH_RESPONSE: report_reader(0xE1, read_sdk_health),
        SdkFrame.METRICS_RESPONSE: report_reader(0xE3, read_sdk_metrics),
        SdkFrame.PING: Ping,
        SdkFrame.PONG: _read_pong,
    },
    receivable=_receivable,
    check_ids=check_ids,
    cancel=_cancel,
    cancel_all=_cancel_all,
    ping=_ping,
    ping_mark=_ping_mark,
    health_request=encode_frame(SdkFrame.HEALTH_REQUEST),
    metrics_request=encode_frame(SdkFrame.METRICS_REQUEST),
    answer=_answer,
    health=_health,
    metrics=_metrics,
    controls={
        SdkFrame.CANCEL_REQUEST: Cancel,
        SdkFrame.CANCEL_ALL: CancelAll,
        SdkFrame.HEALTH_REQUEST: HealthRequest,
        SdkFrame.METRICS_REQUEST: MetricsRequest,
    },
    ids_of=_ids_of,
)
