"""Frames between proxies and shards: round trips of any value, refusals, and any bytes at all."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.strategies import header_json, header_names, header_values, words

from dialout import (
    ALLOWED,
    MAX_FRAME_LENGTH,
    AgentEvent,
    Allow,
    Audit,
    Block,
    BodyMutation,
    CancelReason,
    Challenge,
    Configure,
    Decision,
    FrameDecoder,
    GuardrailInspect,
    HeaderOp,
    LocalProtocolError,
    Redirect,
    RequestBodyChunk,
    RequestComplete,
    RequestHeaders,
    RequestMetadata,
    ResponseBodyChunk,
    ResponseHeaders,
    WebSocketClose,
    WebSocketFrame,
)
from dialout.proxy import wire

TEXT = st.text(max_size=20)
TEXTS = st.lists(TEXT, max_size=3)
MAYBE = st.none() | TEXT
U16, U32, U64 = (st.integers(0, 2**bits - 1) for bits in (16, 32, 64))
BYTES = st.binary(max_size=50)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
HEADERS = st.dictionaries(TEXT, TEXTS, max_size=3)
METADATA = st.builds(
    RequestMetadata, correlation_id=TEXT, client_ip=TEXT, client_port=U16, server_name=MAYBE, timestamp=TEXT
)
EVENTS: st.SearchStrategy[AgentEvent] = st.one_of(
    st.builds(RequestHeaders, TEXT, TEXT, HEADERS, st.booleans(), METADATA),
    st.builds(RequestBodyChunk, U32, BYTES, st.booleans(), st.none() | U64, U64),
    st.builds(ResponseHeaders, U16, HEADERS, st.booleans()),
    st.builds(ResponseBodyChunk, U32, BYTES, st.booleans(), st.none() | U64, U64),
    st.builds(RequestComplete, U16, U64, U64, U64, U32, MAYBE),
    st.builds(WebSocketFrame, st.sampled_from(["text", "ping"]), BYTES, st.booleans(), U64, st.booleans(), TEXT, MAYBE),
    st.builds(
        GuardrailInspect,
        st.sampled_from(["prompt_injection", "pii_detection"]),
        TEXT,
        MAYBE,
        TEXTS.map(tuple),
        MAYBE,
        st.dictionaries(TEXT, TEXT, max_size=2),
    ),
    st.builds(Configure, JSON, MAYBE),
)
STATUS = st.integers(100, 599)
CHANGES = st.lists(
    st.builds(HeaderOp.set, header_names, header_values)
    | st.builds(HeaderOp.add, header_names, header_values)
    | st.builds(HeaderOp.remove, header_names),
    max_size=3,
).map(tuple)
CUSTOM = st.dictionaries(TEXT, JSON, max_size=2)
MUTATION = st.none() | st.builds(BodyMutation, st.none() | BYTES, U32)
AUDIT = st.builds(Audit, TEXTS.map(tuple), TEXTS.map(tuple), TEXTS.map(tuple), st.none() | st.floats(0, 1), CUSTOM)
REST: dict[str, st.SearchStrategy[Any]] = {
    "request_headers": CHANGES,
    "response_headers": CHANGES,
    "request_body_mutation": MUTATION,
    "response_body_mutation": MUTATION,
    "websocket_decision": st.sampled_from([None, "allow", "drop"]) | st.builds(WebSocketClose, U16, TEXT),
    "audit": AUDIT,
    "routing_metadata": st.dictionaries(header_values, header_values, max_size=2),
}
RESPONSES = st.one_of(
    st.just(ALLOWED),
    st.builds(Decision, st.just(Allow()), **REST),
    st.builds(
        Decision,
        st.builds(Block, STATUS, MAYBE, st.none() | st.dictionaries(header_names, header_values, max_size=2))
        | st.builds(Redirect, words, STATUS)
        | st.builds(Challenge, words, st.dictionaries(header_values, header_json, max_size=2)),
        needs_more=st.booleans(),
        **REST,
    ),
    st.builds(Decision, st.none(), needs_more=st.just(True), **REST),
)
REQUEST_IDS = st.integers(1, 2**64 - 1)
AGENT_IDS = st.from_regex(r"[A-Za-z0-9._:@-]{1,128}", fullmatch=True)
PLAIN = RequestHeaders("GET", "/", {})


def only_frame(data: bytes) -> tuple[int, bytes]:
    [frame] = FrameDecoder(wire.MAX_ANSWER_LENGTH).feed(data)
    return frame


@given(EVENTS, REQUEST_IDS, AGENT_IDS, U32, st.integers(0, 255))
def test_shard_reads_the_event_that_the_proxy_wrote(
    event: AgentEvent, request_id: int, agent_id: str, timeout_ms: int, flags: int
) -> None:
    frame = wire.encode_request(event, request_id=request_id, agent_id=agent_id, timeout_ms=timeout_ms, flags=flags)

    frame_type, payload = only_frame(frame)
    assert frame_type == event.frame_type
    assert wire.decode_from_proxy(frame_type, payload) == wire.ProxyRequest(
        request_id, agent_id, timeout_ms, flags, event
    )


@given(RESPONSES, REQUEST_IDS, U32, st.integers(0, 255), st.integers(0, 64))
def test_proxy_reads_the_answer_that_the_shard_wrote(
    response: Decision, request_id: int, duration_us: int, flags: int, shard: int
) -> None:
    frame = wire.encode_answer(
        request_id,
        response,
        agent_id="waf",
        connection_id="waf-7",
        shard=shard,
        duration_us=duration_us,
        flags=flags,
    )

    assert wire.decode_from_shard(*only_frame(frame)) == wire.Answer(
        request_id, duration_us, flags, response, "waf", "waf-7", shard
    )


@given(REQUEST_IDS, TEXT, TEXT, st.none() | st.integers(0, 64), U32, st.integers(0, 255))
def test_proxy_reads_the_failure_that_the_shard_wrote(
    request_id: int, code: str, error: str, shard: int | None, duration_us: int, flags: int
) -> None:
    frame = wire.encode_failure(request_id, code, error, shard=shard, duration_us=duration_us, flags=flags)

    assert wire.decode_from_shard(*only_frame(frame)) == wire.Failure(
        request_id, duration_us, flags, code, error, shard
    )


@pytest.mark.parametrize("reason", list(CancelReason))
def test_shard_reads_every_reason_to_cancel(reason: CancelReason) -> None:
    frame = wire.encode_cancel(9, "waf", reason)

    assert wire.decode_from_proxy(*only_frame(frame)) == wire.ProxyCancel(9, "waf", reason)


ANY_TYPE = st.sampled_from([int(kind) for kind in wire.ProxyFrame]) | st.integers(0, 255)
HEADER_LIKE = st.builds(
    lambda request_id, length, rest: request_id.to_bytes(8, "big") + b"\0\0\0\1\0" + bytes([length]) + rest,
    st.integers(0, 3),
    st.integers(0, 5),
    st.binary(max_size=40) | JSON.map(lambda value: b"waf" + repr(value).encode(errors="replace")),
)


@given(ANY_TYPE, st.binary(max_size=60) | HEADER_LIKE)
def test_readers_raise_nothing_but_their_error_for_any_bytes(frame_type: int, payload: bytes) -> None:
    for decode in (wire.decode_from_proxy, wire.decode_from_shard):
        try:
            named = getattr(decode(frame_type, payload), "request_id", None)
        except wire.ProxyWireError as error:
            named = error.request_id
        assert named is None or named == int.from_bytes(payload[:8], "big") > 0


def configure_of_depth(depth: int) -> tuple[int, bytes]:
    text = b'{"config":' + b"[" * depth + b"]" * depth + b"}"
    return 0x17, b"\0\0\0\0\0\0\0\7\0\0\0\0\0\1a" + text


def challenge_of_depth(depth: int) -> tuple[int, bytes]:
    params = b'{"a":' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"
    text = b'{"decision":{"challenge":{"challenge_type":"x","params":%b}},' % params
    text += b'"agent_id":"a","connection_id":"c","shard":0}'
    return 0x20, b"\0\0\0\0\0\0\0\7\0\0\0\0\0" + text


def test_readers_take_any_json_up_to_64_levels_and_no_further() -> None:
    assert wire.decode_from_proxy(*configure_of_depth(64))
    assert wire.decode_from_shard(*challenge_of_depth(64))

    for depth in (65, 1_000, 100_000):
        with pytest.raises(wire.ProxyWireError, match="nest"):
            wire.decode_from_proxy(*configure_of_depth(depth))
        with pytest.raises(wire.ProxyWireError, match="nest"):
            wire.decode_from_shard(*challenge_of_depth(depth))


def test_errors_of_readers_quote_nothing_that_was_sent() -> None:
    header = b"\0\0\0\0\0\0\0\7\0\0\0\0\0\6<evil>"

    with pytest.raises(wire.ProxyWireError) as raised:
        wire.decode_from_proxy(0x10, header + b'{"<evil>":1}')

    assert "evil" not in str(raised.value)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"request_id": 0}, "request id"),
        ({"request_id": 2**64}, "request id"),
        ({"agent_id": ""}, "agent id"),
        ({"agent_id": "a b"}, "agent id"),
        ({"agent_id": "ä"}, "agent id"),
        ({"agent_id": "a" * 129}, "agent id"),
        ({"timeout_ms": -1}, "time limit"),
        ({"timeout_ms": 2**32}, "time limit"),
        ({"event": RequestHeaders("GET", "/\ud800", {})}, "JSON"),
        ({"event": Configure(object())}, "JSON"),
        ({"event": RequestBodyChunk(0, bytes(MAX_FRAME_LENGTH), True)}, "16 MiB"),
    ],
)
def test_proxy_writes_no_event_that_a_shard_would_refuse(wrong: dict[str, Any], words: str) -> None:
    arguments: dict[str, Any] = {"event": PLAIN, "request_id": 1, "agent_id": "waf"} | wrong

    with pytest.raises(LocalProtocolError, match=words):
        wire.encode_request(arguments.pop("event"), **arguments)


def test_shard_writes_no_answer_without_a_decision() -> None:
    with pytest.raises(LocalProtocolError, match="needs more"):
        wire.encode_answer(1, Decision(None), agent_id="a", connection_id="c", shard=0, duration_us=0)


def test_shard_passes_on_the_largest_answer_of_an_agent_and_refuses_what_is_larger_still() -> None:
    def frame(size: int) -> bytes:
        response = Decision(Block(403, "x" * size))
        return wire.encode_answer(1, response, agent_id="a" * 128, connection_id="c" * 200, shard=63, duration_us=2**32)

    # All of an agent's largest frame is the body of its block.
    largest = frame(MAX_FRAME_LENGTH)
    got = wire.decode_from_shard(*only_frame(largest))
    assert isinstance(got, wire.Answer)
    assert got.response == Decision(Block(403, "x" * MAX_FRAME_LENGTH))
    assert got.duration_us == 2**32 - 1
    with pytest.raises(LocalProtocolError, match="above the limit"):
        frame(wire.MAX_ANSWER_LENGTH)
