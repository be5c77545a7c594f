"""Events: what may be sent to whom, and what must not be sent at all."""

import json
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialout import (
    AgentEvent,
    CancelReason,
    Capabilities,
    Configure,
    Dialect,
    Event,
    GuardrailInspect,
    LocalProtocolError,
    NotInDialect,
    RequestBodyChunk,
    RequestComplete,
    RequestHeaders,
    RequestMetadata,
    ResponseBodyChunk,
    ResponseHeaders,
    WebSocketFrame,
    codec_for,
    headers_from_pairs,
)

SDK, CORE, DOCS = map(codec_for, (Dialect.SDK, Dialect.CORE, Dialect.DOCS))
CODECS = (SDK, CORE, DOCS)
HEADERS = RequestHeaders("GET", "/", {"host": ["api.example.com"]})
ONE_OF_EACH: list[AgentEvent] = [
    HEADERS,
    RequestBodyChunk(0, b"hi", True),
    ResponseHeaders(200, {}),
    ResponseBodyChunk(0, b"hi", True),
    RequestComplete(200, 12),
    WebSocketFrame("text", b"hi", True, 0),
    GuardrailInspect("pii_detection", "text"),
    Configure({}),
]
EVERYTHING = Capabilities(
    events=0xFF, streaming_body=True, websocket=True, guardrails=True, config_push=True, cancellation=True
)


def encode(codec: Any, event: AgentEvent, **changes: Any) -> dict[str, Any]:
    call = {"request_id": 7, "correlation_id": "c7", "now": "2026-01-02T03:04:05Z"} | changes
    fields: dict[str, Any] = json.loads(codec.encode_event(event, **call)[5:])
    return fields


def test_headers_from_pairs_keep_order_and_spelling() -> None:
    pairs = [("Cookie", "a=1"), ("Host", "x"), ("Cookie", "b=2"), ("cookie", "c=3")]
    assert headers_from_pairs(pairs) == {"Cookie": ["a=1", "b=2"], "Host": ["x"], "cookie": ["c=3"]}
    assert headers_from_pairs([]) == {}


def test_every_event_has_its_own_flag_and_the_frame_type_that_goes_with_it() -> None:
    assert [type(event) for event in ONE_OF_EACH] == list(get_args(AgentEvent))
    assert [event.flag for event in ONE_OF_EACH] == list(Event)
    assert [event.frame_type for event in ONE_OF_EACH] == list(range(0x10, 0x18))


# --- who gets what -----------------------------------------------------------------------------------


@pytest.mark.parametrize("event", ONE_OF_EACH, ids=lambda event: type(event).__name__)
def test_event_is_receivable_exactly_where_it_can_be_written(event: AgentEvent) -> None:
    for codec in CODECS:
        writable = True
        try:
            codec.encode_event(event, request_id=7, correlation_id="c7", now="")
        except NotInDialect:
            writable = False
        assert codec.can_receive(event, EVERYTHING) is writable
        assert codec.can_receive(type(event), EVERYTHING) is writable
        assert codec.can_receive(event.flag, EVERYTHING) is writable
        assert writable is (codec is CORE or event.frame_type <= 0x13)


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.dialect)
@given(st.integers(0, 0xFF))
def test_agent_receives_only_what_it_declared(codec: Any, events: int) -> None:
    capabilities = Capabilities(events, None, True, True, True, True, True)
    expected = events if codec is CORE else events & 0x0F
    assert codec.receivable_events(capabilities) == expected
    for flag in Event:
        assert codec.can_receive(flag, capabilities) is bool(expected & flag)


@pytest.mark.parametrize(
    ("feature", "gated"),
    [
        ("streaming_body", Event.REQUEST_BODY_CHUNK | Event.RESPONSE_BODY_CHUNK),
        ("websocket", Event.WEB_SOCKET_FRAME),
        ("guardrails", Event.GUARDRAIL_INSPECT),
        ("config_push", Event.CONFIGURE),
    ],
)
def test_feature_of_core_agent_gates_its_events(feature: str, gated: Event) -> None:
    fields = {name: getattr(EVERYTHING, name) for name in EVERYTHING.__struct_fields__}
    without = Capabilities(**(fields | {feature: False}))
    assert CORE.receivable_events(without) == Event(0xFF) & ~gated
    # The flag schema has no such condition: handles_request_body alone asks for chunks.
    assert SDK.receivable_events(without) == DOCS.receivable_events(without) == Event(0x0F)


# --- what is written ---------------------------------------------------------------------------------


def test_defaults_give_every_agent_all_that_it_requires() -> None:
    metadata = {
        "correlation_id": "c7",
        "client_ip": "0.0.0.0",
        "client_port": 0,
        "protocol": "HTTP/1.1",
    }
    assert encode(SDK, HEADERS)["metadata"] == metadata
    required = {"request_id": "c7", "timestamp": "2026-01-02T03:04:05Z"}
    empty = dict.fromkeys(("server_name", "tls_version", "tls_cipher", "route_id", "upstream_id"))
    assert encode(CORE, HEADERS)["metadata"] == metadata | required | empty
    assert encode(DOCS, HEADERS)["metadata"] == metadata | required | empty


def test_ids_of_the_call_win_over_the_metadata() -> None:
    metadata = RequestMetadata(correlation_id="other", request_id="req-1", timestamp="2020-01-01T00:00:00Z")
    event = RequestHeaders("GET", "/", {}, metadata=metadata)
    for codec in CODECS:
        assert encode(codec, event)["metadata"]["correlation_id"] == "c7"
    for codec in (CORE, DOCS):
        written = encode(codec, event)["metadata"]
        assert (written["request_id"], written["timestamp"]) == ("req-1", "2020-01-01T00:00:00Z")


def test_traceparent_is_written_by_every_dialect() -> None:
    event = RequestHeaders("GET", "/", {}, metadata=RequestMetadata(traceparent="00-ab-cd-01"))
    for codec in CODECS:
        assert encode(codec, event)["metadata"]["traceparent"] == "00-ab-cd-01"


@pytest.mark.parametrize("event", ONE_OF_EACH, ids=lambda event: type(event).__name__)
def test_core_keys_are_sorted(event: AgentEvent) -> None:
    fields = encode(CORE, event)
    assert list(fields) == sorted(fields)
    if isinstance(event, RequestHeaders):
        assert list(fields["metadata"]) == sorted(fields["metadata"])


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.dialect)
@pytest.mark.parametrize(
    "event",
    [
        RequestHeaders("GET", "/\ud800", {}),
        RequestHeaders("GET", "/", {"a": ["\udcff"]}),
        RequestHeaders("GET", "/", {}, metadata=RequestMetadata(client_port=2**16)),
        RequestHeaders("GET", "/", {}, metadata=RequestMetadata(client_port=-1)),
        RequestBodyChunk(-1, b"", False),
        RequestBodyChunk(2**32, b"", False),
        RequestBodyChunk(0, bytes(13 * 2**20), False),
        ResponseHeaders(-1, {}),
        ResponseHeaders(2**16, {}),
        ResponseBodyChunk(2**32, b"", True),
    ],
    ids=lambda event: type(event).__name__,
)
def test_event_that_agents_would_choke_on_is_refused(codec: Any, event: AgentEvent) -> None:
    with pytest.raises(LocalProtocolError):
        encode(codec, event)


@pytest.mark.parametrize("codec", [CORE, DOCS], ids=lambda codec: codec.dialect)
@pytest.mark.parametrize(
    "event",
    [
        RequestBodyChunk(0, b"", False, total_size=-1),
        RequestBodyChunk(0, b"", False, bytes_received=2**64),
        ResponseBodyChunk(0, b"", False, total_size=2**64),
        ResponseBodyChunk(0, b"", False, bytes_sent=-1),
    ],
)
def test_size_that_is_none_is_refused(codec: Any, event: AgentEvent) -> None:
    with pytest.raises(LocalProtocolError, match=r"total_size|bytes_received|bytes_sent"):
        encode(codec, event)


@pytest.mark.parametrize(
    "event",
    [
        RequestComplete(-1, 12),
        RequestComplete(200, -1),
        RequestComplete(200, 12, upstream_attempts=2**32),
        WebSocketFrame("text", b"", True, -1),
        Configure(object()),
        Configure({"a": "\ud800"}),
    ],
)
def test_core_event_that_agents_would_choke_on_is_refused(event: AgentEvent) -> None:
    with pytest.raises(LocalProtocolError):
        encode(CORE, event)


@pytest.mark.parametrize("request_id", [0, -1, 2**64])
def test_number_that_cannot_come_back_is_refused(request_id: int) -> None:
    for codec in (SDK, DOCS):
        with pytest.raises(LocalProtocolError, match="request_id"):
            encode(codec, HEADERS, request_id=request_id)
        with pytest.raises(LocalProtocolError, match="request_id"):
            codec.encode_cancel(request_id=request_id, correlation_id="c7", reason=CancelReason.TIMEOUT, timestamp_ms=0)
    assert encode(CORE, HEADERS, request_id=request_id)["correlation_id"] == "c7"


def test_empty_text_cannot_come_back_so_core_refuses_it() -> None:
    with pytest.raises(LocalProtocolError, match="correlation_id"):
        encode(CORE, HEADERS, correlation_id="")
    with pytest.raises(LocalProtocolError, match="correlation_id"):
        CORE.encode_cancel(request_id=7, correlation_id="", reason=CancelReason.TIMEOUT, timestamp_ms=0)
    assert encode(SDK, HEADERS, correlation_id="")["request_id"] == 7


def test_what_a_dialect_has_no_frame_for_is_none() -> None:
    assert CORE.encode_cancel_all(CancelReason.MANUAL) is None
    for codec in (CORE, DOCS):
        assert codec.encode_health_request() is None
        assert codec.encode_metrics_request() is None


WRONG: list[Callable[[], object]] = [
    lambda: RequestHeaders(b"GET", "/", {}),  # type: ignore[arg-type]
    lambda: RequestHeaders("GET", b"/", {}),  # type: ignore[arg-type]
    lambda: RequestHeaders("GET", None, {}),  # type: ignore[arg-type]
    lambda: RequestHeaders("GET", "/", [("host", "a")]),  # type: ignore[arg-type]
    lambda: RequestHeaders("GET", "/", None),  # type: ignore[arg-type]
    lambda: RequestBodyChunk(0, "text", True),  # type: ignore[arg-type]
    lambda: RequestBodyChunk("0", b"", True),  # type: ignore[arg-type]
    lambda: RequestBodyChunk(0, b"", "yes"),  # type: ignore[arg-type]
    lambda: ResponseHeaders("200", {}),  # type: ignore[arg-type]
    lambda: ResponseHeaders(200, "a: b"),  # type: ignore[arg-type]
    lambda: ResponseBodyChunk(0, None, True),  # type: ignore[arg-type]
    lambda: WebSocketFrame("text", "hi", True, 0),  # type: ignore[arg-type]
    lambda: GuardrailInspect("prompt_injection", b"hi"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize("make", WRONG)
def test_event_with_a_field_of_a_wrong_type_is_refused_where_it_is_made(make: Callable[[], object]) -> None:
    with pytest.raises(TypeError, match=r"is a |is bytes|is True"):
        make()


def test_event_takes_what_is_as_good_as_the_right_type() -> None:
    class Text(str):
        __slots__ = ()

    assert RequestHeaders(Text("GET"), "/", OrderedDict()).method == "GET"
    assert RequestBodyChunk(0, bytearray(b"hi"), True).data == b"hi"  # type: ignore[arg-type]
