r"""Write the payload of a 0x20 frame: the agent's half of ``dialout.responses``.

The output has the form that real agents of each dialect write, except for the ``\u003c`` that Go's encoder writes for
``<``. A field that the dialect has no key for is refused, never dropped. A dropped body mutation would let a body pass
unchanged.
"""

from typing import Any, Final

from msgspec import Struct

from dialout.decisions import (
    ALLOWED,
    NO_AUDIT,
    Allow,
    Audit,
    Block,
    BodyMutation,
    Challenge,
    Decision,
    HeaderOp,
    Redirect,
    WebSocketClose,
)
from dialout.errors import LocalProtocolError, NotInDialect
from dialout.wire import checked, encode_json

__all__ = ["core_response", "docs_response", "sdk_response"]


def _check(response: Decision) -> None:
    """Refuse an answer that no dialect can carry."""
    decision = response.verdict
    if decision is None and not response.needs_more:
        raise LocalProtocolError("an answer without a decision must say that it needs more")
    if isinstance(decision, Block | Redirect) and not 100 <= decision.status <= 599:
        raise LocalProtocolError(f"the status of a decision is 100 to 599, not {decision.status}")
    for change in (*response.request_headers, *response.response_headers):
        if (change.value is None) != (change.operation == "remove"):
            raise LocalProtocolError("a header change needs a value, except for a removal, which has none")
    for mutation in (response.request_body_mutation, response.response_body_mutation):
        if mutation is not None:
            if mutation.chunk_index is None:
                raise LocalProtocolError("a body mutation names its chunk: give it the chunk_index of the event")
            checked("chunk_index", mutation.chunk_index, 32)


# --- sdk and docs ------------------------------------------------------------------------------------


class _SdkAudit(Struct, kw_only=True, omit_defaults=True, gc=False):
    confidence: float | None = None
    custom: dict[str, Any] = {}
    reason_codes: tuple[str, ...] = ()
    rule_ids: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()


class _SdkDecision(Struct, omit_defaults=True, gc=False):
    request_id: int
    decision: str | dict[str, Any]
    request_headers: tuple[HeaderOp, ...] = ()
    response_headers: tuple[HeaderOp, ...] = ()
    audit: _SdkAudit | None = None


class _DocsDecision(_SdkDecision, omit_defaults=True, gc=False):
    needs_more: bool = False
    request_body_mutation: BodyMutation | None = None
    response_body_mutation: BodyMutation | None = None
    routing_metadata: dict[str, str] = {}
    correlation_id: str | None = None


def sdk_response(response: Decision, request_id: int) -> bytes:
    """Write the SDK's Decision. ``needs_more`` is a decision of its own here, so no verdict stands beside it."""
    if response == ALLOWED:
        return b'{"request_id":%d,"decision":"allow"}' % request_id
    _check(response)
    if response.request_body_mutation or response.response_body_mutation:
        raise NotInDialect("sdk agents cannot change bodies")
    if response.routing_metadata or response.websocket_decision:
        raise NotInDialect("sdk agents can send neither routing metadata nor WebSocket decisions")
    if response.needs_more:
        if isinstance(response.verdict, Block | Redirect | Challenge):
            raise NotInDialect("sdk agents cannot decide and need more at once")
        decision: str | dict[str, Any] = {"needs_more": True}
    else:
        decision = _sdk_decision(response)
    return encode_json(
        _SdkDecision(
            request_id, decision, response.request_headers, response.response_headers, _sdk_audit(response.audit)
        )
    )


def docs_response(response: Decision, request_id: int, correlation_id: str | None) -> bytes:
    """Write the documents' Decision. ``needs_more`` stands beside the decision, body mutations inside the frame."""
    _check(response)
    if response.websocket_decision:
        raise NotInDialect("docs agents know no WebSocket frames, so they decide on none")
    return encode_json(
        _DocsDecision(
            request_id,
            _sdk_decision(response),
            response.request_headers,
            response.response_headers,
            _sdk_audit(response.audit),
            response.needs_more,
            response.request_body_mutation,
            response.response_body_mutation,
            response.routing_metadata,
            correlation_id,
        )
    )


def _sdk_decision(response: Decision) -> str | dict[str, Any]:
    """The decision with its keys sorted and empty ones left out. "allow" stands for a missing verdict."""
    match response.verdict:
        case Block(status, body, headers):
            fields = {"body": body, "headers": headers, "status": status}
            return {"block": {name: value for name, value in fields.items() if value is not None}}
        case Redirect(url, status):
            return {"redirect": {"status": status, "url": url}}
        case Challenge(challenge_type, params):
            challenge: dict[str, Any] = {"challenge_type": challenge_type}
            return {"challenge": challenge | {"params": params} if params else challenge}
        case Allow() | None:
            return "allow"


def _sdk_audit(audit: Audit) -> _SdkAudit | None:
    if audit == NO_AUDIT:
        return None
    return _SdkAudit(
        confidence=audit.confidence,
        custom=audit.custom,
        reason_codes=audit.reason_codes,
        rule_ids=audit.rule_ids,
        tags=audit.tags,
    )


# --- core --------------------------------------------------------------------------------------------

_CORE_ALLOW: Final = (
    b'{"version":2,"decision":"allow","request_headers":[],"response_headers":[],"routing_metadata":{},'
    b'"audit":{"tags":[],"rule_ids":[],"confidence":null,"reason_codes":[],"custom":{"correlation_id":%b}},'
    b'"needs_more":false,"request_body_mutation":null,"response_body_mutation":null,"websocket_decision":null}'
)


def core_response(response: Decision, correlation_id: str) -> bytes:
    """Write an AgentResponse with every key. The id stands in ``audit.custom.correlation_id``."""
    if response == ALLOWED:
        return _CORE_ALLOW % encode_json(correlation_id)
    _check(response)
    audit = response.audit
    if "correlation_id" in audit.custom:
        raise LocalProtocolError("audit.custom.correlation_id is where a core agent names the request it answers")
    return encode_json(
        {
            "version": 2,
            "decision": _core_decision(response),
            "request_headers": [_core_header_op(change) for change in response.request_headers],
            "response_headers": [_core_header_op(change) for change in response.response_headers],
            "routing_metadata": response.routing_metadata,
            "audit": {
                "tags": audit.tags,
                "rule_ids": audit.rule_ids,
                "confidence": audit.confidence,
                "reason_codes": audit.reason_codes,
                "custom": {"correlation_id": correlation_id, **audit.custom},
            },
            "needs_more": response.needs_more,
            "request_body_mutation": response.request_body_mutation,
            "response_body_mutation": response.response_body_mutation,
            "websocket_decision": _core_websocket_decision(response),
        }
    )


def _core_decision(response: Decision) -> str | dict[str, Any]:
    match response.verdict:
        case Block(status, body, headers):
            return {"block": {"status": status, "body": body, "headers": headers}}
        case Redirect(url, status):
            return {"redirect": {"url": url, "status": status}}
        case Challenge(challenge_type, params):
            if not all(type(value) is str for value in params.values()):
                raise NotInDialect("the params of a core agent's challenge are strings")
            return {"challenge": {"challenge_type": challenge_type, "params": params}}
        case Allow() | None:
            return "allow"


def _core_header_op(change: HeaderOp) -> dict[str, dict[str, str | None]]:
    if change.operation == "remove":
        return {"remove": {"name": change.name}}
    return {change.operation: {"name": change.name, "value": change.value}}


def _core_websocket_decision(response: Decision) -> str | dict[str, Any] | None:
    decision = response.websocket_decision
    if isinstance(decision, WebSocketClose):
        return {"close": {"code": checked("code", decision.code, 16), "reason": decision.reason}}
    return decision
