"""Decisions as programs read them, and as agents write them."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from dialout import (
    ALLOW,
    ALLOWED,
    NO_AUDIT,
    Allow,
    Audit,
    Block,
    BodyMutation,
    Challenge,
    Decision,
    Dialect,
    HeaderOp,
    LocalProtocolError,
    NotInDialect,
    Redirect,
    Verdict,
    WebSocketClose,
    codec_for,
    to_json_value,
)

SDK, CORE, DOCS = map(codec_for, (Dialect.SDK, Dialect.CORE, Dialect.DOCS))


@pytest.mark.parametrize(
    ("decision", "expected"),
    [
        (Allow(), "allow"),
        (None, {"needs_more": True}),
        (Block(403), {"block": {"status": 403}}),
        (Block(403, "", {}), {"block": {"status": 403, "body": "", "headers": {}}}),
        (Redirect("/login"), {"redirect": {"url": "/login", "status": 302}}),
        (Challenge("js"), {"challenge": {"challenge_type": "js"}}),
        (Challenge("js", {"n": 5}), {"challenge": {"challenge_type": "js", "params": {"n": 5}}}),
    ],
)
def test_decision_for_programs_names_itself_in_one_key(decision: Verdict | None, expected: Any) -> None:
    assert to_json_value(decision) == expected
    json.dumps(expected)


WRONG: list[Callable[[], object]] = [
    lambda: Decision.block(403, b"no"),  # type: ignore[arg-type]
    lambda: Decision.block("403"),  # type: ignore[arg-type]
    lambda: Decision.block(True),
    lambda: Decision.block(403, "no", [("x-a", "1")]),  # type: ignore[arg-type]
    lambda: Decision.block(403, "no", {"x-a": 1}),  # type: ignore[dict-item]
    lambda: Decision.block(403, "no", {b"x-a": "1"}),  # type: ignore[dict-item]
    lambda: Decision.redirect(b"/"),  # type: ignore[arg-type]
    lambda: Decision.redirect("/", "302"),  # type: ignore[arg-type]
    lambda: Decision.challenge(1),  # type: ignore[arg-type]
    lambda: Decision.challenge("js", "params"),  # type: ignore[arg-type]
    lambda: Decision.allow().set_request_header("x", 5),  # type: ignore[arg-type]
    lambda: Decision.allow().add_response_header(b"x", "5"),  # type: ignore[arg-type]
    lambda: Decision.allow().remove_request_header(None),  # type: ignore[arg-type]
    lambda: Decision.allow().replace_request_chunk("text"),  # type: ignore[arg-type]
    lambda: Decision.allow().replace_response_chunk(b"", "0"),  # type: ignore[arg-type]
    lambda: Decision.allow().with_audit(tags="sqli"),
    lambda: Decision.allow().with_audit(rule_ids=(1,)),
    lambda: Decision.allow().with_audit(confidence="high"),
    lambda: Decision.allow().with_audit(custom=[1]),
    lambda: Decision.allow().with_audit(reason="no such field"),
    lambda: Decision("allow"),  # type: ignore[arg-type]
    lambda: Decision(True),  # type: ignore[arg-type]
    lambda: Decision(Block),  # type: ignore[arg-type]
    lambda: Decision(ALLOWED),  # type: ignore[arg-type]
    lambda: Decision(ALLOW, ({"name": "x"},)),  # type: ignore[arg-type]
    lambda: Decision(ALLOW, HeaderOp.remove("x")),  # type: ignore[arg-type]
    lambda: Decision(ALLOW, request_body_mutation=b"new"),  # type: ignore[arg-type]
    lambda: Decision(ALLOW, websocket_decision="close"),  # type: ignore[arg-type]
    lambda: Decision(ALLOW, audit={"tags": ["a"]}),  # type: ignore[arg-type]
    lambda: Decision(ALLOW, routing_metadata={"shard": 1}),  # type: ignore[dict-item]
    lambda: Decision(None, needs_more="yes"),  # type: ignore[arg-type]
    lambda: WebSocketClose("1000", "bye"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize("write", WRONG)
def test_value_of_a_wrong_type_is_refused_where_it_is_written(write: Callable[[], object]) -> None:
    with pytest.raises(TypeError):
        write()


BROKEN: list[Callable[[str], object]] = [
    lambda text: Decision.allow().set_request_header(text, "v"),
    lambda text: Decision.allow().add_request_header("x", text),
    lambda text: Decision.allow().set_response_header("x", text),
    lambda text: Decision.allow().add_response_header(text, "v"),
    lambda text: Decision.allow().remove_response_header(text),
    lambda text: Decision.block(403, None, {text: "v"}),
    lambda text: Decision.block(403, None, {"x": text}),
    lambda text: Decision.redirect("/a" + text),
    lambda text: HeaderOp("set", "x", text),
    lambda text: Decision.challenge("Basic", {"realm": text}),
    lambda text: Decision.challenge("Basic", {text: "v"}),
    lambda text: Decision.challenge("Basic", {"realms": ["a", {"b": text}]}),
    lambda text: Decision(ALLOW, routing_metadata={"pool": text}),
]


@pytest.mark.parametrize("write", BROKEN)
@pytest.mark.parametrize("text", ["\r\nset-cookie: a=b", "a\n", "\ra", "a\0b"])
def test_header_that_would_end_early_is_refused_where_it_is_written(write: Callable[[str], object], text: str) -> None:
    with pytest.raises(ValueError, match=r"header|redirect|challenge|routing"):
        write(text)


def test_header_change_of_no_known_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="one of set, add and remove"):
        HeaderOp("replace", "x", "v")  # type: ignore[arg-type]


def test_mutation_that_names_no_chunk_is_refused_by_the_codec_which_knows_no_event() -> None:
    with pytest.raises(LocalProtocolError, match="chunk_index"):
        CORE.encode_answer(ALLOWED.replace_request_chunk(b""), correlation_id="c7")


def test_bare_allow_is_a_response_that_says_nothing_else() -> None:
    assert Decision(ALLOW) == ALLOWED
    assert ALLOWED.audit is NO_AUDIT
    assert Audit() == NO_AUDIT
    assert Decision(ALLOW, (HeaderOp.remove("a"),)) != ALLOWED
    assert Decision(None, needs_more=True) != ALLOWED


@pytest.mark.parametrize(
    "response",
    [
        Decision(None),
        Decision(Block(99)),
        Decision(Block(600)),
        Decision(Redirect("/", 0)),
        Decision(ALLOW, (HeaderOp("set", "a"),)),
        Decision(ALLOW, (), (HeaderOp("add", "a"),)),
        Decision(ALLOW, (HeaderOp("remove", "a", "b"),)),
        Decision(Block(403, "\ud800")),
        Decision(ALLOW, audit=Audit(custom={"a": object()})),
    ],
)
def test_answer_that_no_proxy_could_use_is_refused(response: Decision) -> None:
    for codec in (SDK, CORE, DOCS):
        with pytest.raises(LocalProtocolError):
            codec.encode_answer(response, request_id=7, correlation_id="c7")


@pytest.mark.parametrize(
    ("codec", "response"),
    [
        (SDK, Decision(ALLOW, request_body_mutation=BodyMutation())),
        (SDK, Decision(ALLOW, response_body_mutation=BodyMutation(b""))),
        (SDK, Decision(ALLOW, routing_metadata={"a": "b"})),
        (SDK, Decision(ALLOW, websocket_decision="drop")),
        (SDK, Decision(Block(403), needs_more=True)),
        (DOCS, Decision(ALLOW, websocket_decision=WebSocketClose(1000, ""))),
        (CORE, Decision(Challenge("js", {"n": 5}))),
    ],
)
def test_what_a_dialect_cannot_say_is_refused_and_not_dropped(codec: Any, response: Decision) -> None:
    with pytest.raises(NotInDialect):
        codec.encode_answer(response, request_id=7, correlation_id="c7")


@pytest.mark.parametrize(
    ("codec", "response"),
    [
        (CORE, Decision(ALLOW, request_body_mutation=BodyMutation(b"", 2**32))),
        (DOCS, Decision(ALLOW, response_body_mutation=BodyMutation(b"", -1))),
        (CORE, Decision(ALLOW, websocket_decision=WebSocketClose(2**16, ""))),
        (CORE, Decision(ALLOW, audit=Audit(custom={"correlation_id": "mine"}))),
    ],
)
def test_value_that_would_not_come_back_is_refused(codec: Any, response: Decision) -> None:
    with pytest.raises(LocalProtocolError):
        codec.encode_answer(response, request_id=7, correlation_id="c7")


@pytest.mark.parametrize(
    ("codec", "ids"),
    [
        (SDK, {"correlation_id": "c7"}),
        (SDK, {"request_id": 0}),
        (DOCS, {"correlation_id": "c7"}),
        (DOCS, {"request_id": 2**64}),
        (CORE, {"request_id": 7}),
        (CORE, {"request_id": 7, "correlation_id": ""}),
    ],
)
def test_answer_to_nothing_is_refused(codec: Any, ids: dict[str, Any]) -> None:
    with pytest.raises(LocalProtocolError):
        codec.encode_answer(ALLOWED, **ids)


@pytest.mark.parametrize("correlation_id", ["c7", 'a"b\\', "\u00fc", "\u2028"])
def test_bare_allow_of_core_agent_is_what_the_general_writer_makes(correlation_id: str) -> None:
    bare = CORE.encode_answer(ALLOWED, correlation_id=correlation_id)[5:]
    tagged = CORE.encode_answer(Decision(ALLOW, audit=Audit(("t",))), correlation_id=correlation_id)[5:]
    assert bare == tagged.replace(b'"tags":["t"]', b'"tags":[]')


def test_bare_allow_of_sdk_agent_is_what_the_general_writer_makes() -> None:
    bare = SDK.encode_answer(ALLOWED, request_id=7)[5:]
    tagged = SDK.encode_answer(Decision(ALLOW, audit=Audit(("t",))), request_id=7)[5:]
    assert bare == tagged.replace(b',"audit":{"tags":["t"]}', b"")
