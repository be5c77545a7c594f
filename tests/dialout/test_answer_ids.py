"""Whose answer it is: good ones find their request, bad ones fail the right one."""

import pytest

from dialout import (
    ALLOWED,
    Answer,
    BodyMutation,
    Dialect,
    Ignored,
    MutationAnswer,
    NotUnderstood,
    Unreadable,
    codec_for,
)

SDK, CORE, DOCS = map(codec_for, (Dialect.SDK, Dialect.CORE, Dialect.DOCS))


@pytest.mark.parametrize("request_id", [1, 2**53, 2**64 - 1])
def test_sdk_answer_belongs_to_its_number(request_id: int) -> None:
    payload = b'{"request_id":%d,"correlation_id":5,"decision":"allow"}' % request_id
    assert SDK.decode(0x20, payload) == Answer(request_id, None, ALLOWED)


@pytest.mark.parametrize("decision", ['"allow"', '{"block":{"status":403}}', '{"needs_more":true}'])
def test_sdk_answer_for_request_zero_says_that_a_frame_was_not_understood(decision: str) -> None:
    assert SDK.decode(0x20, f'{{"request_id":0,"decision":{decision}}}'.encode()) == NotUnderstood()
    assert DOCS.decode(0x20, f'{{"request_id":0,"decision":{decision}}}'.encode()) == NotUnderstood()


@pytest.mark.parametrize("request_id", ["null", '"7"', "-1", "7.0", "true", "18446744073709551616", "[7]"])
def test_sdk_answer_without_a_number_is_unreadable(request_id: str) -> None:
    payload = f'{{"request_id":{request_id},"decision":"allow"}}'.encode()
    for codec in (SDK, DOCS):
        inbound = codec.decode(0x20, payload)
        assert isinstance(inbound, Unreadable)
        assert inbound.request_id is None


def test_docs_answer_belongs_to_whichever_id_it_names() -> None:
    both = b'{"request_id":7,"correlation_id":"c7","decision":"allow"}'
    assert DOCS.decode(0x20, both) == Answer(7, "c7", ALLOWED)
    for number in (b"0", b"null", b'"7"'):
        text_only = b'{"request_id":%b,"correlation_id":"c7","decision":"allow"}' % number
        assert DOCS.decode(0x20, text_only) == Answer(None, "c7", ALLOWED)


def test_core_answer_belongs_to_the_text_in_its_audit_before_the_one_at_its_top() -> None:
    both = b'{"correlation_id":"top","request_id":"r","decision":"allow","audit":{"custom":{"correlation_id":"c7"}}}'
    assert CORE.decode(0x20, both) == Answer(None, "c7", ALLOWED)
    top = b'{"correlation_id":"top","decision":"allow"}'
    assert CORE.decode(0x20, top) == Answer(None, "top", ALLOWED)


@pytest.mark.parametrize("audit", [b"null", b"{}", b'{"custom":{}}', b'{"custom":{"correlation_id":""}}'])
def test_core_answer_without_a_text_is_unreadable(audit: bytes) -> None:
    inbound = CORE.decode(0x20, b'{"decision":"allow","request_id":7,"correlation_id":"","audit":%b}' % audit)
    assert isinstance(inbound, Unreadable)
    assert inbound.correlation_id is None


@pytest.mark.parametrize(
    ("payload", "request_id"),
    [
        (b'{"request_id":7,"decis', 7),
        (b' {\n"request_id" : 7 ,"decision":"allow"', 7),
        (b'{"request_id":7}}', 7),
        (b'{"request_id":7,"decision":"\xff"}', 7),
        (b'{"request_id":7,"x":' + b"[" * 100_000, 7),
        (b'{"request_id":77', None),
        (b'{"request_id":0,"decis', None),
        (b'{"request_id":99999999999999999999,"decis', None),
        (b'{"decision":{"block":{"body":{"request_id":7,"x', None),
        (b'{"audit":{"request_id":7},', None),
        (b"", None),
    ],
)
def test_number_is_dug_out_of_a_broken_sdk_answer(payload: bytes, request_id: int | None) -> None:
    inbound = SDK.decode(0x20, payload)
    assert isinstance(inbound, Unreadable)
    assert inbound.request_id == request_id


@pytest.mark.parametrize(
    ("payload", "correlation_id"),
    [
        (b'{"version":2,"decision":"allow","audit":{"custom":{"correlation_id":"c7"}},', "c7"),
        (b'{"audit":{"custom":{"correlation_id" : "c7","deep":' + b"[" * 100_000, "c7"),
        (b'{"correlation_id":"c7","audit":{"custom":{"correlation_id":"c7"', "c7"),
        (b'{"correlation_id":"c8","audit":{"custom":{"correlation_id":"c7"', None),
        (b'{"decision":{"block":{"body":"\\"correlation_id\\":\\"c8\\"","status":403', None),
        (b'{"correlation_id":"c', None),
        (b'{"correlation_id":"","x', None),
    ],
)
def test_text_is_dug_out_of_a_broken_core_answer(payload: bytes, correlation_id: str | None) -> None:
    inbound = CORE.decode(0x20, payload)
    assert isinstance(inbound, Unreadable)
    assert inbound.correlation_id == correlation_id


# --- body mutations in a frame of their own ----------------------------------------------------------


def test_mutation_frame_answers_a_chunk_when_it_names_request_and_chunk() -> None:
    for codec in (SDK, DOCS):
        payload = b'{"request_id":7,"chunk_index":3,"data":"aGk="}'
        assert codec.decode(0x21, payload) == MutationAnswer(7, BodyMutation(b"hi", 3))
        assert codec.decode(0x21, b'{"request_id":7,"chunk_index":0}') == MutationAnswer(7, BodyMutation(None, 0))
    assert CORE.decode(0x21, b'{"request_id":7,"chunk_index":3,"data":"aGk="}') == Ignored(0x21)


@pytest.mark.parametrize(
    "payload",
    [b'{"request_id":7,"data":"aGk="}', b'{"request_id":7,"chunk_index":0,"data":"aGk"}', b'{"request_id":7,"chu'],
)
def test_mutation_frame_that_names_its_request_only_fails_it(payload: bytes) -> None:
    inbound = SDK.decode(0x21, payload)
    assert isinstance(inbound, Unreadable)
    assert (inbound.frame_type, inbound.request_id) == (0x21, 7)


@pytest.mark.parametrize("payload", [b"", b"{}", b'{"data":"aGk="}', b'{"request_id":0,"chunk_index":0}', b"["])
def test_mutation_frame_that_names_no_request_is_ignored(payload: bytes) -> None:
    inbound = SDK.decode(0x21, payload)
    assert isinstance(inbound, Ignored)
    assert inbound.reason
