"""The answers of an agent: one model for all dialects.

A bare allow is the answer to nearly every event, so there is one shared object for it (``ALLOWED``). The empty audit
(``NO_AUDIT``) is shared too. Treat the dictionaries in these values as read-only, since they may be shared.

Names, values and texts come from the agent. Escape texts before they reach a log or a terminal. Constructors check
the types of their arguments (TypeError). They also check that an HTTP message can hold the header names, header values,
redirects, challenges and routing metadata (ValueError). So the error is raised where the mistake is made. Ranges are
checked when an answer is encoded.
"""

from typing import Any, Final, Literal, Self, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from dialout.header_syntax import BadHeader, why_bad_header, why_bad_texts, why_bad_word
from dialout.wrong_types import (
    is_body,
    is_integer,
    is_mapping_of_text,
    is_text,
    is_text_or_none,
    is_texts,
    wrong_type,
)

__all__ = [
    "ALLOW",
    "ALLOWED",
    "NO_AUDIT",
    "Allow",
    "Audit",
    "Block",
    "BodyMutation",
    "Challenge",
    "Decision",
    "HeaderOp",
    "Redirect",
    "Verdict",
    "WebSocketClose",
    "WebSocketDecision",
    "to_json_value",
]


class Allow(Struct, frozen=True, gc=False, tag="allow"):
    """Let the message pass."""


class Block(Struct, frozen=True, gc=False, tag="block"):
    """Answer the client with this status (100 to 599) instead."""

    status: int
    body: str | None = None
    headers: dict[str, str] | None = None

    def __post_init__(self) -> None:
        if type(self.status) is not int and not is_integer(self.status):
            raise wrong_type("the status of a block", "a number", self.status)
        if type(self.body) is not str and not is_text_or_none(self.body):
            raise wrong_type("the body of a block", "a text", self.body)
        if self.headers is not None:
            if not is_mapping_of_text(self.headers):
                raise wrong_type("the headers of a block", "a dict of texts", self.headers)
            for name, value in self.headers.items():
                if why := why_bad_header(name, value):
                    raise BadHeader(why)


class Redirect(Struct, frozen=True, gc=False, tag="redirect"):
    """Redirect the client to ``url``. ``status`` is 100 to 599."""

    url: str
    status: int = 302

    def __post_init__(self) -> None:
        if not is_text(self.url):
            raise wrong_type("the URL of a redirect", "a text", self.url)
        if not is_integer(self.status):
            raise wrong_type("the status of a redirect", "a number", self.status)
        if why := why_bad_word("the URL of a redirect", self.url):
            raise BadHeader(why)


class Challenge(Struct, frozen=True, tag="challenge"):
    """Send the client a challenge. ``params`` holds any JSON; for core agents strings only."""

    challenge_type: str
    params: dict[str, Any] = {}

    def __post_init__(self) -> None:
        if not is_text(self.challenge_type):
            raise wrong_type("the type of a challenge", "a text", self.challenge_type)
        if not isinstance(self.params, dict):
            raise wrong_type("the params of a challenge", "a dict", self.params)
        if why := why_bad_word("the type of a challenge", self.challenge_type):
            raise BadHeader(why)
        if self.params and (why := why_bad_texts("a param of a challenge", self.params)):
            raise BadHeader(why)


Verdict: TypeAlias = Allow | Block | Redirect | Challenge
ALLOW: Final = Allow()


_OPERATIONS: Final = frozenset({"set", "add", "remove"})


class HeaderOp(Struct, frozen=True, gc=False, omit_defaults=True):
    """One change to the headers. ``value`` is None for a removal, and only for a removal."""

    operation: Literal["set", "add", "remove"]
    name: str
    value: str | None = None

    def __post_init__(self) -> None:
        name, value = self.name, self.value
        if self.operation not in _OPERATIONS:
            raise ValueError("a header change is one of set, add and remove")
        if type(name) is not str and not is_text(name):
            raise wrong_type("a header name", "a text", name)
        if type(value) is not str and not is_text_or_none(value):
            raise wrong_type("a header value", "a text", value)
        if why := why_bad_header(name, value):
            raise BadHeader(why)

    @classmethod
    def set(cls, name: str, value: str) -> Self:
        """Replace all values of ``name`` by this one."""
        return cls("set", name, value)

    @classmethod
    def add(cls, name: str, value: str) -> Self:
        """Add a value to the present ones of ``name``."""
        return cls("add", name, value)

    @classmethod
    def remove(cls, name: str) -> Self:
        """Remove all values of ``name``."""
        return cls("remove", name)


class BodyMutation(Struct, frozen=True, gc=False):
    """A change to a body chunk. ``data`` None passes the chunk through, ``b""`` drops it, other bytes replace it.

    ``chunk_index`` None means the chunk of the event. ``dialout.agent`` fills in the index; the codec refuses None.
    """

    data: bytes | None = None
    chunk_index: int | None = 0

    def __post_init__(self) -> None:
        if not is_body(self.data):
            raise wrong_type("the data of a body mutation", "bytes", self.data)
        if self.chunk_index is not None and not is_integer(self.chunk_index):
            raise wrong_type("the index of a chunk", "a number", self.chunk_index)


class WebSocketClose(Struct, frozen=True, gc=False):
    """Close the WebSocket with this code (u16) and reason."""

    code: int
    reason: str

    def __post_init__(self) -> None:
        if not is_integer(self.code):
            raise wrong_type("the code of a close", "a number", self.code)
        if not is_text(self.reason):
            raise wrong_type("the reason of a close", "a text", self.reason)


WebSocketDecision: TypeAlias = Literal["allow", "drop"] | WebSocketClose


class Audit(Struct, frozen=True):
    """The reasons of a decision, for the log.

    Tags, rule ids and reason codes are free texts. The confidence is 0 to 1. ``custom`` holds any JSON.
    """

    tags: tuple[str, ...] = ()
    rule_ids: tuple[str, ...] = ()
    reason_codes: tuple[str, ...] = ()
    confidence: float | None = None
    custom: dict[str, Any] = {}

    def __post_init__(self) -> None:
        for name, texts in (("tags", self.tags), ("rule_ids", self.rule_ids), ("reason_codes", self.reason_codes)):
            if not is_texts(texts):
                raise wrong_type(f"{name} of an audit", "a tuple of texts", texts)
        if self.confidence is not None and type(self.confidence) not in {int, float}:
            raise wrong_type("the confidence of an audit", "a number", self.confidence)
        if not isinstance(self.custom, dict):
            raise wrong_type("custom of an audit", "a dict", self.custom)


NO_AUDIT: Final = Audit()
_VERDICTS: Final[frozenset[type]] = frozenset({type(None), Allow, Block, Redirect, Challenge})
_FRAME_DECISIONS: Final = (None, "allow", "drop")


class Decision(Struct, frozen=True):
    """The answer of an agent to one event: a verdict, changes to the message, and an audit.

    ``verdict`` is None only when ``needs_more`` is true, which means that there is no verdict yet. On a header event
    ``needs_more`` asks for the body, on a chunk for the next chunk. On the last chunk it means that no verdict will
    come. Some agents write an allow beside ``needs_more``. It is a placeholder and reads as None.

    Agents make a decision with ``allow``, ``block``, ``redirect``, ``challenge`` or ``more``. The other methods add to
    it; each returns a new decision. The encoder raises NotInDialect for parts that the dialect cannot carry (sdk agents
    cannot change bodies).
    """

    verdict: Verdict | None
    request_headers: tuple[HeaderOp, ...] = ()
    response_headers: tuple[HeaderOp, ...] = ()
    request_body_mutation: BodyMutation | None = None
    response_body_mutation: BodyMutation | None = None
    websocket_decision: WebSocketDecision | None = None
    audit: Audit = NO_AUDIT
    routing_metadata: dict[str, str] = {}
    needs_more: bool = False

    def __post_init__(self) -> None:
        # One expression covers nearly every decision. _check looks at the others field by field.
        if not (
            type(self.verdict) in _VERDICTS
            and type(self.request_headers) is tuple
            and type(self.response_headers) is tuple
            and self.request_body_mutation is None
            and self.response_body_mutation is None
            and self.websocket_decision is None
            and type(self.audit) is Audit
            and not self.routing_metadata
            and type(self.needs_more) is bool
        ):
            self._check()
        for change in self.request_headers + self.response_headers:
            if type(change) is not HeaderOp:
                raise wrong_type("a header change of a decision", "a HeaderOp", change)

    def _check(self) -> None:
        if not isinstance(self.verdict, tuple(_VERDICTS)):
            raise wrong_type("a verdict", "an Allow, a Block, a Redirect or a Challenge", self.verdict)
        for changes in (self.request_headers, self.response_headers):
            if type(changes) is not tuple:
                raise wrong_type("the header changes of a decision", "a tuple of HeaderOp", changes)
        for mutation in (self.request_body_mutation, self.response_body_mutation):
            if mutation is not None and not isinstance(mutation, BodyMutation):
                raise wrong_type("a body mutation", "a BodyMutation", mutation)
        if not (self.websocket_decision in _FRAME_DECISIONS or isinstance(self.websocket_decision, WebSocketClose)):
            raise wrong_type("a WebSocket decision", '"allow", "drop" or a WebSocketClose', self.websocket_decision)
        if not isinstance(self.audit, Audit):
            raise wrong_type("the audit of a decision", "an Audit", self.audit)
        if not is_mapping_of_text(self.routing_metadata):
            raise wrong_type("routing metadata", "a dict of texts", self.routing_metadata)
        if why := why_bad_texts("routing metadata", self.routing_metadata):
            raise BadHeader(why)
        if not isinstance(self.needs_more, bool):
            raise wrong_type("needs_more", "True or False", self.needs_more)

    @staticmethod
    def allow() -> "Decision":
        """Let the message pass."""
        return ALLOWED

    @staticmethod
    def block(status: int = 403, body: str | None = None, headers: dict[str, str] | None = None) -> "Decision":
        """Answer the client with this status (100 to 599) instead."""
        return Decision(Block(status, body, headers))

    @staticmethod
    def redirect(url: str, status: int = 302) -> "Decision":
        """Redirect the client to ``url``."""
        return Decision(Redirect(url, status))

    @staticmethod
    def challenge(challenge_type: str, params: dict[str, Any] | None = None) -> "Decision":
        """Send the client a challenge. In core agents ``params`` may hold strings only."""
        return Decision(Challenge(challenge_type, {} if params is None else params))

    @staticmethod
    def more() -> "Decision":
        """Ask for the body, or for its next chunk, before giving a verdict."""
        return Decision(None, needs_more=True)

    def set_request_header(self, name: str, value: str) -> Self:
        """Replace the values of a header on its way to the upstream."""
        return replace(self, request_headers=(*self.request_headers, HeaderOp.set(name, value)))

    def add_request_header(self, name: str, value: str) -> Self:
        """Add a value to a header on its way to the upstream."""
        return replace(self, request_headers=(*self.request_headers, HeaderOp.add(name, value)))

    def remove_request_header(self, name: str) -> Self:
        """Remove a header on its way to the upstream."""
        return replace(self, request_headers=(*self.request_headers, HeaderOp.remove(name)))

    def set_response_header(self, name: str, value: str) -> Self:
        """Replace the values of a header on its way to the client."""
        return replace(self, response_headers=(*self.response_headers, HeaderOp.set(name, value)))

    def add_response_header(self, name: str, value: str) -> Self:
        """Add a value to a header on its way to the client."""
        return replace(self, response_headers=(*self.response_headers, HeaderOp.add(name, value)))

    def remove_response_header(self, name: str) -> Self:
        """Remove a header on its way to the client."""
        return replace(self, response_headers=(*self.response_headers, HeaderOp.remove(name)))

    def replace_request_chunk(self, data: bytes, chunk_index: int | None = None) -> Self:
        """Replace the chunk of the event by these bytes; ``b""`` drops it.

        A hook need not give ``chunk_index``. A caller of the codec must pass the index of the event.
        """
        return replace(self, request_body_mutation=BodyMutation(data, chunk_index))

    def replace_response_chunk(self, data: bytes, chunk_index: int | None = None) -> Self:
        """Replace the chunk of the event by these bytes; see ``replace_request_chunk``."""
        return replace(self, response_body_mutation=BodyMutation(data, chunk_index))

    def with_audit(self, **fields: Any) -> Self:
        """Set fields of the ``Audit``, the reasons for the log. Other fields keep their values."""
        return replace(self, audit=replace(self.audit, **fields))


ALLOWED: Final = Decision(ALLOW)
"""A bare allow. Compare with ``==``: an allow that changes headers is not equal to it."""


def to_json_value(verdict: Verdict | None) -> str | dict[str, Any]:
    """Return the verdict as JSON for programs: ``"allow"``, or an object with one key, the name of the verdict.

    Absent fields are left out. None stands for an answer that needs more and becomes ``{"needs_more": True}``.
    """
    match verdict:
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
