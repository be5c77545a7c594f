"""Reading the first frame of a connection, and writing it."""

import json
import tracemalloc
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dialout import (
    MAX_FRAME_LENGTH,
    MAX_METADATA_DEPTH,
    Capabilities,
    Dialect,
    DialoutError,
    ErrorCode,
    Event,
    LocalProtocolError,
    NotAgentProtocol,
    Registration,
    RegistrationRequest,
    Rejection,
    answer_type_so_far,
    encode_frame,
    is_agent_id,
    parse_registration,
    scan_first_frame,
)

ID_CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._:@-"
CORE_CAPABILITIES = {"supported_events": [1], "features": {"cancellation": True}}
DOCS_CAPABILITIES = {"handles_request_headers": True}


def register(frame_type: int = 0x03, /, *without: str, **keys: Any) -> Registration:
    """Parse a good registration with some of its keys replaced or left out."""
    capabilities = {} if frame_type == 0x03 else CORE_CAPABILITIES
    fields: dict[str, Any] = {"protocol_version": 2, "agent_id": "waf-1", "capabilities": capabilities, **keys}
    payload = json.dumps({key: value for key, value in fields.items() if key not in without})
    return parse_registration(frame_type, payload.encode())


def refusal(frame_type: int, payload: bytes) -> Rejection:
    with pytest.raises(Rejection) as raised:
        parse_registration(frame_type, payload)
    return raised.value


# --- scan_first_frame --------------------------------------------------------------------------------


@given(
    st.integers(0, 255).filter(lambda kind: kind != 0x7B), st.binary(min_size=1, max_size=100), st.binary(max_size=50)
)
def test_scan_returns_frame_and_residue_and_asks_for_exactly_what_is_missing(
    frame_type: int, payload: bytes, residue: bytes
) -> None:
    frame = encode_frame(frame_type, payload)
    assert scan_first_frame(frame + residue, 101) == (frame_type, payload, residue)
    read, rounds = b"", 0
    while isinstance(needed := scan_first_frame(read, 101), int):
        assert needed > 0
        read += frame[len(read) : len(read) + needed]
        rounds += 1
    assert needed == (frame_type, payload, b"")
    assert rounds <= 2


@pytest.mark.parametrize("held", range(4))
def test_scan_asks_for_rest_of_length_first(held: int) -> None:
    assert scan_first_frame(b"\x00\x00\x01\x11"[:held], 65_536) == 4 - held


@pytest.mark.parametrize(
    ("read", "answer_type"),
    [
        (b"\x00\x01\x00\x01", 0x04),
        (b"\x00\x01\x00\x01\x03", 0x04),
        (b"\x00\x01\x00\x01\x01", 0x02),
        (b"\x00\x01\x00\x01\x01{", 0x02),
        (b"\xff\xff\xff\xff\x01", 0x02),
    ],
)
def test_scan_refuses_length_above_limit_and_says_what_the_limit_is(read: bytes, answer_type: int) -> None:
    with pytest.raises(Rejection, match="the limit is 65536") as raised:
        scan_first_frame(read, 65_536)
    assert raised.value.error_code is ErrorCode.BAD_REGISTRATION
    assert raised.value.answer_type == answer_type


def test_scan_takes_length_at_limit() -> None:
    assert scan_first_frame(b"\x00\x01\x00\x00\x03", 65_536) == 65_535


@pytest.mark.parametrize("length", [65_537, MAX_FRAME_LENGTH + 1, 0xFFFF_FFFF])
def test_scan_allocates_nothing_for_length_above_limit(length: int) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(Rejection):
            scan_first_frame(length.to_bytes(4), 65_536)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 32_768


@pytest.mark.parametrize("rest", [b"", b"\x01", b"\x03{}"])
def test_scan_refuses_length_zero_with_04_whatever_follows(rest: bytes) -> None:
    with pytest.raises(Rejection, match="length 0") as raised:
        scan_first_frame(b"\x00\x00\x00\x00" + rest, 65_536)
    assert raised.value.answer_type == 0x04


@pytest.mark.parametrize("length", [2, 300, 65_537, 10 * 1024 * 1024])
def test_scan_recognises_v1_framing_at_fifth_byte(length: int) -> None:
    with pytest.raises(Rejection, match="v1 framing") as raised:
        scan_first_frame(length.to_bytes(4) + b"{", 65_536)
    assert raised.value.error_code is ErrorCode.VERSION_MISMATCH
    assert raised.value.answer_type == 0x04


@pytest.mark.parametrize(
    "line",
    [
        b"GET / HTTP/1.1",
        b"HEAD / HTTP/1.1",
        b"POST / HTTP/1.1",
        b"PUT / HTTP/1.1",
        b"DELETE / HTTP/1.1",
        b"CONNECT x:1 HTTP/1.1",
        b"OPTIONS * HTTP/1.1",
        b"TRACE / HTTP/1.1",
        b"PATCH / HTTP/1.1",
        b"PRI * HTTP/2.0",
        b"HTTP/1.1 200 OK",
    ],
)
@pytest.mark.parametrize("max_bytes", [1, 65_536, MAX_FRAME_LENGTH])
def test_scan_recognises_http_by_four_bytes(line: bytes, max_bytes: int) -> None:
    for read in (line[:4], line):
        with pytest.raises(NotAgentProtocol) as raised:
            scan_first_frame(read, max_bytes)
        assert raised.value.protocol == "HTTP"


@pytest.mark.parametrize(
    ("header", "version"),
    [
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", 1),
        (b"PROXY UNKNOWN\r\n", 1),
        (b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + bytes(12), 2),
        (b"\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00", 2),
    ],
)
@pytest.mark.parametrize("max_bytes", [256, 65_536, MAX_FRAME_LENGTH])
def test_scan_names_a_header_of_the_proxy_protocol(header: bytes, version: int, max_bytes: int) -> None:
    for read in (header[:4], header[:5], header[:12], header, header + b"\x00\x00\x00\x05\x03{}{}"):
        with pytest.raises(Rejection, match=rf"PROXY protocol header \(version {version}\)") as raised:
            scan_first_frame(read, max_bytes)
        assert raised.value.error_code is ErrorCode.BAD_REGISTRATION


@pytest.mark.parametrize("read", [b"\x16\x03", b"\x16\x03\x01", b"\x16\x03\x01\x02\x00\x01"])
def test_scan_recognises_tls_by_two_bytes(read: bytes) -> None:
    with pytest.raises(NotAgentProtocol) as raised:
        scan_first_frame(read, MAX_FRAME_LENGTH)
    assert raised.value.protocol == "TLS"


def test_scan_refuses_limit_that_no_frame_can_have() -> None:
    with pytest.raises(LocalProtocolError):
        scan_first_frame(encode_frame(0x03), MAX_FRAME_LENGTH + 1)


@given(st.binary(max_size=40), st.integers(1, 64))
@example(b"GETX", 64)
@example(b"\x00\x00\x00\x01{", 64)
def test_scan_raises_only_its_own_errors_whatever_comes(read: bytes, max_bytes: int) -> None:
    try:
        result = scan_first_frame(read, max_bytes)
    except Rejection as error:
        assert error.answer_type in {0x02, 0x04}  # noqa: PT017 - most inputs raise, and none must
        return
    except NotAgentProtocol:
        return
    if isinstance(result, int):
        assert 0 < result <= max_bytes + 4
    else:
        frame_type, payload, residue = result
        assert read == (len(payload) + 1).to_bytes(4) + bytes([frame_type]) + payload + residue


@pytest.mark.parametrize(
    ("read", "expected"),
    [(b"", 0x04), (b"\x00\x00\x00\x05", 0x04), (b"\x00\x00\x00\x05\x01", 0x02), (b"\x00\x00\x00\x05\x03{", 0x04)],
)
def test_answer_type_of_interrupted_read_depends_on_type_byte(read: bytes, expected: int) -> None:
    assert answer_type_so_far(read) == expected


# --- parse_registration: version, id, token ----------------------------------------------------------


@pytest.mark.parametrize("version", [1, 3, 0, -2, 2**40, True, 2.0, "2", None, [2], {"major": 2}])
@pytest.mark.parametrize(("frame_type", "answer_type"), [(0x03, 0x04), (0x01, 0x02)])
def test_only_integer_2_is_version_2(version: object, frame_type: int, answer_type: int) -> None:
    with pytest.raises(Rejection, match="expected 2, got") as raised:
        register(frame_type, protocol_version=version)
    assert raised.value.error_code is ErrorCode.VERSION_MISMATCH
    assert raised.value.answer_type == answer_type


def test_missing_version_is_version_mismatch() -> None:
    with pytest.raises(Rejection, match="got none") as raised:
        register(0x03, "protocol_version")
    assert raised.value.error_code is ErrorCode.VERSION_MISMATCH


def test_version_is_judged_before_everything_in_the_object() -> None:
    wrong = {"agent_id": "", "auth_token": 1, "metadata": 1, "capabilities": 1}
    with pytest.raises(Rejection) as raised:
        register(0x03, protocol_version=1, **wrong)
    assert raised.value.error_code is ErrorCode.VERSION_MISMATCH


def test_agent_id_is_judged_before_capabilities() -> None:
    with pytest.raises(Rejection, match="agent_id"):
        register(0x01, agent_id="", capabilities=1)


@pytest.mark.parametrize(
    "agent_id", ["", "a" * 129, "a b", "a\n", "\n", "a/b", "ä", "a\u0000", "a*", "\u202e", None, 1, True, ["a"], {}]
)
def test_bad_agent_id_is_refused_and_not_quoted(agent_id: object) -> None:
    with pytest.raises(Rejection, match="agent_id") as raised:
        register(agent_id=agent_id)
    assert raised.value.error_code is ErrorCode.BAD_REGISTRATION
    assert raised.value.message.isprintable()
    assert raised.value.message.isascii()


@given(st.text(ID_CHARACTERS, min_size=1, max_size=128))
def test_every_legal_agent_id_is_taken(agent_id: str) -> None:
    assert is_agent_id(agent_id)
    assert register(agent_id=agent_id).agent_id == agent_id


@given(st.text(max_size=6))
def test_agent_id_rule_is_its_alphabet(text: str) -> None:
    assert is_agent_id(text) == (bool(text) and set(text) <= set(ID_CHARACTERS))


@pytest.mark.parametrize("token", [None, ""])
def test_empty_token_is_none(token: str | None) -> None:
    assert register(auth_token=token).auth_token is None
    assert register(0x03, "auth_token").auth_token is None


@pytest.mark.parametrize("token", ["t", " ", "ключ", "a\u0000b"])
def test_token_is_taken_as_it_is(token: str) -> None:
    assert register(auth_token=token).auth_token == token


@pytest.mark.parametrize("token", [1, 0, False, [], {}, ["t"], 1.5])
def test_token_of_wrong_type_is_refused(token: object) -> None:
    with pytest.raises(Rejection, match="auth_token must be a string") as raised:
        register(auth_token=token)
    assert raised.value.error_code is ErrorCode.BAD_REGISTRATION


# --- parse_registration: dialect and capabilities ----------------------------------------------------


@pytest.mark.parametrize(
    ("frame_type", "capabilities", "expected"),
    [
        (0x03, None, Dialect.SDK),
        (0x03, {}, Dialect.SDK),
        (0x03, DOCS_CAPABILITIES, Dialect.SDK),
        (0x03, CORE_CAPABILITIES, Dialect.SDK),
        (0x01, CORE_CAPABILITIES, Dialect.CORE),
        (0x01, {"supported_events": []}, Dialect.CORE),
        (0x01, {"features": {}}, Dialect.CORE),
        (0x01, CORE_CAPABILITIES | DOCS_CAPABILITIES, Dialect.CORE),
        (0x01, DOCS_CAPABILITIES, Dialect.DOCS),
        (0x01, {"handles_response_body": False}, Dialect.DOCS),
    ],
)
def test_dialect_follows_from_type_and_shape(frame_type: int, capabilities: object, expected: Dialect) -> None:
    registration = register(frame_type, capabilities=capabilities)
    assert registration.dialect is expected
    assert registration.answer_type == expected.answer_type


def test_sdk_agent_without_capabilities_gets_request_headers() -> None:
    assert register(capabilities=None).capabilities == Capabilities(events=Event.REQUEST_HEADERS)
    assert register(0x03, "capabilities").capabilities == Capabilities(events=Event.REQUEST_HEADERS)


@pytest.mark.parametrize("capabilities", [None, {}, {"name": "x"}, {"supports_streaming": True}])
def test_01_without_known_schema_is_refused(capabilities: object) -> None:
    with pytest.raises(Rejection, match="unrecognised capabilities") as raised:
        register(0x01, capabilities=capabilities)
    assert raised.value.answer_type == 0x02


@pytest.mark.parametrize(
    ("frame_type", "capabilities", "words"),
    [
        (0x03, [], "array"),
        (0x03, "all", "str"),
        (0x03, {"handles_request_body": "SECRET"}, "handles_request_body"),
        (0x01, {"supported_events": "SECRET"}, "supported_events"),
        (0x01, {"features": {"websocket": "SECRET"}}, "websocket"),
        (0x01, {"handles_request_body": "SECRET"}, "handles_request_body"),
    ],
)
def test_capabilities_of_wrong_type_are_refused_with_their_key(
    frame_type: int, capabilities: object, words: str
) -> None:
    with pytest.raises(Rejection, match=words) as raised:
        register(frame_type, capabilities=capabilities)
    assert raised.value.error_code is ErrorCode.BAD_REGISTRATION
    assert "SECRET" not in raised.value.message


def test_differing_inner_agent_id_is_a_warning_and_outer_one_counts() -> None:
    registration = register(0x01, capabilities={**CORE_CAPABILITIES, "agent_id": "inner-1"})
    assert registration.agent_id == "waf-1"
    assert len(registration.warnings) == 1
    assert "inner-1" not in registration.warnings[0]
    assert register(0x01, capabilities={**CORE_CAPABILITIES, "agent_id": "waf-1"}).warnings == ()
    assert register(0x01).warnings == ()


@pytest.mark.parametrize("frame_type", [kind for kind in range(256) if kind not in {0x01, 0x03}])
def test_first_frame_of_another_type_is_refused_with_04(frame_type: int) -> None:
    rejection = refusal(frame_type, b"{}")
    assert rejection.error_code is ErrorCode.BAD_REGISTRATION
    assert rejection.answer_type == 0x04
    assert f"0x{frame_type:02x}" in rejection.message


@pytest.mark.parametrize("hello", [{"supported_versions": [2]}, {"client_name": "p", "protocol_version": 2}])
def test_proxy_that_says_hello_is_told_so(hello: dict[str, object]) -> None:
    rejection = refusal(0x01, json.dumps(hello).encode())
    assert "proxy's handshake" in rejection.message
    assert rejection.answer_type == 0x02
    # A proxy's hello has type 0x01 and no agent_id; anything else is an agent.
    with pytest.raises(Rejection, match="agent_id is missing"):
        register(0x03, "agent_id", client_name="x")
    assert register(0x01, client_name="x").agent_id == "waf-1"


# --- parse_registration: metadata --------------------------------------------------------------------


def test_metadata_is_kept_as_raw_text() -> None:
    payload = b'{"protocol_version":2,"agent_id":"a","metadata":  {"b" : 1.50, "a":"\\u00e4"} }'
    assert parse_registration(0x03, payload).metadata == b'{"b" : 1.50, "a":"\\u00e4"}'


def test_absent_and_null_metadata_are_empty() -> None:
    assert register(metadata=None).metadata == b""
    assert register(0x03, "metadata").metadata == b""
    assert register(metadata={}).metadata == b"{}"


@pytest.mark.parametrize("metadata", ["x", 1, True, [], [{}]])
def test_metadata_that_is_no_object_is_for_core_agents_only(metadata: object) -> None:
    with pytest.raises(Rejection, match="metadata must be an object"):
        register(metadata=metadata)
    with pytest.raises(Rejection, match="metadata must be an object"):
        register(0x01, metadata=metadata, capabilities=DOCS_CAPABILITIES)
    assert json.loads(register(0x01, metadata=metadata).metadata) == metadata


@pytest.mark.parametrize("opening", ['{"a":', "["])
@pytest.mark.parametrize("inside", ["", "1"])
def test_metadata_may_be_as_deep_as_the_limit_and_no_deeper(opening: str, inside: str) -> None:
    closing = "}" if opening[0] == "{" else "]"
    inner = inside or ("0" if opening[0] == "{" else "")

    def payload(depth: int) -> bytes:
        text = opening * depth + inner + closing * depth
        fields = f'"protocol_version":2,"agent_id":"a","capabilities":{{"features":{{}}}},"metadata":{text}'
        return b"{%b}" % fields.encode()

    assert json.loads(parse_registration(0x01, payload(MAX_METADATA_DEPTH)).metadata)
    assert "levels of nesting" in refusal(0x01, payload(MAX_METADATA_DEPTH + 1)).message


def test_wide_metadata_is_not_mistaken_for_deep() -> None:
    wide: dict[str, Any] = {str(n): [{}] for n in range(200)} | {"text": "[" * 200}
    assert json.loads(register(metadata=wide).metadata) == wide


@pytest.mark.parametrize("value", [b"1e999", b"1" * 5000, b'"\xff"', b'"\\ud800"', b'"\x01"', b"NaN", b'"\\q"'])
def test_metadata_that_other_readers_would_choke_on_is_refused(value: bytes) -> None:
    payload = b'{"protocol_version":2,"agent_id":"a","metadata":{"x":%b}}' % value
    assert refusal(0x03, payload).error_code is ErrorCode.BAD_REGISTRATION


# --- parse_registration: any bytes -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xef\xbb\xbf{}", "not valid JSON"),
        (b"{} x", "not valid JSON"),
        (b"[]", "object"),
        (b"null", "object"),
        (b"2", "object"),
        (b'{"x":"\xff"}', "UTF-8 at byte 6"),
        (b'{"x":' + b"[" * 60_000, "nested too deeply"),
        (b'{"protocol_version":' + b'{"a":' * 10_000, "nested too deeply"),
        (b'{"capabilities":' + b"[" * 60_000, "nested too deeply"),
        (b'{"protocol_version":2,"agent_id":' + b"9" * 60_000 + b"}", "must be a string"),
    ],
)
@pytest.mark.parametrize("frame_type", [0x01, 0x03])
def test_payload_that_is_no_registration_is_refused(frame_type: int, payload: bytes, words: str) -> None:
    rejection = refusal(frame_type, payload)
    assert rejection.error_code is ErrorCode.BAD_REGISTRATION
    assert words in rejection.message


def test_unknown_keys_are_ignored_and_last_duplicate_counts() -> None:
    payload = b'{"protocol_version":1,"zone":{"a":[1]},"agent_id":"a","agent_id":"b","protocol_version":2}'
    assert parse_registration(0x03, payload).agent_id == "b"


def test_keys_match_exactly() -> None:
    assert register(Auth_Token="t", AUTH_TOKEN="t").auth_token is None


def json_values() -> st.SearchStrategy[Any]:
    scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    return st.recursive(
        scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    )


KEYS = ("handles_request_body", "max_concurrent_requests", "supported_events", "features", "limits", "agent_id")
capability_like = st.dictionaries(st.sampled_from(KEYS), json_values(), max_size=4)
registration_like = st.fixed_dictionaries(
    {},
    optional={
        "protocol_version": st.just(2) | json_values(),
        "agent_id": st.just("waf-1") | json_values(),
        "capabilities": capability_like | json_values(),
        "auth_token": st.text(max_size=5) | json_values(),
        "metadata": json_values(),
        "supported_versions": json_values(),
    },
)


def check_outcome(frame_type: int, payload: bytes) -> None:
    """A registration that keeps its promises, or a Rejection that can be sent; no other exception."""
    try:
        registration = parse_registration(frame_type, payload)
    except Rejection as rejection:
        assert rejection.answer_type == (0x02 if frame_type == 0x01 else 0x04)  # noqa: PT017 - see above
        assert rejection.message.isprintable()  # noqa: PT017 - see above
        assert len(rejection.message) < 200  # noqa: PT017 - see above
        return
    assert is_agent_id(registration.agent_id)
    assert registration.auth_token != ""
    assert registration.answer_type == (0x02 if frame_type == 0x01 else 0x04)
    assert 0 <= registration.capabilities.events <= 255
    if registration.metadata:
        json.loads(registration.metadata)
        msgspec.json.decode(registration.metadata)


@given(st.sampled_from([0x01, 0x03, 0x20]), registration_like)
def test_parser_raises_only_rejections_for_any_object(frame_type: int, fields: dict[str, Any]) -> None:
    check_outcome(frame_type, json.dumps(fields).encode())


@given(st.sampled_from([0x01, 0x03]), st.binary(max_size=60))
def test_parser_raises_only_rejections_for_any_bytes(frame_type: int, payload: bytes) -> None:
    check_outcome(frame_type, payload)


@given(st.sampled_from([0x01, 0x03]), st.data())
def test_parser_raises_only_rejections_for_damaged_registration(frame_type: int, data: st.DataObject) -> None:
    dialect = Dialect.SDK if frame_type == 0x03 else Dialect.CORE
    request = RegistrationRequest(agent_id="waf-1", auth_token="t", metadata={"a": ["ä"]})
    payload = bytearray(request.encode(dialect)[5:])
    for _ in range(data.draw(st.integers(1, 3))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    check_outcome(frame_type, bytes(payload))


# --- secrets -----------------------------------------------------------------------------------------


def test_token_shows_in_no_representation() -> None:
    registration = register(auth_token="SECRET", metadata={"zone": "eu"})
    request = RegistrationRequest(agent_id="waf-1", auth_token="SECRET", metadata={"zone": "eu"})
    for value in (registration, request):
        for text in (repr(value), str(value), f"{value}", repr([value]), str(value.__rich_repr__())):
            assert "SECRET" not in text
            assert "waf-1" in text
            assert "<hidden>" in text
            assert "eu" in text
    assert registration.auth_token == "SECRET"


def test_absent_token_shows_as_absent() -> None:
    assert "auth_token=None" in repr(register())


def test_token_shows_in_no_rejection() -> None:
    for wrong in ({"protocol_version": 1}, {"agent_id": ""}, {"metadata": 1}, {"capabilities": 1}):
        with pytest.raises(Rejection) as raised:
            register(auth_token="SECRET", **wrong)
        assert "SECRET" not in repr(raised.value)
        assert raised.value.__cause__ is None


# --- RegistrationRequest -----------------------------------------------------------------------------

requests = st.builds(
    RegistrationRequest,
    agent_id=st.text(ID_CHARACTERS, min_size=1, max_size=128),
    capabilities=st.builds(Capabilities, events=st.integers(0, 15), max_concurrent=st.none() | st.integers(1, 9)),
    auth_token=st.none() | st.text(st.characters(codec="utf-8"), max_size=9),
    metadata=st.none() | st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=3), st.integers(0, 9)),
)


@given(requests, st.sampled_from(Dialect))
def test_listener_reads_what_agent_writes_in_every_dialect(request: RegistrationRequest, dialect: Dialect) -> None:
    scanned = scan_first_frame(request.encode(dialect), 65_536)
    assert not isinstance(scanned, int)
    frame_type, payload, residue = scanned
    registration = parse_registration(frame_type, payload)
    assert residue == b""
    assert registration.dialect is dialect
    assert registration.agent_id == request.agent_id
    assert registration.auth_token == (request.auth_token or None)
    assert registration.capabilities == request.capabilities
    assert registration.warnings == ()
    assert (json.loads(registration.metadata) if registration.metadata else {}) == (request.metadata or {})


def test_agent_that_asks_for_another_version_is_refused_by_the_listener() -> None:
    frame = RegistrationRequest(protocol_version=1, agent_id="waf-1").encode(Dialect.SDK)
    assert refusal(0x03, frame[5:]).error_code is ErrorCode.VERSION_MISMATCH


def test_agent_may_not_register_with_illegal_id() -> None:
    with pytest.raises(LocalProtocolError, match="agent_id"):
        RegistrationRequest(agent_id="a b").encode(Dialect.SDK)


def deep(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels):
        value = {"a": value}
    return value


@pytest.mark.parametrize("metadata", [{"a": object()}, {"a": "\ud800"}, deep(100_000)])
def test_agent_is_told_when_metadata_is_not_json(metadata: dict[str, Any]) -> None:
    with pytest.raises(DialoutError):
        RegistrationRequest(agent_id="a", metadata=metadata).encode(Dialect.SDK)
