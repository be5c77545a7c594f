"""What an agent reads: lenient where proxies differ, never without an id to answer with."""

from typing import Any

import pytest

from dialout import (
    Cancel,
    CancelReason,
    Dialect,
    HealthRequest,
    Ignored,
    MetricsRequest,
    Ping,
    RequestBodyChunk,
    RequestHeaders,
    RequestMetadata,
    ResponseHeaders,
    UnreadableEvent,
    codec_for,
)

SDK, CORE, DOCS = map(codec_for, (Dialect.SDK, Dialect.CORE, Dialect.DOCS))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (b"", RequestHeaders("GET", "/", {}, None)),
        (b',"headers":null,"has_body":null,"metadata":null', RequestHeaders("GET", "/", {}, None)),
        (b',"headers":{"a":["1","2"]}', RequestHeaders("GET", "/", {"a": ["1", "2"]}, None)),
        # the published documents' form
        (
            b',"headers":[["a","1"],["b","2"],["a","3"]]',
            RequestHeaders("GET", "/", {"a": ["1", "3"], "b": ["2"]}, None),
        ),
        (b',"has_body":false', RequestHeaders("GET", "/", {}, False)),
        (b',"headers":{"Content-Length":["5"]}', RequestHeaders("GET", "/", {"Content-Length": ["5"]}, True)),
        (
            b',"has_body":false,"headers":{"content-length":["5"]}',
            RequestHeaders("GET", "/", {"content-length": ["5"]}, False),
        ),
        (
            b',"has_body":true,"metadata":{"client_ip":"::1","of_tomorrow":1}',
            RequestHeaders("GET", "/", {}, True, RequestMetadata(client_ip="::1")),
        ),
    ],
)
def test_request_headers_are_read_in_each_of_their_forms(fields: bytes, expected: RequestHeaders) -> None:
    payload = b'{"request_id":7,"correlation_id":"c7","method":"GET","uri":"/"%b}' % fields
    assert SDK.decode_event(0x10, payload) == (7, None, expected)
    assert CORE.decode_event(0x10, payload) == (None, "c7", expected)
    assert DOCS.decode_event(0x10, payload) == (7, "c7", expected)


@pytest.mark.parametrize("status", [b'"status":200', b'"status_code":200', b'"status":200,"status_code":500'])
def test_response_status_is_read_under_both_names(status: bytes) -> None:
    received = SDK.decode_event(0x12, b'{"request_id":7,%b}' % status)
    assert received == (7, None, ResponseHeaders(200, {}, None))


@pytest.mark.parametrize(
    ("frame_type", "payload"),
    [
        (0x10, b'{"request_id":7,"correlation_id":"c7","method":"GET"}'),
        (0x10, b'{"request_id":7,"correlation_id":"c7","method":"GET","uri":"/","headers":["a"]}'),
        (
            0x10,
            b'{"request_id":7,"correlation_id":"c7","method":"GET","uri":"/","metadata":{"client_port":"1"}}',
        ),
        (0x11, b'{"request_id":7,"correlation_id":"c7","chunk_index":0,"data":"aGk","is_last":true}'),
        (0x11, b'{"request_id":7,"correlation_id":"c7","chunk_index":-1,"data":"","is_last":true}'),
        (0x12, b'{"request_id":7,"correlation_id":"c7"}'),
        (0x12, b'{"request_id":7,"correlation_id":"c7","status":65536}'),
        (0x13, b'{"request_id":7,"correlation_id":"c7"}'),
    ],
)
def test_unreadable_event_says_which_request_it_was_about(frame_type: int, payload: bytes) -> None:
    for codec, request_id, correlation_id in ((SDK, 7, None), (CORE, None, "c7"), (DOCS, 7, "c7")):
        with pytest.raises(UnreadableEvent, match=f"0x{frame_type:02x}") as unreadable:
            codec.decode_event(frame_type, payload)
        assert (unreadable.value.request_id, unreadable.value.correlation_id) == (request_id, correlation_id)


@pytest.mark.parametrize(
    "ids", [b"{}", b'{"request_id":0}', b'{"request_id":"7"}', b'{"request_id":18446744073709551616}', b"", b"[]", b"{"]
)
@pytest.mark.parametrize("frame_type", [0x10, 0x11, 0x30])
def test_frame_without_a_number_cannot_be_answered(frame_type: int, ids: bytes) -> None:
    for codec in (SDK, DOCS):
        with pytest.raises(UnreadableEvent) as unreadable:
            codec.decode_event(frame_type, ids)
        assert unreadable.value.request_id is None


@pytest.mark.parametrize("ids", [b"{}", b'{"correlation_id":""}', b'{"correlation_id":7}', b'{"request_id":7}'])
@pytest.mark.parametrize("frame_type", [0x10, 0x17, 0x40])
def test_frame_without_a_text_cannot_be_answered(frame_type: int, ids: bytes) -> None:
    with pytest.raises(UnreadableEvent) as unreadable:
        CORE.decode_event(frame_type, ids)
    assert unreadable.value.correlation_id is None


@pytest.mark.parametrize(
    "payload",
    [
        b'{"correlation_id":"c7","opcode":"SECRET","data":"","client_to_server":true,"frame_index":0}',
        b'{"correlation_id":"c7","opcode":SECRET}',
        b'{"correlation_id":"c7","SECRET":1}',
    ],
)
def test_message_repeats_nothing_that_the_proxy_wrote(payload: bytes) -> None:
    with pytest.raises(UnreadableEvent) as unreadable:
        CORE.decode_event(0x15, payload)
    assert "SECRET" not in str(unreadable.value)
    assert unreadable.value.__cause__ is None


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        (b'"timeout"', CancelReason.TIMEOUT),
        (b'"of_tomorrow"', None),
        (b"3", CancelReason.UPSTREAM_ERROR),
        (b"6", None),
        (b"-1", None),
        (b"true", None),
        (b"null", None),
        (b'{"type":"timeout"}', None),
    ],
)
def test_cancel_holds_whatever_its_reason(reason: bytes, expected: CancelReason | None) -> None:
    payload = b'{"request_id":7,"correlation_id":"c7","reason":%b}' % reason
    assert SDK.decode_event(0x30, payload) == (7, None, Cancel(expected))
    assert CORE.decode_event(0x40, payload) == (None, "c7", Cancel(expected))
    assert DOCS.decode_event(0x30, payload) == (7, "c7", Cancel(expected))


def test_same_type_means_different_things_to_different_agents() -> None:
    cases: list[tuple[Any, int, Any]] = [
        (SDK, 0xE0, HealthRequest()),
        (SDK, 0xE2, MetricsRequest()),
        (DOCS, 0xE0, Ignored(0xE0)),
        (DOCS, 0xE2, Ignored(0xE2)),
        (CORE, 0xE0, Ignored(0xE0)),
        (CORE, 0x30, Ignored(0x30)),
        (CORE, 0x31, Ignored(0x31)),
        (SDK, 0x40, Ignored(0x40)),
        (SDK, 0x14, Ignored(0x14)),
        (DOCS, 0x17, Ignored(0x17)),
        (SDK, 0x41, Ignored(0x41)),
        (CORE, 0xF0, Ignored(0xF0)),
        (SDK, 0xF0, Ping(b"x")),
        (CORE, 0x41, Ping(b"x")),
    ]
    for codec, frame_type, expected in cases:
        assert codec.decode_event(frame_type, b"x") == (None, None, expected)


def test_chunk_may_leave_sizes_out() -> None:
    payload = b'{"request_id":7,"chunk_index":1,"data":"aGk=","is_last":true}'
    assert SDK.decode_event(0x11, payload) == (7, None, RequestBodyChunk(1, b"hi", True, None, 0))
