"""The answer to a registration, from both ends."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialout import (
    ErrorCode,
    FrameDecoder,
    LocalProtocolError,
    RegistrationResponse,
    RemoteProtocolError,
    acceptance_frame,
    parse_registration_response,
    rejection_frame,
)

ID_CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._:@-"
legal_ids = st.text(ID_CHARACTERS, min_size=1, max_size=140)
texts = st.text(st.characters(codec="utf-8"), max_size=20)
answer_types = st.sampled_from([0x02, 0x04])


def compact(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def only_frame(frame: bytes) -> tuple[int, bytes]:
    [only] = FrameDecoder().feed(frame)
    return only


def accepted(assigned_id: str, proxy_id: str, version: str, config: object = None) -> dict[str, object]:
    return {
        "accepted": True,
        "assigned_id": assigned_id,
        **({} if config is None else {"config": config}),
        "success": True,
        "proxy_id": proxy_id,
        "proxy_version": version,
        "connection_id": assigned_id,
    }


@given(answer_types, legal_ids, legal_ids, legal_ids)
def test_acceptance_equals_json_encoder_for_legal_ids(
    answer_type: int, assigned_id: str, proxy_id: str, version: str
) -> None:
    frame = acceptance_frame(answer_type, assigned_id, proxy_id=proxy_id, proxy_version=version)
    assert only_frame(frame) == (answer_type, compact(accepted(assigned_id, proxy_id, version)))


@given(answer_types, st.sampled_from(ID_CHARACTERS))
def test_acceptance_equals_json_encoder_for_each_legal_character(answer_type: int, character: str) -> None:
    frame = acceptance_frame(answer_type, character, proxy_id="p", proxy_version="1")
    assert only_frame(frame) == (answer_type, compact(accepted(character, "p", "1")))


@given(answer_types, texts, texts, texts)
def test_acceptance_is_sound_json_for_any_text(answer_type: int, assigned_id: str, proxy_id: str, version: str) -> None:
    frame = acceptance_frame(answer_type, assigned_id, proxy_id=proxy_id, proxy_version=version)
    frame_type, payload = only_frame(frame)
    assert frame_type == answer_type
    assert list(json.loads(payload).items()) == list(accepted(assigned_id, proxy_id, version).items())


@given(legal_ids, st.dictionaries(texts, texts, max_size=3))
def test_acceptance_carries_config_as_it_is(assigned_id: str, config: dict[str, str]) -> None:
    frame = acceptance_frame(0x04, assigned_id, proxy_id="p", proxy_version="1", config=compact(config))
    assert only_frame(frame) == (0x04, compact(accepted(assigned_id, "p", "1", config)))


@pytest.mark.parametrize("config", [b"", b"[]", b"null", b'"x"', b"1", b"{", b" {}"])
def test_acceptance_refuses_config_that_is_no_object(config: bytes) -> None:
    with pytest.raises(LocalProtocolError, match="object"):
        acceptance_frame(0x04, "a", proxy_id="p", proxy_version="1", config=config)


@given(answer_types, texts, st.sampled_from(ErrorCode), texts, st.none() | st.integers(0, 2**40))
def test_rejection_is_sound_json_for_any_text(
    answer_type: int, error: str, error_code: ErrorCode, proxy_id: str, retry_after_ms: int | None
) -> None:
    frame = rejection_frame(
        answer_type, error, error_code, proxy_id=proxy_id, proxy_version="1", retry_after_ms=retry_after_ms
    )
    expected = {
        "accepted": False,
        "error": error,
        "success": False,
        "proxy_id": proxy_id,
        "proxy_version": "1",
        "connection_id": "",
        "error_code": error_code.value,
        **({} if retry_after_ms is None else {"retry_after_ms": retry_after_ms}),
    }
    frame_type, payload = only_frame(frame)
    assert frame_type == answer_type
    assert list(json.loads(payload).items()) == list(expected.items())


def test_rejection_is_sent_even_when_text_has_lone_surrogate() -> None:
    frame = rejection_frame(0x04, "bad \udc80", ErrorCode.TIMEOUT, proxy_id="p\ud800", proxy_version="1")
    answer = json.loads(only_frame(frame)[1])
    assert (answer["error"], answer["proxy_id"]) == ("bad ?", "p?")


def test_error_codes_are_the_documented_ones() -> None:
    assert {code.value for code in ErrorCode} == {
        "version_mismatch",
        "auth_failed",
        "not_allowed",
        "connection_limit",
        "timeout",
        "bad_registration",
        "overloaded",
        "shutting_down",
    }


@given(answer_types, st.sampled_from(ErrorCode), texts, st.none() | st.integers(0, 2**40))
def test_agent_reads_every_rejection_back(
    answer_type: int, error_code: ErrorCode, error: str, retry_after_ms: int | None
) -> None:
    frame = rejection_frame(
        answer_type, error, error_code, proxy_id="p", proxy_version="1", retry_after_ms=retry_after_ms
    )
    assert parse_registration_response(*only_frame(frame)) == RegistrationResponse(
        accepted=False,
        error=error,
        error_code=error_code,
        retry_after_ms=retry_after_ms,
        proxy_id="p",
        proxy_version="1",
    )


@given(answer_types, legal_ids)
def test_agent_reads_every_acceptance_back(answer_type: int, assigned_id: str) -> None:
    frame = acceptance_frame(answer_type, assigned_id, proxy_id="p", proxy_version="1", config=b'{"a":[1]}')
    assert parse_registration_response(*only_frame(frame)) == RegistrationResponse(
        accepted=True, assigned_id=assigned_id, config={"a": [1]}, proxy_id="p", proxy_version="1"
    )


@pytest.mark.parametrize("payload", [b"", b"{}", b'{"error":"no"}', b'{"accepted":null}'])
def test_answer_without_verdict_is_a_refusal(payload: bytes) -> None:
    assert parse_registration_response(0x04, payload).accepted is False


@pytest.mark.parametrize(
    ("fields", "error_code", "retry_after_ms"),
    [
        ({"error_code": "overloaded", "retry_after_ms": 0}, ErrorCode.OVERLOADED, 0),
        ({"error_code": "of_tomorrow", "retry_after_ms": -1}, None, None),
        ({"error_code": 5, "retry_after_ms": "soon"}, None, None),
        ({"error_code": ["x"], "retry_after_ms": 1.5}, None, None),
        ({"error_code": {}, "retry_after_ms": True}, None, None),
    ],
)
def test_hints_the_agent_does_not_understand_are_left_out(
    fields: dict[str, Any], error_code: ErrorCode | None, retry_after_ms: int | None
) -> None:
    answer = parse_registration_response(0x04, compact({"accepted": False, **fields}))
    assert (answer.error_code, answer.retry_after_ms) == (error_code, retry_after_ms)


@pytest.mark.parametrize(
    "payload",
    [
        b"[]",
        b"null",
        b"{",
        b'{"accepted":1}',
        b'{"accepted":"true"}',
        b'{"accepted":true,"config":[]}',
        b'{"accepted":true,"error":"\xff"}',
        b'{"accepted":true,"success":false}',
        b'{"config":' + b'{"a":' * 50_000,
    ],
)
def test_unreadable_answer_is_the_peers_fault(payload: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        parse_registration_response(0x04, payload)


@pytest.mark.parametrize("frame_type", [0x01, 0x03, 0x10, 0xF0])
def test_frame_of_another_type_is_no_answer(frame_type: int) -> None:
    with pytest.raises(RemoteProtocolError, match=f"0x{frame_type:02x}"):
        parse_registration_response(frame_type, b'{"accepted":true}')


@given(answer_types, st.binary(max_size=60))
def test_agent_raises_only_remote_errors_for_any_bytes(frame_type: int, payload: bytes) -> None:
    try:
        answer = parse_registration_response(frame_type, payload)
    except RemoteProtocolError:
        return
    assert answer.accepted in {True, False}
