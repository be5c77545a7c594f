"""Frames that would be dear to decode are not decoded: they are unusable, not slow."""

from typing import Final

import pytest

from dialout import (
    Dialect,
    Ignored,
    RemoteProtocolError,
    Unreadable,
    UnreadableEvent,
    codec_for,
    parse_registration_response,
)
from dialout.proxy.wire import ProxyWireError, decode_from_proxy

FLOATS: Final = b"[" + b"1e308," * 9000 + b"1]"
NESTED: Final = b"[" * 9000 + b"]" * 9000
DIGITS: Final = b"9" * 9000
KEYS: Final = b"{" + b",".join(b'"%d":0' % number for number in range(11_000)) + b"}"
LISTS: Final = b"[" + b"[]," * 11_000 + b"0]"
COSTLY: Final = pytest.mark.parametrize(
    ("value", "reason"),
    [(FLOATS, "exponent"), (NESTED, "nesting"), (DIGITS, "digits"), (KEYS, "keys"), (LISTS, "arrays")],
    ids=["floats", "nesting", "digits", "keys", "lists"],
)
IDS: Final = {Dialect.SDK: (7, None), Dialect.CORE: (None, "c"), Dialect.DOCS: (7, "c")}
# In the place of: what is passed on, what the dialect does not look at, and what it knows nothing of.
PLACES: Final = [
    b'{"request_id":7,"correlation_id":"c","decision":"allow","audit":{"custom":{"x":%b}}}',
    b'{"request_id":7,"correlation_id":"c","decision":{"challenge":{"challenge_type":"x","params":{"x":%b}}}}',
    b'{"request_id":7,"correlation_id":"c","decision":"allow","other":%b}',
]


@COSTLY
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dialect", Dialect)
def test_costly_answer_is_unusable_and_its_request_is_known(
    dialect: Dialect, place: bytes, value: bytes, reason: str
) -> None:
    answer = codec_for(dialect).decode(0x20, place % value)
    assert isinstance(answer, Unreadable)
    assert "costly" in answer.reason
    assert reason in answer.reason
    request_id, correlation_id = IDS[dialect]
    assert (request_id, correlation_id) in {
        (answer.request_id, answer.correlation_id),
        (answer.request_id, None),
        (None, answer.correlation_id),
    }


@pytest.mark.parametrize("dialect", Dialect)
def test_key_that_is_written_again_and_again_is_costly_too(dialect: Dialect) -> None:
    payload = b'{"request_id":7,"decision":"allow","audit":{' + b'"confidence":1e308,' * 900 + b'"confidence":1}}'
    assert isinstance(codec_for(dialect).decode(0x20, payload), Unreadable)


def test_costly_ids_are_no_ids() -> None:
    for dialect in Dialect:
        found = codec_for(dialect).decode(0x20, b'{"request_id":%b,"correlation_id":%b,"audit":%b}' % (3 * (FLOATS,)))
        assert isinstance(found, Unreadable)
        assert (found.request_id, found.correlation_id) == (None, None)


@COSTLY
@pytest.mark.parametrize(
    ("dialect", "frame_type", "text"),
    [
        (Dialect.SDK, 0xE1, b'{"state":"healthy","x":%b}'),
        (Dialect.SDK, 0xE3, b'{"custom":%b}'),
        (Dialect.CORE, 0x30, b'{"state":1,"x":%b}'),
        (Dialect.CORE, 0x31, b'{"counters":%b}'),
        (Dialect.CORE, 0x32, b'{"update_type":{"type":"rule_update","x":%b}}'),
        (Dialect.CORE, 0x33, b'{"action":1,"x":%b}'),
        (Dialect.SDK, 0x21, b'{"x":%b}'),
    ],
)
def test_costly_news_is_ignored(dialect: Dialect, frame_type: int, text: bytes, value: bytes, reason: str) -> None:
    ignored = codec_for(dialect).decode(frame_type, text % value)
    assert isinstance(ignored, Ignored)
    assert reason in ignored.reason or "larger" in ignored.reason


@pytest.mark.parametrize("frame_type", [0x30, 0x31, 0x32, 0x33])
def test_report_above_its_limit_is_ignored(frame_type: int) -> None:
    ignored = codec_for(Dialect.CORE).decode(frame_type, b'{"message":"%b"}' % (b"x" * 65_536))
    assert isinstance(ignored, Ignored)
    assert "larger than 65536 bytes" in ignored.reason


@COSTLY
@pytest.mark.parametrize("frame_type", [0x10, 0x11, 0x12, 0x13, 0x17])
def test_agent_does_not_read_a_costly_event(frame_type: int, value: bytes, reason: str) -> None:
    event = b'{"request_id":7,"correlation_id":"c","config":%b}' % value
    for dialect in Dialect:
        if dialect is not Dialect.CORE and frame_type == 0x17:
            continue
        with pytest.raises(UnreadableEvent, match=reason):
            codec_for(dialect).decode_event(frame_type, event)


@COSTLY
def test_shard_does_not_read_a_costly_event_of_a_proxy(value: bytes, reason: str) -> None:
    header = bytes(7) + b"\x01" + bytes(5) + b"\x01a"
    with pytest.raises(ProxyWireError, match=reason) as raised:
        decode_from_proxy(0x17, header + b'{"config":%b}' % value)
    assert raised.value.request_id == 1


def test_ping_of_a_proxy_has_a_limit() -> None:
    decode_from_proxy(0xF0, bytes(1024))
    with pytest.raises(ProxyWireError, match="1024"):
        decode_from_proxy(0xF0, bytes(1025))


@COSTLY
def test_agent_does_not_read_a_costly_answer_to_its_registration(value: bytes, reason: str) -> None:
    with pytest.raises(RemoteProtocolError, match=reason):
        parse_registration_response(0x04, b'{"accepted":true,"config":{"x":%b}}' % value)
