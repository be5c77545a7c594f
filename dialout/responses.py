"""Read the payload of a 0x20 frame: a Decision (sdk, docs) or an AgentResponse (core), in one reader.

The dialects write the same fields in different forms. No form has another meaning in another dialect, so all forms are
read in every dialect. Header changes are flat or tagged, ``needs_more`` stands beside the decision or inside it, and
body mutations may be present. null counts as absent. Unknown keys of the answer are ignored. The last of duplicate keys
counts. The reader is strict where a mistake could turn into an allow. A decision is exactly one of the known ones. Only
``"allow"`` and ``{"allow":null}`` are an allow.
"""

import re
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Raw, Struct
from msgspec.json import Decoder

from dialout.decisions import (
    ALLOW,
    ALLOWED,
    NO_AUDIT,
    Audit,
    Block,
    BodyMutation,
    Challenge,
    Decision,
    HeaderOp,
    Redirect,
    Verdict,
    WebSocketClose,
    WebSocketDecision,
)
from dialout.errors import RemoteProtocolError
from dialout.header_syntax import BadHeader
from dialout.inbound import Unreadable
from dialout.nesting import MAX_DEPTH, is_too_deep

__all__ = [
    "READ_ERRORS",
    "SCANNED_ABOVE",
    "Mutation",
    "WireResponse",
    "decode_response",
    "read_response",
    "unreadable",
    "why",
]

READ_ERRORS: Final = (RemoteProtocolError, msgspec.DecodeError, ValueError, RecursionError)
"""All errors that a reader can raise. ValueError covers bad UTF-8 and integers of thousands of digits."""

_MAX_ID: Final = 2**64 - 1
_U16 = Annotated[int, Meta(ge=0, le=2**16 - 1)]
_U32 = Annotated[int, Meta(ge=0, le=2**32 - 1)]
_Status = Annotated[int, Meta(ge=100, le=599)]


# --- the wire ----------------------------------------------------------------------------------------


class _NameValue(Struct, gc=False):
    name: str
    value: str | None = None


class _HeaderOp(Struct, gc=False):
    operation: str | None = None
    name: str | None = None
    value: str | None = None
    set: _NameValue | None = None
    add: _NameValue | None = None
    remove: _NameValue | None = None


class _Audit(Struct, gc=False):
    tags: tuple[str, ...] | None = None
    rule_ids: tuple[str, ...] | None = None
    reason_codes: tuple[str, ...] | None = None
    confidence: float | None = None
    custom: dict[str, Any] | None = None


class Mutation(Struct, gc=False):
    """A body mutation on the wire. msgspec accepts only standard base64 with its padding."""

    data: bytes | None = None
    chunk_index: _U32 | None = None


class _Close(Struct, gc=False):
    code: _U16
    reason: str | None = None


class WireResponse(Struct, gc=False):
    """All keys of all dialects. The ids may be of any type. Each dialect checks its own id and ignores the other."""

    decision: str | dict[str, Raw] | None = None
    request_id: Any = None
    correlation_id: Any = None
    request_headers: list[_HeaderOp] | None = None
    response_headers: list[_HeaderOp] | None = None
    routing_metadata: dict[str, str] | None = None
    audit: _Audit | None = None
    needs_more: bool | None = None
    request_body_mutation: Mutation | None = None
    response_body_mutation: Mutation | None = None
    websocket_decision: str | dict[str, _Close] | None = None

    def take_audit_id(self) -> object:
        """Remove and return ``audit.custom.correlation_id``, which names the request in answers of core agents."""
        audit = self.audit
        if audit is None or audit.custom is None:
            return None
        return audit.custom.pop("correlation_id", None)


class _Block(Struct, gc=False):
    status: _Status
    body: str | None = None
    headers: dict[str, str] | None = None


class _Redirect(Struct, gc=False):
    url: str
    status: _Status


class _Challenge(Struct, gc=False):
    challenge_type: str
    params: dict[str, Any] | None = None


decode_response = Decoder(WireResponse).decode
_decode_block = Decoder(_Block).decode
_decode_redirect = Decoder(_Redirect).decode
_decode_challenge = Decoder(_Challenge).decode


SCANNED_ABOVE: Final = 512
"""Size in bytes above which an answer is scanned (`refuse_costly`) before it is decoded. Most are shorter."""


# --- the model ---------------------------------------------------------------------------------------


def read_response(wire: WireResponse, payload: bytes) -> Decision:
    """Turn the decoded answer into the model. Raises one of ``READ_ERRORS`` for an answer that cannot be used.

    ``wire`` was decoded from ``payload``.
    """
    audit = _read_audit(wire.audit)
    if (
        wire.decision == "allow"
        and audit is NO_AUDIT
        and not (wire.request_headers or wire.response_headers or wire.needs_more or wire.routing_metadata)
        and wire.request_body_mutation is None
        and wire.response_body_mutation is None
        and wire.websocket_decision is None
    ):
        return ALLOWED
    decision, needs_more = _read_decision(wire.decision, wire.needs_more is True)
    if is_too_deep(payload, audit.custom, decision.params if type(decision) is Challenge else None):
        raise RemoteProtocolError(f"the answer is nested more than {MAX_DEPTH} levels deep")
    return Decision(
        decision,
        tuple(map(_read_header_op, wire.request_headers or ())),
        tuple(map(_read_header_op, wire.response_headers or ())),
        _read_mutation(wire.request_body_mutation),
        _read_mutation(wire.response_body_mutation),
        _read_websocket_decision(wire.websocket_decision),
        audit,
        wire.routing_metadata or {},
        needs_more,
    )


def _read_decision(wire: str | dict[str, Raw] | None, needs_more: bool) -> tuple[Verdict | None, bool]:
    """The verdict, and whether more is needed. An allow beside needs_more is a placeholder and becomes None."""
    if wire == "allow":
        return None if needs_more else ALLOW, needs_more
    if wire is None:
        if needs_more:
            return None, True
        raise RemoteProtocolError("the answer has no decision")
    if type(wire) is not dict or len(wire) != 1:
        raise RemoteProtocolError("the decision is empty, or not exactly one of the known ones")
    [(kind, raw)] = wire.items()
    if kind == "block":
        block = _decode_block(raw)
        return Block(block.status, block.body, block.headers), needs_more
    if kind == "redirect":
        redirect = _decode_redirect(raw)
        return Redirect(redirect.url, redirect.status), needs_more
    if kind == "challenge":
        challenge = _decode_challenge(raw)
        return Challenge(challenge.challenge_type, challenge.params or {}), needs_more
    if kind == "needs_more" and bytes(raw) == b"true":
        return None, True
    if kind == "allow" and bytes(raw) == b"null":
        return None if needs_more else ALLOW, needs_more
    raise RemoteProtocolError("the decision is not one of the known ones")


def _read_audit(wire: _Audit | None) -> Audit:
    if wire is None:
        return NO_AUDIT
    confidence = wire.confidence
    if confidence is None and not (wire.tags or wire.rule_ids or wire.reason_codes or wire.custom):
        return NO_AUDIT
    return Audit(wire.tags or (), wire.rule_ids or (), wire.reason_codes or (), confidence, wire.custom or {})


def _read_header_op(wire: _HeaderOp) -> HeaderOp:
    forms: list[tuple[Literal["set", "add", "remove"], str | None, str | None]] = []
    if wire.set is not None:
        forms.append(("set", wire.set.name, wire.set.value))
    if wire.add is not None:
        forms.append(("add", wire.add.name, wire.add.value))
    if wire.remove is not None:
        forms.append(("remove", wire.remove.name, None))
    if wire.operation == "set":
        forms.append(("set", wire.name, wire.value))
    elif wire.operation == "add":
        forms.append(("add", wire.name, wire.value))
    elif wire.operation == "remove":
        forms.append(("remove", wire.name, None))
    elif wire.operation is not None:
        forms.clear()
    if len(forms) != 1:
        raise RemoteProtocolError("a header change is not exactly one of set, add and remove")
    [(operation, name, value)] = forms
    if name is None or (value is None and operation != "remove"):
        raise RemoteProtocolError("a header change lacks its name or its value")
    return HeaderOp(operation, name, value)


def _read_mutation(wire: Mutation | None) -> BodyMutation | None:
    return None if wire is None else BodyMutation(wire.data, wire.chunk_index or 0)


def _read_websocket_decision(wire: str | dict[str, _Close] | None) -> WebSocketDecision | None:
    if wire is None:
        return None
    if wire == "allow":
        return "allow"
    if wire == "drop":
        return "drop"
    if type(wire) is dict and len(wire) == 1 and "close" in wire:
        return WebSocketClose(wire["close"].code, wire["close"].reason or "")
    raise RemoteProtocolError("the WebSocket decision is not one of the known ones")


# --- unreadable answers ------------------------------------------------------------------------------


# The fields are Raw, because an unusable answer may be expensive to decode, too.
_NOTHING: Final = Raw(b"null")
_MAX_ID_LENGTH: Final = 6 * 256
"""The most bytes of an id on the wire: 256 characters, each of them escaped."""


class _Ids(Struct):
    request_id: Raw = _NOTHING
    correlation_id: Raw = _NOTHING
    audit: Raw = _NOTHING


class _IdsAudit(Struct):
    custom: Raw = _NOTHING


class _IdsCustom(Struct):
    correlation_id: Raw = _NOTHING


_decode_ids = Decoder(_Ids).decode
_decode_ids_audit = Decoder(_IdsAudit).decode
_decode_ids_custom = Decoder(_IdsCustom).decode
_decode_text = Decoder(str).decode
_UNREADABLE: Final = (msgspec.DecodeError, ValueError, RecursionError)
# SDK agents write the id first, so it can be read despite a fault behind it. Further in, a number under this key could
# belong to another object.
_request_id_at_start = re.compile(rb'\s*\{\s*"request_id"\s*:\s*(0|[1-9][0-9]{0,19})\s*[,}]').match
# Inside a string the quotes would be escaped, so this matches keys only.
_correlation_ids = re.compile(rb'"correlation_id"\s*:\s*"([^"\\\x00-\x1f]{1,256})"').findall


def why(error: Exception) -> str:
    """Return the reason of a read error, without any text of the peer.

    msgspec names keys and types of this package. A codec error names only a position.
    """
    if isinstance(error, UnicodeDecodeError):
        return f"not valid UTF-8 at byte {error.start} of a string"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    text = str(error)
    # This is the only message of msgspec that repeats the value.
    return "a value is none of those that are known" if text.startswith("Invalid enum value") else text


def unreadable(frame_type: int, payload: bytes, error: Exception) -> Unreadable:
    """Describe an answer that could not be read because of ``error``, with all ids that can be found in it."""
    request_id: int | None = None
    correlation_id: str | None = None
    try:
        ids = _decode_ids(payload)
    except _UNREADABLE:
        if found := _request_id_at_start(payload):
            request_id = int(found[1])
        named = set(_correlation_ids(payload))
        if len(named) == 1:
            correlation_id = named.pop().decode(errors="replace")
    else:
        request_id = _read_number(ids.request_id)
        correlation_id = _read_text(_id_in_audit(ids.audit)) or _read_text(ids.correlation_id)
    return Unreadable(
        frame_type,
        why(error),
        request_id if request_id is not None and 0 < request_id <= _MAX_ID else None,
        correlation_id or None,
        isinstance(error, BadHeader),
    )


def _id_in_audit(audit: Raw) -> Raw:
    try:
        return _decode_ids_custom(_decode_ids_audit(audit).custom).correlation_id
    except _UNREADABLE:
        return _NOTHING


def _read_number(raw: Raw) -> int | None:
    """Read a number without sign, point and exponent, of at most as many digits as an id may have."""
    digits = bytes(raw)
    return int(digits) if len(digits) <= 20 and digits.isdigit() else None


def _read_text(raw: Raw) -> str | None:
    try:
        return _decode_text(raw) if memoryview(raw).nbytes <= _MAX_ID_LENGTH else None
    except _UNREADABLE:
        return None
