"""Encode and decode the protocol between proxies and shards, without any I/O.

``PROXY_PROTOCOL.md`` beside this file specifies the protocol. Shards use it between themselves, too.
``dialout.frames.FrameDecoder`` cuts the frames. Encoders return whole frames. They raise LocalProtocolError for values
that must not be sent. Decoders raise ProxyWireError only.
"""

from functools import lru_cache
from struct import Struct as Layout
from typing import Any, Final

import msgspec
from msgspec import Struct
from msgspec.json import Decoder

from dialout.decisions import (
    ALLOWED,
    NO_AUDIT,
    Audit,
    BodyMutation,
    Decision,
    HeaderOp,
    WebSocketClose,
    to_json_value,
)
from dialout.dialects import MAX_PING
from dialout.errors import LocalProtocolError, RemoteProtocolError
from dialout.events import (
    AgentEvent,
    CancelReason,
    Configure,
    GuardrailInspect,
    RequestBodyChunk,
    RequestComplete,
    RequestHeaders,
    ResponseBodyChunk,
    ResponseHeaders,
    WebSocketFrame,
)
from dialout.frames import MAX_FRAME_LENGTH, encode_frame
from dialout.nesting import MAX_DEPTH, is_too_deep
from dialout.proxy.errors import FailurePolicy
from dialout.proxy.frames import (
    FINAL,
    MAX_ANSWER_LENGTH,
    MAX_TIMEOUT_MS,
    PROXY_PROTOCOL,
    RELAYED,
    RETRY_SAFE,
    Answer,
    Failure,
    FromProxyFrame,
    FromShardFrame,
    Pong,
    ProxyCancel,
    ProxyFinish,
    ProxyFrame,
    ProxyHello,
    ProxyPing,
    ProxyRequest,
    ProxyWireError,
    Welcome,
)
from dialout.received import SCANNED_ABOVE
from dialout.registration import is_agent_id
from dialout.responses import READ_ERRORS, WireResponse, read_response, why
from dialout.scan import refuse_costly

__all__ = [
    "FINAL",
    "GOING_AWAY",
    "MAX_ANSWER_LENGTH",
    "MAX_TIMEOUT_MS",
    "PROXY_PROTOCOL",
    "RELAYED",
    "RETRY_SAFE",
    "Answer",
    "Failure",
    "FromProxyFrame",
    "FromShardFrame",
    "Pong",
    "ProxyCancel",
    "ProxyFinish",
    "ProxyFrame",
    "ProxyHello",
    "ProxyPing",
    "ProxyRequest",
    "ProxyWireError",
    "Welcome",
    "decode_from_proxy",
    "decode_from_shard",
    "encode_answer",
    "encode_cancel",
    "encode_failure",
    "encode_finish",
    "encode_going_away",
    "encode_hello",
    "encode_ping",
    "encode_pong",
    "encode_refusal",
    "encode_request",
    "encode_welcome",
]

GOING_AWAY: Final = b'{"going_away":true}'
"""The payload of a ping after which a proxy sends no new request. The shard may then close when it is idle."""

_MAX_U32: Final = 2**32 - 1
_MAX_U64: Final = 2**64 - 1

# The header of every frame that belongs to a request, without and with the framing in front, for both directions.
_TO_SHARD: Final = Layout(">QIBB")
_FRAMED_TO_SHARD: Final = Layout(">IBQIBB")
_TO_PROXY: Final = Layout(">QIB")
_FRAMED_TO_PROXY: Final = Layout(">IBQIB")

_EVENTS: Final[tuple[type[AgentEvent], ...]] = (
    RequestHeaders,
    RequestBodyChunk,
    ResponseHeaders,
    ResponseBodyChunk,
    RequestComplete,
    WebSocketFrame,
    GuardrailInspect,
    Configure,
)
_EVENT_DECODERS: Final = {kind.frame_type: Decoder(kind).decode for kind in _EVENTS}
_REASONS: Final = {reason.name.lower(): reason for reason in CancelReason}
_REASON_JSON: Final = {reason: b'{"reason":"%s"}' % reason.name.lower().encode() for reason in CancelReason}
_encode: Final = msgspec.json.Encoder().encode
_WRITE_ERRORS: Final = (TypeError, ValueError, OverflowError, RecursionError)


class _Cancel(Struct, gc=False):
    reason: str | None = None


class _WireAnswer(WireResponse, kw_only=True):
    agent_id: str
    connection_id: str
    shard: int


class _WrittenAnswer(Struct, omit_defaults=True):
    """An answer on the wire. Empty fields are left out."""

    decision: str | dict[str, Any] | None
    agent_id: str
    connection_id: str
    shard: int
    request_headers: tuple[HeaderOp, ...] = ()
    response_headers: tuple[HeaderOp, ...] = ()
    request_body_mutation: BodyMutation | None = None
    response_body_mutation: BodyMutation | None = None
    websocket_decision: str | dict[str, WebSocketClose] | None = None
    audit: Audit = NO_AUDIT
    routing_metadata: dict[str, str] = {}
    needs_more: bool = False


class _WireFailure(Struct, gc=False):
    error_code: str
    error: str = ""
    shard: int | None = None
    # Any value is accepted, so that a policy newer than this library does not make the whole failure unreadable.
    policy: Any = None


_decode_cancel: Final = Decoder(_Cancel).decode
_decode_hello: Final = Decoder(ProxyHello).decode
_decode_answer: Final = Decoder(_WireAnswer).decode
_decode_failure: Final = Decoder(_WireFailure).decode
_decode_welcome: Final = Decoder(Welcome).decode


# There are few agents and many requests, so both conversions of an agent id are cached: 80 ns instead of 500.
@lru_cache(maxsize=4096)
def _write_agent_id(agent_id: str) -> bytes:
    if not is_agent_id(agent_id):
        raise LocalProtocolError("an agent id is 1 to 128 of A-Z a-z 0-9 . _ : @ -")
    return agent_id.encode("ascii")


@lru_cache(maxsize=4096)
def _read_agent_id(raw: bytes) -> str:
    agent_id = raw.decode("latin-1")
    if not is_agent_id(agent_id):
        raise RemoteProtocolError("the agent id is not 1 to 128 of A-Z a-z 0-9 . _ : @ -")
    return agent_id


# --- the proxy's side -----------------------------------------------------------------------------------


def encode_hello(client: str, version: str) -> bytes:
    """Encode the first frame of a connection, with the client's name (any text) and its software version."""
    return encode_frame(ProxyFrame.HELLO, _json({"protocol": PROXY_PROTOCOL, "client": client, "version": version}))


def encode_ping(payload: bytes) -> bytes:
    """Encode a ping. It may be sent at any time after the welcome. Its pong has the same payload."""
    return encode_frame(ProxyFrame.PING, payload)


def encode_request(event: AgentEvent, *, request_id: int, agent_id: str, timeout_ms: int = 0, flags: int = 0) -> bytes:
    """Encode one event.

    ``request_id`` is 1 to 2**64 - 1. It must be unique on this connection while an event of the request is unanswered
    or its affinity is needed. ``timeout_ms`` starts when the shard reads the frame. 0 means the shard's default.
    """
    return _to_shard(event.frame_type, request_id, agent_id, timeout_ms, flags, _json(event))


def encode_cancel(request_id: int, agent_id: str, reason: CancelReason) -> bytes:
    """Encode the cancel of a request. Its unanswered events will still get a failure or an answer."""
    return _to_shard(ProxyFrame.CANCEL, request_id, agent_id, 0, 0, _REASON_JSON[reason])


def encode_finish(request_id: int, agent_id: str) -> bytes:
    """Encode the end of a request: no further event will follow. Not needed after an event with the flag FINAL."""
    return _to_shard(ProxyFrame.FINISH, request_id, agent_id, 0, 0, b"{}")


def decode_from_shard(frame_type: int, payload: bytes) -> FromShardFrame:
    """Read a frame from a shard. Raises ProxyWireError."""
    if frame_type == 0x20 or frame_type == 0x21:
        return _read_result(frame_type, payload)
    try:
        if frame_type == ProxyFrame.WELCOME:
            return _decode_welcome(payload)
    except READ_ERRORS as error:
        raise ProxyWireError(f"the welcome cannot be read: {why(error)}") from None
    if frame_type == ProxyFrame.PONG:
        return Pong(payload)
    raise ProxyWireError(f"a shard does not send frames of type 0x{frame_type:02x}")


def _read_result(frame_type: int, payload: bytes) -> Answer | Failure:
    if len(payload) < _TO_PROXY.size:
        raise ProxyWireError(f"a frame of type 0x{frame_type:02x} ends inside its header")
    request_id, duration_us, flags = _TO_PROXY.unpack_from(payload)
    if not request_id:
        raise ProxyWireError(f"a frame of type 0x{frame_type:02x} is for request 0")
    try:
        text = payload[_TO_PROXY.size :]
        if len(text) > SCANNED_ABOVE:
            refuse_costly(text, SCANNED_ABOVE)
        if frame_type == 0x20:
            wire = _decode_answer(text)
            response = read_response(wire, text)
            return Answer(request_id, duration_us, flags, response, wire.agent_id, wire.connection_id, wire.shard)
        failure = _decode_failure(text)
        policy = failure.policy if failure.policy in ("open", "closed") else None
        return Failure(request_id, duration_us, flags, failure.error_code, failure.error, failure.shard, policy)
    except READ_ERRORS as error:
        raise ProxyWireError(f"a frame of type 0x{frame_type:02x} cannot be read: {why(error)}", request_id) from None


# --- the shard's side -----------------------------------------------------------------------------------


def encode_welcome(shard: int, epoch: str, version: str) -> bytes:
    """Encode the answer to Hello, with the shard's number and the id of its run (``epoch``)."""
    return encode_frame(
        ProxyFrame.WELCOME, _json({"protocol": PROXY_PROTOCOL, "shard": shard, "epoch": epoch, "version": version})
    )


def encode_refusal(error: str) -> bytes:
    """Encode the refusal of a Hello. Close the connection after it."""
    return encode_frame(ProxyFrame.WELCOME, _json({"protocol": PROXY_PROTOCOL, "error": error}))


def encode_going_away() -> bytes:
    """Encode the announcement that the shard ends soon and wants no new requests.

    The proxy acknowledges it with a ping of ``GOING_AWAY``.
    """
    return encode_frame(ProxyFrame.WELCOME, _json({"protocol": PROXY_PROTOCOL, "going_away": True}))


def encode_pong(payload: bytes) -> bytes:
    """Encode the answer to a ping."""
    return encode_frame(ProxyFrame.PONG, payload)


def encode_answer(
    request_id: int,
    response: Decision,
    *,
    agent_id: str,
    connection_id: str,
    shard: int,
    duration_us: int,
    flags: int = 0,
) -> bytes:
    """Encode an agent's decision on the oldest unanswered event of a request.

    Raises LocalProtocolError when it does not fit into ``MAX_ANSWER_LENGTH`` (numbers may take more room here than in
    the agent's frame). Also raises it when the response has neither a verdict nor ``needs_more``. Send a failure then.
    """
    if response is ALLOWED:
        return _to_proxy(ProxyFrame.ANSWER, request_id, duration_us, flags, _allowed(agent_id, connection_id, shard))
    text = _json(_written_answer(response, agent_id, connection_id, shard))
    return _to_proxy(ProxyFrame.ANSWER, request_id, duration_us, flags, text)


@lru_cache(maxsize=4096)
def _allowed(agent_id: str, connection_id: str, shard: int) -> bytes:
    """Encode the answer to nearly every event. The text is cached, as it depends only on the connection."""
    return _json(_written_answer(ALLOWED, agent_id, connection_id, shard))


def _written_answer(response: Decision, agent_id: str, connection_id: str, shard: int) -> _WrittenAnswer:
    decision = response.verdict
    if decision is None and not response.needs_more:
        raise LocalProtocolError("an answer without a decision must say that it needs more")
    closing = response.websocket_decision
    return _WrittenAnswer(
        None if decision is None else to_json_value(decision),
        agent_id,
        connection_id,
        shard,
        response.request_headers,
        response.response_headers,
        response.request_body_mutation,
        response.response_body_mutation,
        {"close": closing} if isinstance(closing, WebSocketClose) else closing,
        response.audit,
        response.routing_metadata,
        response.needs_more,
    )


def encode_failure(
    request_id: int,
    error_code: str,
    error: str,
    *,
    shard: int | None,
    duration_us: int = 0,
    flags: int = 0,
    policy: FailurePolicy | None = None,
) -> bytes:
    """Encode the reason why the oldest unanswered event of a request gets no answer."""
    fields = {"error_code": error_code, "error": error, "shard": shard}
    text = _json(fields if policy is None else fields | {"policy": policy})
    return _to_proxy(ProxyFrame.FAILURE, request_id, duration_us, flags, text)


def decode_from_proxy(frame_type: int, payload: bytes) -> FromProxyFrame:
    """Read a frame from a proxy or from another shard. Raises ProxyWireError."""
    decode = _EVENT_DECODERS.get(frame_type)
    if decode is not None:
        request_id, timeout_ms, flags, length = _read_header(frame_type, payload)
        end = _TO_SHARD.size + length
        try:
            agent_id = _read_agent_id(payload[_TO_SHARD.size : end])
            if len(payload) > SCANNED_ABOVE:
                refuse_costly(payload, SCANNED_ABOVE)
            event = decode(payload[end:])
            if type(event) is Configure and is_too_deep(payload, event.config):
                raise RemoteProtocolError(f"the configuration is nested more than {MAX_DEPTH} levels deep")
        except READ_ERRORS as error:
            message = f"a frame of type 0x{frame_type:02x} cannot be read: {why(error)}"
            raise ProxyWireError(message, request_id) from None
        return ProxyRequest(request_id, agent_id, timeout_ms, flags, event)
    try:
        return _read_control(frame_type, payload)
    except ProxyWireError:
        raise
    except READ_ERRORS as error:
        # The error has no request id. A failure with one would be taken for the answer to an event.
        raise ProxyWireError(f"a frame of type 0x{frame_type:02x} cannot be read: {why(error)}") from None


def _read_control(frame_type: int, payload: bytes) -> FromProxyFrame:
    if frame_type == ProxyFrame.PING:
        if len(payload) > MAX_PING:
            raise ProxyWireError(f"a ping has at most {MAX_PING} bytes")
        return ProxyPing(payload)
    if frame_type == ProxyFrame.HELLO:
        return _decode_hello(payload)
    if frame_type not in {ProxyFrame.CANCEL, ProxyFrame.FINISH}:
        raise ProxyWireError(f"a proxy does not send frames of type 0x{frame_type:02x}")
    request_id, _, _, length = _read_header(frame_type, payload)
    end = _TO_SHARD.size + length
    agent_id = _read_agent_id(payload[_TO_SHARD.size : end])
    refuse_costly(payload, SCANNED_ABOVE)
    if frame_type == ProxyFrame.FINISH:
        return ProxyFinish(request_id, agent_id)
    reason = _decode_cancel(payload[end:]).reason
    return ProxyCancel(request_id, agent_id, _REASONS.get(reason or "", CancelReason.MANUAL))


def _read_header(frame_type: int, payload: bytes) -> tuple[int, int, int, int]:
    """Read the header: (request id, timeout in ms, flags, length of the agent id)."""
    if len(payload) < _TO_SHARD.size:
        raise ProxyWireError(f"a frame of type 0x{frame_type:02x} ends inside its header")
    header: tuple[int, int, int, int] = _TO_SHARD.unpack_from(payload)
    if not header[0]:
        raise ProxyWireError(f"a frame of type 0x{frame_type:02x} is for request 0")
    return header


# --- writing --------------------------------------------------------------------------------------------


def _json(value: object) -> bytes:
    try:
        return _encode(value)
    except _WRITE_ERRORS as error:
        raise LocalProtocolError(f"this cannot be written as JSON: {why(error)}") from error


def _to_shard(frame_type: int, request_id: int, agent_id: str, timeout_ms: int, flags: int, text: bytes) -> bytes:
    agent = _write_agent_id(agent_id)
    length = 15 + len(agent) + len(text)
    if length > MAX_FRAME_LENGTH:
        raise LocalProtocolError(f"an event of {len(text)} bytes of JSON does not fit into a frame of 16 MiB")
    _check_request_id(request_id)
    if not 0 <= timeout_ms <= MAX_TIMEOUT_MS:
        raise LocalProtocolError(f"a time limit is 0 to {MAX_TIMEOUT_MS} ms, not {timeout_ms}")
    return _FRAMED_TO_SHARD.pack(length, frame_type, request_id, timeout_ms, flags, len(agent)) + agent + text


def _to_proxy(frame_type: int, request_id: int, duration_us: int, flags: int, text: bytes) -> bytes:
    length = 14 + len(text)
    if length > MAX_ANSWER_LENGTH:
        raise LocalProtocolError(f"an answer of {len(text)} bytes of JSON is above the limit")
    _check_request_id(request_id)
    if duration_us > _MAX_U32:  # more than an hour
        duration_us = _MAX_U32
    return _FRAMED_TO_PROXY.pack(length, frame_type, request_id, duration_us, flags) + text


def _check_request_id(request_id: int) -> None:
    if not 0 < request_id <= _MAX_U64:
        raise LocalProtocolError(f"a request id is 1 to 2**64 - 1, not {request_id}")
