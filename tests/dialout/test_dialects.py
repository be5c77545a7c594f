"""What follows from a dialect alone."""

import pytest

from dialout import CoreFrame, Dialect, SdkFrame, answer_type_for, encode_frame, pong_for
from dialout.dialects import MAX_PING


@pytest.mark.parametrize(
    ("dialect", "registration", "answer", "ping", "pong"),
    [
        (Dialect.SDK, 0x03, 0x04, 0xF0, 0xF1),
        (Dialect.CORE, 0x01, 0x02, 0x41, 0x42),
        (Dialect.DOCS, 0x01, 0x02, 0xF0, 0xF1),
    ],
)
def test_dialect_has_its_types(dialect: Dialect, registration: int, answer: int, ping: int, pong: int) -> None:
    assert dialect.registration_type == registration
    assert dialect.answer_type == answer
    assert (dialect.ping_type, dialect.pong_type) == (ping, pong)
    assert answer_type_for(registration) == answer


def test_dialects_have_their_wire_names() -> None:
    assert [str(dialect) for dialect in Dialect] == ["sdk", "core", "docs"]


@pytest.mark.parametrize(("first", "expected"), [(None, 0x04), (0x01, 0x02), (0x03, 0x04), (0x7B, 0x04), (0x20, 0x04)])
def test_answer_type_is_02_only_for_01(first: int | None, expected: int) -> None:
    assert answer_type_for(first) == expected


@pytest.mark.parametrize(
    ("dialect", "payload", "expected"),
    [
        (Dialect.SDK, b'{"mine":[1],"timestamp": -5, "timestamp_ms":7}', b'{"timestamp":-5}'),
        (Dialect.DOCS, b'{"timestamp":"late"}', b'{"timestamp":0}'),
        (Dialect.DOCS, b'{"timestamp":99999999999999999999999999}', b'{"timestamp":0}'),
        (Dialect.CORE, b'{"timestamp_ms":7,"sequence":3,"mine":"\xc3\xa4"} ', b'{"sequence":3,"timestamp_ms":7}'),
        (Dialect.CORE, b'{"timestamp_ms":7}', b'{"timestamp_ms":7}'),
        (Dialect.CORE, b"no JSON", b"{}"),
    ],
)
def test_pong_says_the_numbers_of_its_ping_and_nothing_else(dialect: Dialect, payload: bytes, expected: bytes) -> None:
    assert pong_for(dialect, dialect.ping_type, payload) == encode_frame(dialect.pong_type, expected)


@pytest.mark.parametrize("dialect", Dialect)
def test_ping_above_its_limit_gets_no_pong(dialect: Dialect) -> None:
    assert pong_for(dialect, dialect.ping_type, b" " * (MAX_PING - 2) + b"{}") is not None
    assert pong_for(dialect, dialect.ping_type, b" " * (MAX_PING - 1) + b"{}") is None


@pytest.mark.parametrize("dialect", Dialect)
def test_only_its_own_ping_is_answered(dialect: Dialect) -> None:
    answered = [kind for kind in range(256) if pong_for(dialect, kind, b"{}") is not None]
    assert answered == [dialect.ping_type]


@pytest.mark.parametrize(
    ("dialect", "expected"),
    [
        (Dialect.SDK, encode_frame(0xF1, b'{"timestamp":0}')),
        (Dialect.DOCS, encode_frame(0xF1, b'{"timestamp":0}')),
        (Dialect.CORE, encode_frame(0x42, b"{}")),
    ],
)
def test_pong_has_payload_when_ping_has_none(dialect: Dialect, expected: bytes) -> None:
    assert pong_for(dialect, dialect.ping_type, b"") == expected


def test_named_types_agree_with_dialects() -> None:
    assert (SdkFrame.REGISTRATION, SdkFrame.REGISTRATION_ACK) == (0x03, 0x04)
    assert (Dialect.SDK.ping_type, Dialect.SDK.pong_type) == (SdkFrame.PING, SdkFrame.PONG)
    assert (CoreFrame.REGISTRATION, CoreFrame.REGISTRATION_RESPONSE) == (0x01, 0x02)
    assert (Dialect.CORE.ping_type, Dialect.CORE.pong_type) == (CoreFrame.PING, CoreFrame.PONG)
    # The same byte, opposite directions: the reason why a connection has a dialect.
    assert int(SdkFrame.CANCEL_REQUEST) == int(CoreFrame.HEALTH_STATUS) == 0x30
