"""Both schemas of capabilities, read into one form and written from it."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialout.capabilities import Capabilities, Event, read_core, read_flags, write_core, write_flags

HEADERS = Event.REQUEST_HEADERS
FEATURES = (
    "streaming_body",
    "websocket",
    "guardrails",
    "config_push",
    "metrics_export",
    "cancellation",
    "flow_control",
    "health_reporting",
)


def flags(**keys: Any) -> tuple[Capabilities, bool]:
    return read_flags(json.dumps(keys).encode())


def core(**keys: Any) -> Capabilities:
    result = read_core(json.dumps(keys).encode())
    assert result is not None
    return result[0]


@pytest.mark.parametrize(
    ("key", "event"),
    [
        ("handles_request_headers", Event.REQUEST_HEADERS),
        ("handles_request_body", Event.REQUEST_BODY_CHUNK),
        ("handles_response_headers", Event.RESPONSE_HEADERS),
        ("handles_response_body", Event.RESPONSE_BODY_CHUNK),
    ],
)
def test_each_flag_stands_for_its_event_alone(key: str, event: Event) -> None:
    assert flags(**{key: True}) == (Capabilities(events=event), True)
    assert flags(**{key: False}) == (Capabilities(events=0), True)
    assert flags(**{key: None}) == (Capabilities(events=HEADERS), False)


@pytest.mark.parametrize("text", [b"null", b"{}", b'{"supported_features":["waf"]}'])
def test_flags_that_name_no_event_mean_request_headers(text: bytes) -> None:
    assert read_flags(text) == (Capabilities(events=HEADERS, cancellation=True), False)


@pytest.mark.parametrize(
    ("declared", "expected"), [(None, None), (0, None), (1, 1), (500, 500), (2**32 - 1, 2**32 - 1)]
)
def test_zero_and_absence_are_no_limit(declared: int | None, expected: int | None) -> None:
    assert flags(max_concurrent_requests=declared)[0].max_concurrent == expected
    assert core(features={"concurrent_requests": declared}).max_concurrent == expected
    assert core(features={}, limits={"max_concurrency": declared}).max_concurrent == expected


def test_lower_of_two_core_limits_counts() -> None:
    declared = core(features={"concurrent_requests": 10}, limits={"max_concurrency": 7})
    assert declared.max_concurrent == 7
    assert core(features={"concurrent_requests": 3}, limits={"max_concurrency": 7}).max_concurrent == 3
    assert core(features={"concurrent_requests": 0}, limits={"max_concurrency": 7}).max_concurrent == 7


@pytest.mark.parametrize("value", [-1, 2**32, 1.0, "5", True, []])
def test_limit_that_is_no_u32_is_refused(value: object) -> None:
    for text in ({"max_concurrent_requests": value},):
        with pytest.raises(msgspec.ValidationError, match="max_concurrent_requests"):
            flags(**text)
    with pytest.raises(msgspec.ValidationError, match="concurrent_requests"):
        core(features={"concurrent_requests": value})


@pytest.mark.parametrize(
    ("number", "event"),
    [
        (0, Event.CONFIGURE),
        (1, Event.REQUEST_HEADERS),
        (2, Event.REQUEST_BODY_CHUNK),
        (3, Event.RESPONSE_HEADERS),
        (4, Event.RESPONSE_BODY_CHUNK),
        (5, Event.REQUEST_COMPLETE),
        (6, Event.WEB_SOCKET_FRAME),
        (7, Event.GUARDRAIL_INSPECT),
        (8, Event.CONFIGURE),
        (0x10, Event.REQUEST_HEADERS),
        (0x11, Event.REQUEST_BODY_CHUNK),
        (0x12, Event.RESPONSE_HEADERS),
        (0x13, Event.RESPONSE_BODY_CHUNK),
        (0x14, Event.REQUEST_COMPLETE),
        (0x15, Event.WEB_SOCKET_FRAME),
        (0x16, Event.GUARDRAIL_INSPECT),
        (0x17, Event.CONFIGURE),
    ],
)
def test_event_number_stands_for_its_event(number: int, event: Event) -> None:
    assert core(supported_events=[number]).events == event


@given(st.lists(st.integers().filter(lambda n: not 0 <= n <= 8 and not 16 <= n <= 23), max_size=5))
def test_unknown_event_numbers_are_dropped(numbers: list[int]) -> None:
    # Beyond 64 bits msgspec reads on or refuses as it likes; an i32 is what the schema asks for.
    small = [n for n in numbers if abs(n) < 2**63]
    assert core(supported_events=[1, *small]).events == HEADERS


def test_empty_list_of_events_means_none_and_absent_list_means_headers() -> None:
    assert core(supported_events=[]).events == 0
    assert core(features={}).events == HEADERS
    assert core(supported_events=None, features={}).events == HEADERS


@pytest.mark.parametrize("feature", FEATURES)
def test_each_feature_is_read_alone(feature: str) -> None:
    only = core(supported_events=[1], features={feature: True})
    assert {name: getattr(only, name) for name in FEATURES} == {name: name == feature for name in FEATURES}


def test_without_features_the_events_speak_for_themselves() -> None:
    assert core(supported_events=[1, 2]) == Capabilities(events=0b11, cancellation=True, streaming_body=True)
    assert core(supported_events=[6, 7, 8]) == Capabilities(
        events=0b1110_0000, websocket=True, guardrails=True, config_push=True
    )


@pytest.mark.parametrize(
    "text", [b"null", b"{}", b'{"handles_request_headers":true}', b'{"supported_events":null,"features":null}']
)
def test_other_schema_is_not_taken_for_core(text: bytes) -> None:
    assert read_core(text) is None


@pytest.mark.parametrize(
    "text",
    [
        b"[]",
        b'"x"',
        b"1",
        b'{"supported_events":1}',
        b'{"supported_events":["1"]}',
        b'{"supported_events":[1.0]}',
        b'{"supported_events":[true]}',
        b'{"features":[]}',
        b'{"features":{"websocket":1}}',
        b'{"features":{},"limits":{"max_body_size":-1}}',
        b'{"features":{},"limits":{"max_body_size":"10"}}',
    ],
)
def test_core_schema_of_wrong_types_is_refused(text: bytes) -> None:
    with pytest.raises(msgspec.ValidationError):
        read_core(text)


@pytest.mark.parametrize("text", [b"[]", b'"x"', b"1", b'{"handles_request_body":"yes"}', b'{"supports_streaming":1}'])
def test_flags_of_wrong_types_are_refused(text: bytes) -> None:
    with pytest.raises(msgspec.ValidationError):
        read_flags(text)


def test_sizes_fit_64_bits_whatever_was_declared() -> None:
    huge = core(features={}, limits={"max_body_size": 2**64 - 1, "preferred_chunk_size": 2**63})
    assert (huge.max_body_size, huge.preferred_chunk_size) == (2**63 - 1, 2**63 - 1)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(huge), type=Capabilities) == huge


capabilities = st.builds(
    Capabilities,
    events=st.integers(0, 255),
    max_concurrent=st.none() | st.integers(1, 2**32 - 1),
    cancellation=st.booleans(),
    streaming_body=st.booleans(),
    websocket=st.booleans(),
    guardrails=st.booleans(),
    config_push=st.booleans(),
    metrics_export=st.booleans(),
    flow_control=st.booleans(),
    health_reporting=st.booleans(),
    max_body_size=st.integers(0, 2**63 - 1),
    preferred_chunk_size=st.integers(0, 2**63 - 1),
)


@given(capabilities)
def test_core_schema_loses_nothing(declared: Capabilities) -> None:
    written = json.dumps(write_core(declared, "a", "n", "1")).encode()
    assert read_core(written) == (declared, "a")


@given(capabilities)
def test_flag_schema_keeps_what_it_can_say(declared: Capabilities) -> None:
    kept = Capabilities(
        events=declared.events & 0b1111,
        max_concurrent=declared.max_concurrent,
        cancellation=declared.cancellation,
        streaming_body=declared.streaming_body,
    )
    assert read_flags(json.dumps(write_flags(declared)).encode()) == (kept, True)


@given(capabilities)
def test_capabilities_travel_as_compact_array(declared: Capabilities) -> None:
    packed = msgspec.msgpack.encode(declared)
    assert msgspec.msgpack.decode(packed, type=Capabilities) == declared
    assert isinstance(msgspec.msgpack.decode(packed), list)
