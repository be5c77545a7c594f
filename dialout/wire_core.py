"""The core dialect: a text identifies a request, and agents send reports unsolicited.

Keys are sorted, as the Rust crate sends them. Sources of the rules: the crate's ``protocol.rs``, ``reverse.rs``,
``uds.rs`` and ``uds_server.rs``.
"""

from typing import Any, Final

from msgspec import UNSET, Struct, UnsetType
from msgspec.json import Decoder

from dialout.bodies import body_by_headers
from dialout.capabilities import Capabilities, Event
from dialout.decisions import Decision
from dialout.dialects import MAX_PING, CoreFrame, Dialect
from dialout.errors import LocalProtocolError, RemoteProtocolError
from dialout.events import (
    Cancel,
    CancelReason,
    Configure,
    GuardrailInspect,
    Headers,
    RequestBodyChunk,
    RequestComplete,
    RequestHeaders,
    ResponseBodyChunk,
    ResponseHeaders,
    WebSocketFrame,
)
from dialout.frames import encode_frame
from dialout.inbound import Answer, FlowControl, Health, Inbound, Metrics, Ping, Pong
from dialout.received import WireIds
from dialout.reports import (
    core_config_error,
    core_flow_control,
    core_health,
    core_metrics,
    read_config_update,
    read_core_health,
    read_core_metrics,
    read_flow_control,
)
from dialout.responding import core_response
from dialout.responses import READ_ERRORS, SCANNED_ABOVE, decode_response, read_response, unreadable
from dialout.scan import refuse_costly
from dialout.wire import Wire, checked, checked_size, encode_json, report_reader

__all__ = ["CORE"]

_BODY_CHUNKS: Final = Event.REQUEST_BODY_CHUNK | Event.RESPONSE_BODY_CHUNK


# --- events ------------------------------------------------------------------------------------------


class _Metadata(Struct, kw_only=True, omit_defaults=True, gc=False):
    client_ip: str
    client_port: int
    correlation_id: str
    protocol: str
    request_id: str
    route_id: str | None
    server_name: str | None
    timestamp: str
    tls_cipher: str | None
    tls_version: str | None
    traceparent: str | None = None
    upstream_id: str | None


class _RequestHeaders(Struct, gc=False):
    correlation_id: str
    # The crate does not have this key. Its readers skip unknown keys.
    has_body: bool | UnsetType
    headers: Headers
    metadata: _Metadata
    method: str
    uri: str


class _RequestBodyChunk(Struct, gc=False):
    bytes_received: int
    chunk_index: int
    correlation_id: str
    data: bytes
    is_last: bool
    total_size: int | None


class _ResponseBodyChunk(Struct, gc=False):
    bytes_sent: int
    chunk_index: int
    correlation_id: str
    data: bytes
    is_last: bool
    total_size: int | None


class _ResponseHeaders(Struct, gc=False):
    correlation_id: str
    has_body: bool | UnsetType
    headers: Headers
    status: int


class _RequestComplete(Struct, gc=False):
    correlation_id: str
    duration_ms: int
    error: str | None
    request_body_size: int
    response_body_size: int
    status: int
    upstream_attempts: int


class _WebSocketFrame(Struct, gc=False):
    client_ip: str
    client_to_server: bool
    correlation_id: str
    data: bytes
    fin: bool
    frame_index: int
    opcode: str
    route_id: str | None


class _GuardrailInspect(Struct, omit_defaults=True, kw_only=True):
    categories: tuple[str, ...]
    content: str
    correlation_id: str
    inspection_type: str
    metadata: dict[str, str]
    model: str | None = None
    route_id: str | None = None


class _Configure(Struct):
    config: Any
    config_version: str | None
    correlation_id: str


def _has_body(event: RequestHeaders | ResponseHeaders) -> bool | UnsetType:
    """The value of ``has_body`` on the wire, or UNSET to leave it out.

    It is left out if it is not known, if the headers already tell the same, or if they announce a body.
    """
    told = body_by_headers(event.headers)
    return UNSET if event.has_body is None or told or told is event.has_body else event.has_body


def _request_headers(event: RequestHeaders, _: int, correlation_id: str, now: str) -> Struct:
    metadata = event.metadata
    return _RequestHeaders(
        correlation_id,
        _has_body(event),
        event.headers,
        _Metadata(
            client_ip=metadata.client_ip,
            client_port=checked("client_port", metadata.client_port, 16),
            correlation_id=correlation_id,
            protocol=metadata.protocol,
            request_id=metadata.request_id or correlation_id,
            route_id=metadata.route_id,
            server_name=metadata.server_name,
            timestamp=metadata.timestamp or now,
            tls_cipher=metadata.tls_cipher,
            tls_version=metadata.tls_version,
            traceparent=metadata.traceparent,
            upstream_id=metadata.upstream_id,
        ),
        event.method,
        event.uri,
    )


def _request_body_chunk(event: RequestBodyChunk, _: int, correlation_id: str, __: str) -> Struct:
    index, so_far = checked("chunk_index", event.chunk_index, 32), checked("bytes_received", event.bytes_received, 64)
    total = checked_size("total_size", event.total_size)
    return _RequestBodyChunk(so_far, index, correlation_id, event.data, event.is_last, total)


def _response_body_chunk(event: ResponseBodyChunk, _: int, correlation_id: str, __: str) -> Struct:
    index, so_far = checked("chunk_index", event.chunk_index, 32), checked("bytes_sent", event.bytes_sent, 64)
    total = checked_size("total_size", event.total_size)
    return _ResponseBodyChunk(so_far, index, correlation_id, event.data, event.is_last, total)


def _response_headers(event: ResponseHeaders, _: int, correlation_id: str, __: str) -> Struct:
    return _ResponseHeaders(correlation_id, _has_body(event), event.headers, checked("status", event.status, 16))


def _request_complete(event: RequestComplete, _: int, correlation_id: str, __: str) -> Struct:
    return _RequestComplete(
        correlation_id,
        checked("duration_ms", event.duration_ms, 64),
        event.error,
        checked("request_body_size", event.request_body_size, 64),
        checked("response_body_size", event.response_body_size, 64),
        checked("status", event.status, 16),
        checked("upstream_attempts", event.upstream_attempts, 32),
    )


def _web_socket_frame(event: WebSocketFrame, _: int, correlation_id: str, __: str) -> Struct:
    return _WebSocketFrame(
        event.client_ip,
        event.client_to_server,
        correlation_id,
        event.data,
        event.fin,
        checked("frame_index", event.frame_index, 64),
        event.opcode,
        event.route_id,
    )


def _guardrail_inspect(event: GuardrailInspect, _: int, correlation_id: str, __: str) -> Struct:
    return _GuardrailInspect(
        categories=event.categories,
        content=event.content,
        correlation_id=correlation_id,
        inspection_type=event.inspection_type,
        metadata=event.metadata,
        model=event.model,
        route_id=event.route_id,
    )


def _configure(event: Configure, _: int, correlation_id: str, __: str) -> Struct:
    return _Configure(event.config, event.config_version, correlation_id)


# --- frames from an agent ----------------------------------------------------------------------------


class _Sequence(Struct, gc=False):
    sequence: int | None = None


_decode_sequence = Decoder(_Sequence).decode


def _read_response(payload: bytes) -> Inbound:
    try:
        if len(payload) > SCANNED_ABOVE:
            refuse_costly(payload, SCANNED_ABOVE)
        wire = decode_response(payload)
        correlation_id = wire.take_audit_id() or wire.correlation_id
        response = read_response(wire, payload)
        if type(correlation_id) is not str or not correlation_id:
            raise RemoteProtocolError("the answer has no audit.custom.correlation_id")
    except READ_ERRORS as error:
        return unreadable(0x20, payload, error)
    return Answer(None, correlation_id, response)


def _read_pong(payload: bytes) -> Pong:
    if len(payload) > MAX_PING:
        return Pong(None, b"")
    try:
        return Pong(_decode_sequence(payload).sequence, payload)
    except READ_ERRORS:
        return Pong(None, payload)


# --- other frames from a proxy ------------------------------------------------------------------------


def _check_ids(_: int, correlation_id: str) -> None:
    if not correlation_id:
        raise LocalProtocolError("core agents know a request by its correlation_id, which is empty")


def _cancel(_: int, correlation_id: str, reason: CancelReason, timestamp_ms: int) -> bytes:
    fields = {"correlation_id": correlation_id, "reason": int(reason), "timestamp_ms": timestamp_ms}
    return encode_frame(CoreFrame.CANCEL, encode_json(fields))


def _ping(sequence: int, timestamp_ms: int) -> bytes:
    return encode_frame(CoreFrame.PING, b'{"sequence":%d,"timestamp_ms":%d}' % (sequence, timestamp_ms))


def _ping_mark(sequence: int, _: int) -> int:
    return sequence


def _receivable(capabilities: Capabilities) -> Event:
    events = Event(capabilities.events)
    if not capabilities.streaming_body:
        events &= ~_BODY_CHUNKS
    if not capabilities.websocket:
        events &= ~Event.WEB_SOCKET_FRAME
    if not capabilities.guardrails:
        events &= ~Event.GUARDRAIL_INSPECT
    if not capabilities.config_push:
        events &= ~Event.CONFIGURE
    return events


# --- the agent's side ---------------------------------------------------------------------------------


def _answer(response: Decision, _: int | None, correlation_id: str | None) -> bytes:
    if not correlation_id:
        raise LocalProtocolError("a core agent names the correlation_id that it answers")
    return encode_frame(CoreFrame.AGENT_RESPONSE, core_response(response, correlation_id))


def _health(health: Health, agent_id: str, timestamp_ms: int) -> bytes:
    return encode_frame(CoreFrame.HEALTH_STATUS, encode_json(core_health(health, agent_id, timestamp_ms)))


def _metrics(metrics: Metrics, agent_id: str, timestamp_ms: int, interval_ms: int) -> bytes:
    report = core_metrics(metrics, agent_id, timestamp_ms, interval_ms)
    return encode_frame(CoreFrame.METRICS_REPORT, encode_json(report))


def _flow_control(flow: FlowControl, timestamp_ms: int) -> bytes:
    return encode_frame(CoreFrame.FLOW_CONTROL, encode_json(core_flow_control(flow, timestamp_ms)))


def _config_error(error: str, timestamp_ms: int) -> bytes:
    return encode_frame(CoreFrame.CONFIG_UPDATE_REQUEST, encode_json(core_config_error(error, timestamp_ms)))


def _ids_of(ids: WireIds) -> tuple[int | None, str | None]:
    correlation_id = ids.correlation_id
    if type(correlation_id) is not str or not correlation_id:
        raise RemoteProtocolError("it names no correlation_id")
    return None, correlation_id


CORE: Final = Wire(
    dialect=Dialect.CORE,
    writers={
        RequestHeaders: _request_headers,
        RequestBodyChunk: _request_body_chunk,
        ResponseHeaders: _response_headers,
        ResponseBodyChunk: _response_body_chunk,
        RequestComplete: _request_complete,
        WebSocketFrame: _web_socket_frame,
        GuardrailInspect: _guardrail_inspect,
        Configure: _configure,
    },
    readers={
        CoreFrame.AGENT_RESPONSE: _read_response,
        CoreFrame.HEALTH_STATUS: report_reader(0x30, read_core_health),
        CoreFrame.METRICS_REPORT: report_reader(0x31, read_core_metrics),
        CoreFrame.CONFIG_UPDATE_REQUEST: report_reader(0x32, read_config_update),
        CoreFrame.FLOW_CONTROL: report_reader(0x33, read_flow_control),
        CoreFrame.PING: Ping,
        CoreFrame.PONG: _read_pong,
    },
    receivable=_receivable,
    check_ids=_check_ids,
    cancel=_cancel,
    ping=_ping,
    ping_mark=_ping_mark,
    answer=_answer,
    health=_health,
    metrics=_metrics,
    flow_control=_flow_control,
    config_error=_config_error,
    controls={CoreFrame.CANCEL: Cancel},
    ids_of=_ids_of,
)
