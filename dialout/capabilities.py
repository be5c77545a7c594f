"""The capabilities of an agent: one form for the two schemas that agents send.

SDK and docs agents send flags (``handles_request_headers`` …). Core agents send a list of event numbers with
``features`` and ``limits``. Unknown keys are ignored. A known key with a value of the wrong type is an error. null
counts as absent, as in the agents' own parsers.
"""

from enum import IntFlag
from typing import Annotated, Final

from msgspec import Meta, Raw, Struct
from msgspec.json import Decoder

__all__ = ["Capabilities", "Event", "read_core", "read_flags", "write_core", "write_flags"]

_U64_SAFE: Final = 2**63 - 1

MAX_EVENTS: Final = 256
"""The most entries in a list of supported events. There are 17 numbers. Each entry costs a look-up."""

_MAX_ID_TEXT: Final = 1024
"""The most bytes of JSON text that an agent id can take. A longer text is no agent id and is not decoded."""


class Event(IntFlag):
    """Bit mask of the events that an agent wants. Event number n of the core dialect is bit n - 1."""

    REQUEST_HEADERS = 1 << 0
    REQUEST_BODY_CHUNK = 1 << 1
    RESPONSE_HEADERS = 1 << 2
    RESPONSE_BODY_CHUNK = 1 << 3
    REQUEST_COMPLETE = 1 << 4
    WEB_SOCKET_FRAME = 1 << 5
    GUARDRAIL_INSPECT = 1 << 6
    CONFIGURE = 1 << 7


_REQUEST_HEADERS: Final = int(Event.REQUEST_HEADERS)
_REQUEST_BODY: Final = int(Event.REQUEST_BODY_CHUNK)
_RESPONSE_HEADERS: Final = int(Event.RESPONSE_HEADERS)
_RESPONSE_BODY: Final = int(Event.RESPONSE_BODY_CHUNK)

# 1-8 are the event numbers. The crate reads Configure as 0 and writes it as 8. 0x10-0x17 are frame types. The crate's
# own integration tests list frame types instead of event numbers, and so do agents copied from them.
_EVENT_BY_NUMBER: Final = (
    {0: int(Event.CONFIGURE)} | {n: 1 << (n - 1) for n in range(1, 9)} | {0x10 + n: 1 << n for n in range(8)}
)


class Capabilities(Struct, frozen=True, array_like=True, gc=False):
    """The capabilities that one agent declared, normalised. Absent numbers are 0, except for ``max_concurrent``.

    ``events`` is an ``Event`` mask of the declared events alone. The core dialect's ``streaming_body``,
    ``websocket``, ``guardrails`` and ``config_push`` are further conditions for the frames that they name; the mask
    does not include them. ``max_concurrent`` is the number of requests that may be in flight on one connection. None
    means that the agent set no limit. A 0 on the wire means the same: an agent that takes no requests has no reason to
    register. ``metrics_export`` and ``health_reporting`` announce unsolicited reports. Only core agents send them; the
    proxy asks SDK agents for theirs.
    """

    events: int = _REQUEST_HEADERS
    max_concurrent: int | None = None
    cancellation: bool = True
    streaming_body: bool = False
    websocket: bool = False
    guardrails: bool = False
    config_push: bool = False
    metrics_export: bool = False
    flow_control: bool = False
    health_reporting: bool = False
    max_body_size: int = 0
    preferred_chunk_size: int = 0


_U32 = Annotated[int, Meta(ge=0, le=2**32 - 1)]
_U64 = Annotated[int, Meta(ge=0)]
_Events = Annotated[list[int], Meta(max_length=MAX_EVENTS)]


class _Flags(Struct, gc=False):
    handles_request_headers: bool | None = None
    handles_request_body: bool | None = None
    handles_response_headers: bool | None = None
    handles_response_body: bool | None = None
    supports_streaming: bool | None = None
    supports_cancellation: bool | None = None
    max_concurrent_requests: _U32 | None = None


class _Features(Struct, gc=False):
    streaming_body: bool | None = None
    websocket: bool | None = None
    guardrails: bool | None = None
    config_push: bool | None = None
    metrics_export: bool | None = None
    concurrent_requests: _U32 | None = None
    cancellation: bool | None = None
    flow_control: bool | None = None
    health_reporting: bool | None = None


class _Limits(Struct, gc=False):
    max_body_size: _U64 | None = None
    max_concurrency: _U32 | None = None
    preferred_chunk_size: _U64 | None = None


class _Core(Struct):
    agent_id: Raw = Raw(b"null")
    supported_events: _Events | None = None
    features: _Features | None = None
    limits: _Limits | None = None


_decode_flags = Decoder(_Flags | None).decode
_decode_core = Decoder(_Core | None).decode
_decode_text = Decoder(str).decode
_NO_LIMITS: Final = _Limits()


def read_flags(raw: bytes | Raw) -> tuple[Capabilities, bool]:
    """Read the flag schema. The second value says whether any ``handles_*`` flag was present.

    Without such a flag (null, an empty object) the agent gets request headers only, which is the SDK's default.
    Raises msgspec.ValidationError for a wrong type; its message names the key and quotes no value.
    """
    flags = _decode_flags(raw)
    if flags is None:
        return Capabilities(), False
    headers = flags.handles_request_headers
    body = flags.handles_request_body
    response_headers = flags.handles_response_headers
    response_body = flags.handles_response_body
    named = not (headers is None and body is None and response_headers is None and response_body is None)
    events = _REQUEST_HEADERS if headers or not named else 0
    if body:
        events |= _REQUEST_BODY
    if response_headers:
        events |= _RESPONSE_HEADERS
    if response_body:
        events |= _RESPONSE_BODY
    return Capabilities(
        events,
        flags.max_concurrent_requests or None,
        flags.supports_cancellation is not False,
        flags.supports_streaming is True,
    ), named


def read_core(raw: bytes | Raw) -> tuple[Capabilities, str | None] | None:
    """Read the core schema. The second value is the ``agent_id`` inside it.

    The id is None when absent, and empty when it is not a string.

    Returns None for an object that is not of this schema: it has neither ``supported_events`` nor ``features``. The
    crate's own reader requires every key of features and limits. Here an absent key is false or 0. Without any
    ``features`` the agent is assumed to support cancellation and the features that its events need. Without a list of
    events the agent gets request headers only. The lower of the two concurrency limits counts. Raises
    msgspec.ValidationError as ``read_flags`` does.
    """
    core = _decode_core(raw)
    if core is None or (core.supported_events is None and core.features is None):
        return None
    if core.supported_events is None:
        events = _REQUEST_HEADERS
    else:
        events = 0
        for number in core.supported_events:
            events |= _EVENT_BY_NUMBER.get(number, 0)
    features = core.features or _implied_features(events)
    limits = core.limits or _NO_LIMITS
    concurrency = [n for n in (features.concurrent_requests, limits.max_concurrency) if n]
    return Capabilities(
        events,
        min(concurrency) if concurrency else None,
        bool(features.cancellation),
        bool(features.streaming_body),
        bool(features.websocket),
        bool(features.guardrails),
        bool(features.config_push),
        bool(features.metrics_export),
        bool(features.flow_control),
        bool(features.health_reporting),
        min(limits.max_body_size or 0, _U64_SAFE),
        min(limits.preferred_chunk_size or 0, _U64_SAFE),
    ), _inner_id(core.agent_id)


def _inner_id(raw: Raw) -> str | None:
    """The agent id inside capabilities: None when absent, empty when it is not a string."""
    text = bytes(raw)
    if text == b"null":
        return None
    return _decode_text(text) if text[0] == 0x22 and len(text) <= _MAX_ID_TEXT else ""


def _implied_features(events: int) -> _Features:
    return _Features(
        streaming_body=bool(events & (_REQUEST_BODY | _RESPONSE_BODY)),
        websocket=bool(events & Event.WEB_SOCKET_FRAME),
        guardrails=bool(events & Event.GUARDRAIL_INSPECT),
        config_push=bool(events & Event.CONFIGURE),
        cancellation=True,
    )


def write_flags(capabilities: Capabilities) -> dict[str, object]:
    """Build the flag schema, with keys in the SDK's order. It has no keys for events 5 to 8 and leaves them out."""
    events = capabilities.events
    flags: dict[str, object] = {
        "handles_request_headers": bool(events & _REQUEST_HEADERS),
        "handles_request_body": bool(events & _REQUEST_BODY),
        "handles_response_headers": bool(events & _RESPONSE_HEADERS),
        "handles_response_body": bool(events & _RESPONSE_BODY),
        "supports_streaming": capabilities.streaming_body,
        "supports_cancellation": capabilities.cancellation,
    }
    if capabilities.max_concurrent is not None:
        flags["max_concurrent_requests"] = capabilities.max_concurrent
    return flags


def write_core(capabilities: Capabilities, agent_id: str, name: str, version: str) -> dict[str, object]:
    """Build the core schema, with every key, in the crate's order. No limit is written as 0, Configure as 8."""
    return {
        "agent_id": agent_id,
        "name": name,
        "version": version,
        "supported_events": [n for n in range(1, 9) if capabilities.events & 1 << (n - 1)],
        "features": {
            "streaming_body": capabilities.streaming_body,
            "websocket": capabilities.websocket,
            "guardrails": capabilities.guardrails,
            "config_push": capabilities.config_push,
            "metrics_export": capabilities.metrics_export,
            "concurrent_requests": capabilities.max_concurrent or 0,
            "cancellation": capabilities.cancellation,
            "flow_control": capabilities.flow_control,
            "health_reporting": capabilities.health_reporting,
        },
        "limits": {
            "max_body_size": capabilities.max_body_size,
            "max_concurrency": capabilities.max_concurrent or 0,
            "preferred_chunk_size": capabilities.preferred_chunk_size,
        },
    }
