"""What an agent answers: one model, whatever dialect it came in.

An allow with nothing else is the answer to nearly every event, so it exists once (``ALLOWED``), and so does
the audit that says nothing (``NO_AUDIT``). Treat the dictionaries in here as read-only: they may be shared.

Names, values and texts are the agent's own. Check header names and values before they go into an HTTP
message, and escape texts before they reach a log or a terminal.
"""

from typing import Any, Final, Literal, Self, TypeAlias

from msgspec import Struct

__all__ = [
    "ALLOW",
    "ALLOWED",
    "NO_AUDIT",
    "AgentResponse",
    "Allow",
    "Audit",
    "Block",
    "BodyMutation",
    "Challenge",
    "Decision",
    "HeaderOp",
    "Redirect",
    "WebSocketClose",
    "WebSocketDecision",
    "to_json_value",
]


class Allow(Struct, frozen=True, gc=False, tag="allow"):
    """Let it pass."""


class Block(Struct, frozen=True, gc=False, tag="block"):
    """Answer the client with this status (100 to 599) instead."""

    status: int
    body: str | None = None
    headers: dict[str, str] | None = None


class Redirect(Struct, frozen=True, gc=False, tag="redirect"):
    """Send the client elsewhere; ``status`` is 100 to 599."""

    url: str
    status: int = 302


class Challenge(Struct, frozen=True, tag="challenge"):
    """Make the client prove something. ``params`` holds any JSON; for core agents strings only."""

    challenge_type: str
    params: dict[str, Any] = {}


Decision: TypeAlias = Allow | Block | Redirect | Challenge
ALLOW: Final = Allow()


class HeaderOp(Struct, frozen=True, gc=False, omit_defaults=True):
    """One change to the headers; ``value`` is None for a removal, and only then."""

    operation: Literal["set", "add", "remove"]
    name: str
    value: str | None = None

    @classmethod
    def set(cls, name: str, value: str) -> Self:
        """Replace every value of ``name`` by this one."""
        return cls("set", name, value)

    @classmethod
    def add(cls, name: str, value: str) -> Self:
        """Add a value beside those that ``name`` has."""
        return cls("add", name, value)

    @classmethod
    def remove(cls, name: str) -> Self:
        """Take every value of ``name`` away."""
        return cls("remove", name)


class BodyMutation(Struct, frozen=True, gc=False):
    """What becomes of a chunk: ``data`` None passes it through, ``b""`` drops it, the rest replaces it."""

    data: bytes | None = None
    chunk_index: int = 0


class WebSocketClose(Struct, frozen=True, gc=False):
    """Close the WebSocket with this code (u16) and reason."""

    code: int
    reason: str


WebSocketDecision: TypeAlias = Literal["allow", "drop"] | WebSocketClose


class Audit(Struct, frozen=True):
    """Why, for the log: free tags, rule ids and reason codes, a confidence (0 to 1), any JSON in ``custom``."""

    tags: tuple[str, ...] = ()
    rule_ids: tuple[str, ...] = ()
    reason_codes: tuple[str, ...] = ()
    confidence: float | None = None
    custom: dict[str, Any] = {}


NO_AUDIT: Final = Audit()


class AgentResponse(Struct, frozen=True):
    """One answer. ``decision`` is None only when ``needs_more`` is true: it is no decision yet.

    On a header event ``needs_more`` asks for the body, on a chunk for the next one; on the last chunk it
    means that no decision will come. Some agents write an allow beside it, which is a placeholder and
    reads as None.
    """

    decision: Decision | None
    request_headers: tuple[HeaderOp, ...] = ()
    response_headers: tuple[HeaderOp, ...] = ()
    request_body_mutation: BodyMutation | None = None
    response_body_mutation: BodyMutation | None = None
    websocket_decision: WebSocketDecision | None = None
    audit: Audit = NO_AUDIT
    routing_metadata: dict[str, str] = {}
    needs_more: bool = False


ALLOWED: Final = AgentResponse(ALLOW)
"""A bare allow. Compare with ``==``: an allow that changes headers is not equal to it."""


def to_json_value(decision: Decision | None) -> str | dict[str, Any]:
    """The decision for programs to read: ``"allow"``, or an object whose one key names the decision.

    Absent fields are left out. None, an answer that needs more, is ``{"needs_more": True}``.
    """
    match decision:
        case None:
            return {"needs_more": True}
        case Allow():
            return "allow"
        case Block(status, body, headers):
            block: dict[str, Any] = {"status": status}
            if body is not None:
                block["body"] = body
            if headers is not None:
                block["headers"] = headers
            return {"block": block}
        case Redirect(url, status):
            return {"redirect": {"url": url, "status": status}}
        case Challenge(challenge_type, params):
            challenge: dict[str, Any] = {"challenge_type": challenge_type}
            if params:
                challenge["params"] = params
            return {"challenge": challenge}
