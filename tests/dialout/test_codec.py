"""Round trips: whatever a dialect can say comes back as it was, and no bytes at all raise anything."""

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.strategies import header_json, header_names, header_values, words

from dialout import (
    ALLOW,
    AgentEvent,
    Answer,
    Audit,
    Block,
    BodyMutation,
    Cancel,
    CancelAll,
    CancelReason,
    Challenge,
    Codec,
    ConfigUpdate,
    Configure,
    Decision,
    Dialect,
    FlowAction,
    FlowControl,
    FrameDecoder,
    GuardrailInspect,
    HeaderOp,
    Health,
    HealthState,
    Histogram,
    Ignored,
    Inbound,
    Metrics,
    MutationAnswer,
    NotUnderstood,
    Ping,
    Pong,
    Redirect,
    RequestBodyChunk,
    RequestComplete,
    RequestHeaders,
    RequestMetadata,
    ResponseBodyChunk,
    ResponseHeaders,
    Sample,
    Unreadable,
    UnreadableEvent,
    WebSocketClose,
    WebSocketDecision,
    WebSocketFrame,
    codec_for,
    pong_for,
)
from dialout.wire_sdk import forget_frame

NOW = "2026-01-02T03:04:05Z"
texts = st.text(st.characters(codec="utf-8"), max_size=12)
ids = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
u16 = st.integers(0, 2**16 - 1)
u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
request_ids = st.integers(1, 2**64 - 1)
maybe = st.none() | texts
blobs = st.binary(max_size=40)
headers = st.dictionaries(texts, st.lists(texts, max_size=3), max_size=4)
floats = st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | floats | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=4,
)
dialects = st.sampled_from(Dialect)


# --- what each dialect can say -----------------------------------------------------------------------


def first_events(dialect: Dialect, correlation_id: str) -> st.SearchStrategy[AgentEvent]:
    """The four events of every dialect, without the fields that the dialect leaves out."""
    sdk, core = dialect is Dialect.SDK, dialect is Dialect.CORE
    metadata = st.builds(
        RequestMetadata,
        # The codec writes the id of the call, and the sdk has no key for three of the fields.
        correlation_id=st.just(correlation_id),
        client_ip=texts,
        client_port=u16,
        protocol=texts,
        server_name=maybe,
        tls_version=maybe,
        tls_cipher=st.none() if sdk else maybe,
        route_id=maybe,
        upstream_id=maybe,
        traceparent=maybe,
        timestamp=st.just("") if sdk else ids,
        request_id=st.just("") if sdk else ids,
    )
    has_body = st.sampled_from([None, True, False]) if core else st.booleans()
    sizes = (st.none(), st.just(0)) if sdk else (st.none() | u64, u64)
    return st.one_of(
        st.builds(RequestHeaders, texts, texts, headers, has_body, metadata),
        st.builds(RequestBodyChunk, u32, blobs, st.booleans(), *sizes),
        st.builds(ResponseHeaders, u16, headers, has_body),
        st.builds(ResponseBodyChunk, u32, blobs, st.booleans(), *sizes),
    )


core_events = st.one_of(
    st.builds(RequestComplete, u16, u64, u64, u64, u32, maybe),
    st.builds(
        WebSocketFrame,
        st.sampled_from(["text", "binary", "ping", "pong", "close", "continuation"]),
        blobs,
        st.booleans(),
        u64,
        st.booleans(),
        texts,
        maybe,
    ),
    st.builds(
        GuardrailInspect,
        st.sampled_from(["prompt_injection", "pii_detection"]),
        texts,
        maybe,
        st.lists(texts, max_size=3).map(tuple),
        maybe,
        st.dictionaries(texts, texts, max_size=3),
    ),
    st.builds(Configure, json_values, maybe),
)


@st.composite
def events(draw: st.DrawFn) -> tuple[Dialect, str, AgentEvent]:
    dialect, correlation_id = draw(dialects), draw(ids)
    strategy = first_events(dialect, correlation_id)
    return dialect, correlation_id, draw(strategy | core_events if dialect is Dialect.CORE else strategy)


statuses = st.integers(100, 599)
header_ops = st.lists(
    st.builds(HeaderOp.set, header_names, header_values)
    | st.builds(HeaderOp.add, header_names, header_values)
    | st.builds(HeaderOp.remove, header_names),
    max_size=3,
).map(tuple)
tags = st.lists(texts, max_size=3).map(tuple)
websocket_decisions: st.SearchStrategy[WebSocketDecision | None] = st.one_of(
    st.none(), st.just("allow"), st.just("drop"), st.builds(WebSocketClose, u16, texts)
)
mutations = st.none() | st.builds(BodyMutation, st.none() | blobs, u32)


@st.composite
def responses(draw: st.DrawFn) -> tuple[Dialect, Decision]:
    dialect = draw(dialects)
    params = st.dictionaries(header_values, header_values if dialect is Dialect.CORE else header_json, max_size=3)
    final = st.one_of(
        st.builds(Block, statuses, maybe, st.none() | st.dictionaries(header_names, header_values, max_size=3)),
        st.builds(Redirect, words, statuses),
        st.builds(Challenge, words, params),
    )
    decision = draw(st.none() | st.just(ALLOW) | final)
    sdk = dialect is Dialect.SDK
    needs_more = decision is None or (decision != ALLOW and not sdk and draw(st.booleans()))
    custom = st.dictionaries(texts.filter(lambda name: name != "correlation_id"), json_values, max_size=3)
    return dialect, Decision(
        decision,
        draw(header_ops),
        draw(header_ops),
        None if sdk else draw(mutations),
        None if sdk else draw(mutations),
        draw(websocket_decisions) if dialect is Dialect.CORE else None,
        draw(st.builds(Audit, tags, tags, tags, st.none() | floats, custom)),
        {} if sdk else draw(st.dictionaries(header_values, header_values, max_size=3)),
        needs_more,
    )


def payload_of(frame: bytes) -> tuple[int, bytes]:
    [only] = FrameDecoder().feed(frame)
    return only


# --- round trips -------------------------------------------------------------------------------------


@given(events(), request_ids)
def test_agent_reads_every_event_as_proxy_wrote_it(case: tuple[Dialect, str, AgentEvent], request_id: int) -> None:
    dialect, correlation_id, event = case
    codec = codec_for(dialect)
    frame = codec.encode_event(event, request_id=request_id, correlation_id=correlation_id, now=NOW)
    expected = {
        Dialect.SDK: (request_id, None, event),
        Dialect.CORE: (None, correlation_id, event),
        Dialect.DOCS: (request_id, correlation_id, event),
    }
    assert codec.decode_event(*payload_of(frame)) == expected[dialect]


@given(responses(), request_ids, ids)
def test_proxy_reads_every_answer_as_agent_wrote_it(
    case: tuple[Dialect, Decision], request_id: int, correlation_id: str
) -> None:
    dialect, response = case
    codec = codec_for(dialect)
    frame = codec.encode_answer(response, request_id=request_id, correlation_id=correlation_id)
    expected = {
        Dialect.SDK: Answer(request_id, None, response),
        Dialect.CORE: Answer(None, correlation_id, response),
        Dialect.DOCS: Answer(request_id, correlation_id, response),
    }
    assert codec.decode(*payload_of(frame)) == expected[dialect]


@given(dialects, request_ids, ids, st.sampled_from(CancelReason), u64)
def test_agent_reads_every_cancel(
    dialect: Dialect, request_id: int, correlation_id: str, reason: CancelReason, timestamp_ms: int
) -> None:
    codec = codec_for(dialect)
    frame = codec.encode_cancel(
        request_id=request_id, correlation_id=correlation_id, reason=reason, timestamp_ms=timestamp_ms
    )
    expected = (None, correlation_id) if dialect is Dialect.CORE else (request_id, None)
    assert codec.decode_event(*payload_of(frame)) == (*expected, Cancel(reason))


@given(dialects, st.integers(0, 2**53), st.integers(0, 2**53))
def test_pong_brings_mark_of_its_ping_back(dialect: Dialect, sequence: int, timestamp_ms: int) -> None:
    codec = codec_for(dialect)
    ping = payload_of(codec.encode_ping(sequence=sequence, timestamp_ms=timestamp_ms))
    assert codec.decode_event(*ping) == (None, None, Ping(ping[1]))
    answer = pong_for(dialect, *ping)
    assert answer is not None
    mark = codec.ping_mark(sequence=sequence, timestamp_ms=timestamp_ms)
    assert codec.decode(*payload_of(answer)) == Pong(mark, ping[1])


def test_ping_marks_differ_when_what_the_dialect_writes_differs() -> None:
    for dialect in Dialect:
        codec = codec_for(dialect)
        marks = {codec.ping_mark(sequence=n, timestamp_ms=1_000 + n) for n in range(5)}
        assert len(marks) == 5


@pytest.mark.parametrize("dialect", [Dialect.SDK, Dialect.CORE])
@given(st.sampled_from(HealthState), maybe, st.integers(0, 2**40))
def test_proxy_reads_every_health_report(
    dialect: Dialect, state: HealthState, message: str | None, timestamp_ms: int
) -> None:
    if state is HealthState.DRAINING and dialect is Dialect.SDK:
        return
    health = Health(state, message, 5_000 if state is HealthState.DRAINING else None)
    frame = codec_for(dialect).encode_health(health, agent_id="a", timestamp_ms=timestamp_ms)
    assert codec_for(dialect).decode(*payload_of(frame)) == health


@given(
    st.lists(st.builds(Sample, texts, u32, st.dictionaries(texts, texts, max_size=2)), max_size=3).map(tuple),
    st.lists(st.builds(Sample, texts, floats, st.dictionaries(texts, texts, max_size=2)), max_size=3).map(tuple),
    st.lists(
        st.builds(
            Histogram,
            texts,
            floats,
            u64,
            st.lists(st.tuples(floats | st.just(math.inf), u64), max_size=3).map(tuple),
            st.dictionaries(texts, texts, max_size=2),
        ),
        max_size=2,
    ).map(tuple),
)
def test_proxy_reads_every_core_metrics_report(
    counters: tuple[Sample, ...], gauges: tuple[Sample, ...], histograms: tuple[Histogram, ...]
) -> None:
    metrics, codec = Metrics(counters, gauges, histograms), codec_for(Dialect.CORE)
    frame = codec.encode_metrics(metrics, agent_id="a", timestamp_ms=1, interval_ms=10_000)
    assert codec.decode(*payload_of(frame)) == metrics


@given(st.sampled_from(FlowAction), maybe, u64)
def test_proxy_reads_every_flow_control(action: FlowAction, correlation_id: str | None, available: int) -> None:
    flow = FlowControl(action, correlation_id, available if action is FlowAction.UPDATE_CAPACITY else None)
    codec = codec_for(Dialect.CORE)
    assert codec.decode(*payload_of(codec.encode_flow_control(flow, timestamp_ms=1))) == flow


# --- any bytes ---------------------------------------------------------------------------------------

KINDS: tuple[type, ...] = (
    Answer,
    MutationAnswer,
    NotUnderstood,
    Unreadable,
    Ping,
    Pong,
    Health,
    Metrics,
    ConfigUpdate,
    FlowControl,
    Ignored,
)
INTERESTING = sorted(
    {*range(0x10, 0x18), 0x20, 0x21, *range(0x30, 0x34), 0x40, 0x41, 0x42, *range(0xE0, 0xE4), 0xF0, 0xF1}
)
frame_types = st.sampled_from(INTERESTING) | st.integers(0, 255)
KEYS = """
request_id correlation_id decision allow block redirect challenge needs_more status body headers url audit custom tags
confidence request_headers operation name value set remove request_body_mutation data chunk_index websocket_decision
close code reason state message action type update_type counters gauges timestamp sequence metadata method uri
challenge_type params is_last config opcode
"""
known_keys = st.sampled_from(KEYS.split())
known_values = st.sampled_from(
    ["allow", "set", "healthy", "pause", "request_reload", "aGk=", "text", 0, 1, 7, 200, 599]
)
# JSON of the right vocabulary in the wrong order gets much further into the readers than any bytes do.
lookalikes = st.recursive(
    known_values | st.none() | st.booleans() | texts | floats,
    lambda inner: st.dictionaries(known_keys, inner, max_size=5) | st.lists(inner, max_size=3),
    max_leaves=12,
)
objects = st.dictionaries(known_keys, lookalikes, max_size=6).map(msgspec.json.encode)
payloads = st.binary(max_size=60) | lookalikes.map(msgspec.json.encode) | objects


def check_any(codec: Codec, frame_type: int, payload: bytes) -> Inbound:
    inbound = codec.decode(frame_type, payload)
    assert isinstance(inbound, KINDS)
    assert frame_type in {0x20, 0x21} or not isinstance(inbound, Answer | MutationAnswer | NotUnderstood | Unreadable)
    try:
        received = codec.decode_event(frame_type, payload)
    except UnreadableEvent:
        pass
    else:
        request_id, correlation_id, event = received
        addressed = frame_type in {*range(0x10, 0x18)} or isinstance(event, Cancel)
        assert (request_id, correlation_id) != (None, None) or not addressed or isinstance(event, Ignored)
    return inbound


@given(dialects, frame_types, payloads)
def test_no_payload_raises_anything(dialect: Dialect, frame_type: int, payload: bytes) -> None:
    check_any(codec_for(dialect), frame_type, payload)


@given(dialects, frame_types, objects, st.data())
def test_no_cut_or_broken_payload_raises_anything(
    dialect: Dialect, frame_type: int, payload: bytes, data: st.DataObject
) -> None:
    cut = data.draw(st.integers(0, len(payload)))
    broken = payload[:cut] + data.draw(st.binary(max_size=3)) + payload[cut + 1 :]
    check_any(codec_for(dialect), frame_type, payload[:cut])
    check_any(codec_for(dialect), frame_type, broken)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"null",
        b"[]",
        b"\x00",
        b"\xff" * 9,
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b'{"audit":{"custom":' + b"[" * 100_000 + b"]" * 100_000 + b"}}",
        b'{"request_id":' + b"9" * 10_000 + b',"decision":"allow"}',
        b'{"request_id":1e999,"state":1e999,"sequence":1e999,"timestamp":-1}',
        b'{"request_id":7,"decision":"\\ud800"}',
        b'{"request_id":7,"decision":"\xff"}',
    ],
    ids=lambda payload: repr(payload[:12]),
)
def test_hostile_payload_raises_nothing_and_is_no_answer(payload: bytes) -> None:
    for codec in map(codec_for, Dialect):
        for frame_type in INTERESTING:
            assert not isinstance(check_any(codec, frame_type, payload), Answer)


@given(dialects, st.integers(0, 255).filter(lambda frame_type: frame_type not in INTERESTING), payloads)
def test_unknown_type_is_ignored_by_both_ends(dialect: Dialect, frame_type: int, payload: bytes) -> None:
    codec = codec_for(dialect)
    assert codec.decode(frame_type, payload) == Ignored(frame_type)
    assert codec.decode_event(frame_type, payload) == (None, None, Ignored(frame_type))


def test_cancel_for_all_holds_even_when_payload_is_unreadable() -> None:
    for payload in (b"", b"{", b'{"reason":5}', b"[]"):
        received: Any = codec_for(Dialect.SDK).decode_event(0x31, payload)
        assert received == (None, None, CancelAll(CancelReason.MANUAL if b"5" in payload else None))


def test_codec_is_one_object_for_each_dialect() -> None:
    assert [codec_for(dialect).dialect for dialect in Dialect] == list(Dialect)
    assert codec_for(Dialect.SDK) is codec_for(Dialect("sdk"))


@given(st.integers(1, 2**53))
def test_forget_frame_is_the_cancel_of_an_sdk_agent(request_id: int) -> None:
    cancel = codec_for(Dialect.SDK).encode_cancel(
        request_id=request_id, correlation_id="", reason=CancelReason.MANUAL, timestamp_ms=0
    )

    assert forget_frame(request_id) == cancel
