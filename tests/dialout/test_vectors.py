"""The golden frames of a connection's beginning; those that come later are in ``test_event_vectors.py``."""

import json
from pathlib import Path
from typing import Any

import pytest

from dialout import (
    Capabilities,
    Dialect,
    ErrorCode,
    Event,
    FrameDecoder,
    NotAgentProtocol,
    OversizedFrame,
    Registration,
    RegistrationRequest,
    Rejection,
    TruncatedFrame,
    ZeroLengthFrame,
    acceptance_frame,
    encode_frame,
    parse_registration,
    parse_registration_response,
    rejection_frame,
    scan_first_frame,
)

VECTORS: dict[str, dict[str, Any]] = {
    vector["name"]: vector for vector in json.loads((Path(__file__).parent / "vectors.json").read_text())
}
WHOLE = [name for name, vector in VECTORS.items() if vector["json"] is not None]
FROM_SDK = Capabilities(
    events=Event.REQUEST_HEADERS | Event.REQUEST_BODY_CHUNK, max_concurrent=500, streaming_body=True
)
ALL_FLAGS = Capabilities(
    events=Event.REQUEST_HEADERS | Event.REQUEST_BODY_CHUNK | Event.RESPONSE_HEADERS | Event.RESPONSE_BODY_CHUNK,
    max_concurrent=100,
    streaming_body=True,
)
FROM_CORE = Capabilities(
    events=Event.REQUEST_HEADERS | Event.REQUEST_BODY_CHUNK | Event.CONFIGURE,
    max_concurrent=100,
    cancellation=True,
    streaming_body=True,
    websocket=True,
    guardrails=True,
    config_push=True,
    metrics_export=True,
    flow_control=True,
    health_reporting=True,
    max_body_size=10_485_760,
    preferred_chunk_size=65_536,
)
REGISTRATIONS = {
    "g_registration_request": Registration(Dialect.SDK, "waf-agent-v2", None, FROM_SDK),
    "g_registration_request_token": Registration(Dialect.SDK, "waf-agent-v2", "my-secret-token", FROM_SDK),
    "g_registration_request_default_caps": Registration(Dialect.SDK, "waf-worker-3", None, Capabilities()),
    "g_registration_request_all_token_metadata": Registration(
        Dialect.SDK, "waf-worker-3", "secret-token", ALL_FLAGS, b'{"version":"1.2.0"}'
    ),
    "g_registration_request_features": Registration(Dialect.SDK, "waf-worker-3", None, Capabilities()),
    "r_registration_request": Registration(Dialect.CORE, "rust-waf", None, FROM_CORE),
    "r_registration_request_token_metadata": Registration(
        Dialect.CORE, "rust-waf", "my-secret-token", FROM_CORE, b'{"version":"1.2.0"}'
    ),
    "x_docs_literal_registration_type_01": Registration(Dialect.DOCS, "doc-agent", None, Capabilities()),
}
REFUSED = {
    "g_registration_request_null_caps": (ErrorCode.BAD_REGISTRATION, 0x04, "agent_id"),
    "x_zero_length": (ErrorCode.BAD_REGISTRATION, 0x04, "length 0"),
    "x_length_over_limit": (ErrorCode.BAD_REGISTRATION, 0x04, "16777217 bytes, the limit is 65536"),
    "x_length_max_header": (ErrorCode.BAD_REGISTRATION, 0x04, "16777216 bytes, the limit is 65536"),
    "x_empty_payload": (ErrorCode.BAD_REGISTRATION, 0x04, "type 0x41"),
    "x_forward_handshake_rust": (ErrorCode.BAD_REGISTRATION, 0x02, "proxy's handshake"),
    "x_forward_handshake_docs": (ErrorCode.BAD_REGISTRATION, 0x02, "proxy's handshake"),
    "x_v1_frame": (ErrorCode.VERSION_MISMATCH, 0x04, "v1 framing"),
    "x_first_frame_decision": (ErrorCode.BAD_REGISTRATION, 0x04, "type 0x20"),
}

LISTENER_ANSWERS: dict[str, tuple[bool, str | None, dict[str, Any] | None, str | None]] = {
    "g_registration_ack_accept_min": (True, None, None, None),
    "g_registration_ack_accept": (True, "waf-worker-3-conn-7", {"rules_version": "3.4.0"}, None),
    "g_registration_ack_reject": (False, None, None, "nope"),
    "r_registration_response_accept": (True, "rust-waf-19c0a5b2f3d", None, None),
    "r_registration_response_reject_version": (
        False,
        None,
        None,
        "Protocol version mismatch: expected 2, got 1",
    ),
    "r_registration_response_reject_auth": (
        False,
        None,
        None,
        "Invalid message format: Authentication required but no token provided",
    ),
    "r_registration_response_reject_allowlist": (
        False,
        None,
        None,
        "Invalid message format: Agent 'zzz' is not in the allowed list",
    ),
    "s_accept_type_04": (True, "waf-worker-3-conn-7", {"rules_version": "3.4.0"}, None),
    "s_accept_noconfig_type_02": (True, "waf-worker-3-conn-7", None, None),
    "s_reject_type_04": (False, None, None, "authentication failed"),
    "s_accept_type_02": (True, "waf-worker-3-conn-7", {"rules_version": "3.4.0"}, None),
    "s_accept_noconfig_type_04": (True, "waf-worker-3-conn-7", None, None),
    "s_reject_type_02": (False, None, None, "authentication failed"),
}


def frame_of(name: str) -> bytes:
    return bytes.fromhex(VECTORS[name]["hex"])


def read(frame: bytes) -> Registration:
    scanned = scan_first_frame(frame, 65_536)
    assert not isinstance(scanned, int)
    frame_type, payload, residue = scanned
    assert residue == b""
    return parse_registration(frame_type, payload)


@pytest.mark.parametrize("name", WHOLE)
def test_decoder_returns_type_and_payload_of_every_vector(name: str) -> None:
    vector = VECTORS[name]
    assert FrameDecoder().feed(frame_of(name)) == [(vector["type"], vector["json"].encode())]


@pytest.mark.parametrize("name", WHOLE)
def test_encoder_builds_every_vector_byte_for_byte(name: str) -> None:
    vector = VECTORS[name]
    assert encode_frame(vector["type"], vector["json"].encode()) == frame_of(name)


def test_decoder_cuts_all_vectors_out_of_one_stream() -> None:
    stream = b"".join(map(frame_of, WHOLE))
    expected = [(VECTORS[name]["type"], VECTORS[name]["json"].encode()) for name in WHOLE]
    assert FrameDecoder().feed(stream) == expected


@pytest.mark.parametrize(("name", "expected"), REGISTRATIONS.items())
def test_listener_reads_real_registration(name: str, expected: Registration) -> None:
    assert read(frame_of(name)) == expected


@pytest.mark.parametrize(("name", "expected"), REFUSED.items())
def test_listener_refuses_bad_first_frame(name: str, expected: tuple[ErrorCode, int, str]) -> None:
    error_code, answer_type, words = expected
    with pytest.raises(Rejection) as refusal:
        read(frame_of(name))
    assert refusal.value.error_code is error_code
    assert refusal.value.answer_type == answer_type
    assert words in refusal.value.message
    assert refusal.value.message == str(refusal.value)
    assert refusal.value.retry_after_ms is None


@pytest.mark.parametrize(("name", "protocol"), [("x_http", "HTTP"), ("x_tls_client_hello", "TLS")])
def test_listener_recognises_foreign_protocol(name: str, protocol: str) -> None:
    with pytest.raises(NotAgentProtocol) as foreign:
        read(frame_of(name))
    assert foreign.value.protocol == protocol


def test_listener_waits_for_rest_of_truncated_frame() -> None:
    assert scan_first_frame(frame_of("x_truncated_payload"), 65_536) == 2


def test_every_vector_of_the_beginning_is_in_one_list() -> None:
    begins = {name for name in VECTORS if "registration" in name or name.startswith(("x_", "s_accept", "s_reject"))}
    alone = {"x_http", "x_tls_client_hello", "x_truncated_payload"}
    lists = (set(REGISTRATIONS), set(REFUSED), set(LISTENER_ANSWERS), alone)
    assert begins == set().union(*lists)
    assert len(begins) == sum(map(len, lists))


@pytest.mark.parametrize(
    ("name", "error"), [("x_zero_length", ZeroLengthFrame), ("x_length_over_limit", OversizedFrame)]
)
def test_decoder_refuses_bad_length(name: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        FrameDecoder().feed(frame_of(name))


def test_decoder_takes_largest_legal_length() -> None:
    decoder = FrameDecoder()
    assert decoder.feed(frame_of("x_length_max_header")) == []
    assert decoder.buffered == 5


def test_decoder_returns_frame_without_payload() -> None:
    assert FrameDecoder().feed(frame_of("x_empty_payload")) == [(0x41, b"")]


def test_decoder_reports_eof_inside_payload() -> None:
    decoder = FrameDecoder()
    assert decoder.feed(frame_of("x_truncated_payload")) == []
    with pytest.raises(TruncatedFrame):
        decoder.feed_eof()


@pytest.mark.parametrize("config", [None, b'{"rules_version":"3.4.0"}'])
@pytest.mark.parametrize("answer_type", [0x02, 0x04])
def test_listener_accepts_byte_for_byte(answer_type: int, config: bytes | None) -> None:
    name = f"s_accept_{'noconfig_' if config is None else ''}type_{answer_type:02x}"
    frame = acceptance_frame(
        answer_type, "waf-worker-3-conn-7", proxy_id="listener-1", proxy_version="0.1.0", config=config
    )
    assert frame == frame_of(name)


@pytest.mark.parametrize("answer_type", [0x02, 0x04])
def test_listener_rejects_with_keys_of_vector_first_and_own_keys_behind(answer_type: int) -> None:
    frame = rejection_frame(
        answer_type,
        "authentication failed",
        ErrorCode.AUTH_FAILED,
        proxy_id="listener-1",
        proxy_version="0.1.0",
        retry_after_ms=250,
    )
    [(frame_type, payload)] = FrameDecoder().feed(frame)
    vector = VECTORS[f"s_reject_type_{answer_type:02x}"]
    assert frame_type == vector["type"]
    assert payload == vector["json"][:-1].encode() + b',"error_code":"auth_failed","retry_after_ms":250}'


@pytest.mark.parametrize(
    ("name", "dialect", "request_"),
    [
        (
            "g_registration_request",
            Dialect.SDK,
            RegistrationRequest(agent_id="waf-agent-v2", capabilities=FROM_SDK),
        ),
        (
            "g_registration_request_token",
            Dialect.SDK,
            RegistrationRequest(agent_id="waf-agent-v2", capabilities=FROM_SDK, auth_token="my-secret-token"),
        ),
        (
            "g_registration_request_default_caps",
            Dialect.SDK,
            RegistrationRequest(agent_id="waf-worker-3", auth_token="", metadata={}),
        ),
        (
            "g_registration_request_all_token_metadata",
            Dialect.SDK,
            RegistrationRequest(
                agent_id="waf-worker-3",
                capabilities=ALL_FLAGS,
                auth_token="secret-token",
                metadata={"version": "1.2.0"},
            ),
        ),
        (
            "r_registration_request",
            Dialect.CORE,
            RegistrationRequest(
                agent_id="rust-waf", capabilities=FROM_CORE, name="Rust WAF", version="1.2.0", auth_token=""
            ),
        ),
        (
            "r_registration_request_token_metadata",
            Dialect.CORE,
            RegistrationRequest(
                agent_id="rust-waf",
                capabilities=FROM_CORE,
                name="Rust WAF",
                version="1.2.0",
                auth_token="my-secret-token",
                metadata={"version": "1.2.0"},
            ),
        ),
    ],
)
def test_agent_registers_byte_for_byte(name: str, dialect: Dialect, request_: RegistrationRequest) -> None:
    assert request_.encode(dialect) == frame_of(name)


@pytest.mark.parametrize(("name", "expected"), LISTENER_ANSWERS.items())
def test_agent_reads_answer_of_every_style(
    name: str, expected: tuple[bool, str | None, dict[str, Any] | None, str | None]
) -> None:
    answer = parse_registration_response(VECTORS[name]["type"], VECTORS[name]["json"].encode())
    assert (answer.accepted, answer.assigned_id, answer.config, answer.error) == expected
    assert answer.error_code is None
    assert answer.retry_after_ms is None
