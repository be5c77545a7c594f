"""Answers: every form that agents write, and nothing that could be an allow by accident."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialout import (
    ALLOW,
    ALLOWED,
    Answer,
    Audit,
    Block,
    BodyMutation,
    Challenge,
    Decision,
    Dialect,
    HeaderOp,
    Redirect,
    Unreadable,
    WebSocketClose,
    codec_for,
)

SDK, CORE, DOCS = map(codec_for, (Dialect.SDK, Dialect.CORE, Dialect.DOCS))
NEEDS_MORE = Decision(None, needs_more=True)


def answer(**fields: Any) -> bytes:
    """An answer that names its request in every dialect's way."""
    audit = fields.pop("audit", {})
    if type(audit) is dict:
        audit = audit | {"custom": (audit.get("custom") or {}) | {"correlation_id": "c7"}}
    return json.dumps({"request_id": 7, **fields, "audit": audit}).encode()


def read_core(payload: bytes) -> Decision:
    inbound = CORE.decode(0x20, payload)
    assert isinstance(inbound, Answer), inbound
    assert (inbound.request_id, inbound.correlation_id) == (None, "c7")
    return inbound.response


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"decision": "allow"}, ALLOWED),
        ({"decision": {"allow": None}}, ALLOWED),
        ({"decision": {"block": {"status": 403}}}, Decision(Block(403))),
        (
            {"decision": {"block": {"status": 100, "body": None, "headers": None, "more": 1}}},
            Decision(Block(100)),
        ),
        ({"decision": {"block": {"status": 599, "headers": {}}}}, Decision(Block(599, None, {}))),
        ({"decision": {"redirect": {"status": 302, "url": "/"}}}, Decision(Redirect("/"))),
        ({"decision": {"challenge": {"challenge_type": "js"}}}, Decision(Challenge("js"))),
        (
            {"decision": {"challenge": {"challenge_type": "js", "params": {"n": [1, None]}}}},
            Decision(Challenge("js", {"n": [1, None]})),
        ),
        # more is needed, in all its forms; the allow beside it is a placeholder
        ({"decision": {"needs_more": True}}, NEEDS_MORE),
        ({"decision": {"needs_more": True}, "needs_more": False}, NEEDS_MORE),
        ({"decision": "allow", "needs_more": True}, NEEDS_MORE),
        ({"decision": {"allow": None}, "needs_more": True}, NEEDS_MORE),
        ({"decision": None, "needs_more": True}, NEEDS_MORE),
        ({"needs_more": True}, NEEDS_MORE),
        ({"decision": {"block": {"status": 403}}, "needs_more": True}, Decision(Block(403), needs_more=True)),
        # null is the same as absent
        (
            {
                "decision": "allow",
                "request_headers": None,
                "response_headers": None,
                "routing_metadata": None,
                "needs_more": None,
                "request_body_mutation": None,
                "response_body_mutation": None,
                "websocket_decision": None,
                "audit": {"tags": None, "rule_ids": None, "reason_codes": None, "confidence": None},
            },
            ALLOWED,
        ),
        # header changes, flat and tagged, even in one answer
        (
            {"decision": "allow", "request_headers": [{"operation": "add", "name": "A", "value": ""}]},
            Decision(ALLOW, (HeaderOp.add("A", ""),)),
        ),
        (
            {
                "decision": "allow",
                "request_headers": [{"set": {"name": "A", "value": "1"}}, {"remove": {"name": "B"}}],
                "response_headers": [{"operation": "remove", "name": "C", "value": "ignored"}],
            },
            Decision(ALLOW, (HeaderOp.set("A", "1"), HeaderOp.remove("B")), (HeaderOp.remove("C"),)),
        ),
        (
            {"decision": "allow", "response_headers": [{"add": {"name": "A", "value": "1"}}]},
            Decision(ALLOW, (), (HeaderOp.add("A", "1"),)),
        ),
        # body mutations: pass through, drop, replace
        (
            {"decision": "allow", "request_body_mutation": {"data": None}},
            Decision(ALLOW, request_body_mutation=BodyMutation(None, 0)),
        ),
        (
            {"decision": "allow", "response_body_mutation": {"data": "", "chunk_index": 3}},
            Decision(ALLOW, response_body_mutation=BodyMutation(b"", 3)),
        ),
        (
            {"decision": "allow", "response_body_mutation": {"data": "aGk="}},
            Decision(ALLOW, response_body_mutation=BodyMutation(b"hi", 0)),
        ),
        ({"decision": "allow", "websocket_decision": "allow"}, Decision(ALLOW, websocket_decision="allow")),
        ({"decision": "allow", "websocket_decision": "drop"}, Decision(ALLOW, websocket_decision="drop")),
        (
            {"decision": "allow", "websocket_decision": {"close": {"code": 1008, "reason": "policy"}}},
            Decision(ALLOW, websocket_decision=WebSocketClose(1008, "policy")),
        ),
        (
            {"decision": "allow", "routing_metadata": {"pool": "b"}},
            Decision(ALLOW, routing_metadata={"pool": "b"}),
        ),
        (
            {"decision": "allow", "audit": {"confidence": 1, "tags": ["a"], "custom": {"k": [1]}}},
            Decision(ALLOW, audit=Audit(("a",), confidence=1.0, custom={"k": [1]})),
        ),
        ({"decision": "allow", "of_tomorrow": {"deny": True}, "version": 3}, ALLOWED),
    ],
)
def test_answer_is_read_in_each_of_its_forms(fields: dict[str, Any], expected: Decision) -> None:
    assert read_core(answer(**fields)) == expected


UNUSABLE: list[dict[str, Any]] = [
    {},
    {"decision": None},
    {"decision": ""},
    {"decision": "Allow"},
    {"decision": "allow "},
    {"decision": "block"},
    {"decision": "needs_more"},
    {"decision": {}},
    {"decision": True},
    {"decision": 0},
    {"decision": ["allow"]},
    {"decision": {"allow": {}}},
    {"decision": {"allow": True}},
    {"decision": {"Allow": None}},
    {"decision": {"needs_more": False}},
    {"decision": {"needs_more": 1}},
    {"decision": {"allow": None, "block": {"status": 403}}},
    {"decision": {"allow": None, "quarantine": {}}},
    {"decision": {"quarantine": {}}},
    {"decision": {"block": None}},
    {"decision": {"block": {}}},
    {"decision": {"block": {"status": None}}},
    {"decision": {"block": {"status": 99}}},
    {"decision": {"block": {"status": 600}}},
    {"decision": {"block": {"status": 403.0}}},
    {"decision": {"block": {"status": "403"}}},
    {"decision": {"block": {"status": True}}},
    {"decision": {"block": {"status": 10**30}}},
    {"decision": {"block": {"status": 403, "body": 5}}},
    {"decision": {"block": {"status": 403, "headers": [["a", "b"]]}}},
    {"decision": {"redirect": {"url": "/"}}},
    {"decision": {"redirect": {"status": 302}}},
    {"decision": {"redirect": {"url": "/", "status": 0}}},
    {"decision": {"challenge": {}}},
    {"decision": {"challenge": {"challenge_type": None}}},
    {"decision": "allow", "needs_more": "yes"},
    {"decision": "allow", "audit": []},
    {"decision": "allow", "audit": {"tags": [1]}},
    {"decision": "allow", "audit": {"confidence": "high"}},
    {"decision": "allow", "routing_metadata": {"a": 1}},
    {"decision": "allow", "request_headers": {}},
    {"decision": "allow", "request_headers": [{}]},
    {"decision": "allow", "request_headers": [None]},
    {"decision": "allow", "request_headers": [{"operation": "set", "name": "A"}]},
    {"decision": "allow", "request_headers": [{"operation": "set", "value": "A"}]},
    {"decision": "allow", "request_headers": [{"operation": "append", "name": "A", "value": "1"}]},
    {"decision": "allow", "request_headers": [{"append": {"name": "A", "value": "1"}}]},
    {"decision": "allow", "request_headers": [{"set": {"name": "A"}}]},
    {"decision": "allow", "request_headers": [{"remove": {}}]},
    {
        "decision": "allow",
        "request_headers": [{"set": {"name": "A", "value": "1"}, "remove": {"name": "A"}}],
    },
    {
        "decision": "allow",
        "request_headers": [{"operation": "x", "name": "A", "set": {"name": "A", "value": "1"}}],
    },
    {"decision": "allow", "request_body_mutation": "aGk="},
    {"decision": "allow", "request_body_mutation": {"data": "aGk"}},
    {"decision": "allow", "request_body_mutation": {"data": "a-_="}},
    {"decision": "allow", "request_body_mutation": {"data": "", "chunk_index": -1}},
    {"decision": "allow", "request_body_mutation": {"data": "", "chunk_index": 2**32}},
    {"decision": "allow", "websocket_decision": "close"},
    {"decision": "allow", "websocket_decision": {}},
    {"decision": "allow", "websocket_decision": {"close": {"reason": "x"}}},
    {"decision": "allow", "websocket_decision": {"close": {"code": 2**16}}},
    {"decision": "allow", "websocket_decision": {"close": {"code": 1000}, "drop": {"code": 1000}}},
]


@pytest.mark.parametrize("fields", UNUSABLE, ids=repr)
def test_unusable_answer_names_its_request_in_every_dialect(fields: dict[str, Any]) -> None:
    # An audit that is no object cannot name a request; everywhere else it does.
    payload = answer(**fields)
    named = None if fields.get("audit") == [] else "c7"
    for codec in (SDK, CORE, DOCS):
        inbound = codec.decode(0x20, payload)
        assert isinstance(inbound, Unreadable), inbound
        assert (inbound.frame_type, inbound.request_id, inbound.correlation_id) == (0x20, 7, named)
        assert inbound.reason


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(0, 600) | st.text(max_size=6) | st.sampled_from(["allow", "block"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["allow", "block", "needs_more", "status", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.sampled_from([SDK, CORE, DOCS]), json_values, json_values)
def test_nothing_but_the_two_spellings_is_an_allow(codec: Any, decision: Any, needs_more: Any) -> None:
    inbound = codec.decode(0x20, answer(decision=decision, needs_more=needs_more))
    spelled = decision in ("allow", {"allow": None}) and (needs_more is None or needs_more is False)
    assert (isinstance(inbound, Answer) and inbound.response.verdict == ALLOW) is spelled


def test_last_of_duplicate_keys_counts_unless_an_earlier_one_is_of_the_wrong_type() -> None:
    twice = b'{"request_id":7,"decision":"allow","decision":{"block":{"status":403}}}'
    assert SDK.decode(0x20, twice) == Answer(7, None, Decision(Block(403)))
    inner = b'{"request_id":7,"decision":{"block":{"status":403},"block":{"status":451}}}'
    assert SDK.decode(0x20, inner) == Answer(7, None, Decision(Block(451)))
    ids = b'{"request_id":8,"request_id":7,"decision":"allow"}'
    assert SDK.decode(0x20, ids) == Answer(7, None, ALLOWED)
    wrong = b'{"request_id":7,"decision":5,"decision":"allow"}'
    assert isinstance(SDK.decode(0x20, wrong), Unreadable)


def test_bare_allow_is_always_the_same_object() -> None:
    plain = b'{"request_id":1,"decision":"allow"}'
    for codec, payload in ((SDK, plain), (DOCS, plain), (CORE, answer(decision="allow", request_headers=[]))):
        inbound = codec.decode(0x20, payload)
        assert isinstance(inbound, Answer)
        assert inbound.response is ALLOWED


def test_core_audit_keeps_the_rest_of_custom() -> None:
    response = read_core(answer(decision="allow", audit={"custom": {"k": 1}}))
    assert response.audit.custom == {"k": 1}


# --- what must not get through -----------------------------------------------------------------------


@pytest.mark.parametrize(("levels", "readable"), [(64, True), (65, False), (900, False)])
@pytest.mark.parametrize("place", ["custom", "params"])
def test_values_nested_deeper_than_others_can_read_are_refused(place: str, levels: int, readable: bool) -> None:
    # The object itself is the first level.
    value = b"[" * (levels - 1) + b"]" * (levels - 1)
    payload = {
        "custom": b'{"request_id":7,"decision":"allow","audit":{"custom":{"a":%b}}}',
        "params": b'{"request_id":7,"decision":{"challenge":{"challenge_type":"js","params":{"a":%b}}}}',
    }[place] % value
    inbound = SDK.decode(0x20, payload)
    assert isinstance(inbound, Answer) is readable
    if not readable:
        assert isinstance(inbound, Unreadable)
        assert inbound.request_id == 7


@pytest.mark.parametrize(
    "payload",
    [
        b'{"request_id":7,"decision":"SECRET"}',
        b'{"request_id":7,"decision":{"SECRET":1}}',
        b'{"request_id":7,"decision":{"block":{"status":"SECRET"}}}',
        b'{"request_id":7,"decision":"allow","routing_metadata":{"SECRET":1}}',
        b'{"request_id":7,"decision":"allow","websocket_decision":{"SECRET":{}}}',
        b'{"request_id":7,"decision":"allow","request_headers":[{"operation":"SECRET"}]}',
        b'{"request_id":7,"decision":"allow","request_body_mutation":{"data":"SECRET"}}',
        b'{"request_id":7,"decision":"SECRET\xff"}',
        b'{"request_id":7,"decision":SECRET}',
    ],
)
def test_reason_repeats_nothing_that_the_agent_wrote(payload: bytes) -> None:
    inbound = SDK.decode(0x20, payload)
    assert isinstance(inbound, Unreadable)
    assert "SECRET" not in inbound.reason


BAD_TEXTS = ["a\r\nset-cookie: x=1", "a\nb", "a\rb", "a\0b"]
BAD_NAMES = ["", "x y", "x:", ":path", "x\r\ny", "x\0", "é", "x\t"]


@pytest.mark.parametrize("dialect", Dialect)
@pytest.mark.parametrize(
    "rest",
    [
        *(
            {"request_headers": [{"operation": deed, "name": name, "value": "v"}]}
            for deed in ("set", "add")
            for name in BAD_NAMES
        ),
        *({"response_headers": [{"operation": "remove", "name": name}]} for name in BAD_NAMES),
        *({"response_headers": [{"set": {"name": "x", "value": text}}]} for text in BAD_TEXTS),
        *({"decision": {"block": {"status": 403, "headers": {name: "v"}}}} for name in BAD_NAMES),
        *({"decision": {"block": {"status": 403, "headers": {"x": text}}}} for text in BAD_TEXTS),
        *({"decision": {"redirect": {"status": 302, "url": text}}} for text in [*BAD_TEXTS, "a b"]),
        *({"decision": {"challenge": {"challenge_type": text}}} for text in [*BAD_TEXTS, "a b"]),
        *({"decision": {"challenge": {"challenge_type": "a", "params": {"p": [text]}}}} for text in BAD_TEXTS),
        *({"decision": {"challenge": {"challenge_type": "a", "params": {text: "v"}}}} for text in BAD_TEXTS),
        *({"routing_metadata": {"pool": text}} for text in BAD_TEXTS),
    ],
    ids=repr,
)
def test_answer_that_would_write_a_broken_header_is_no_answer(dialect: Dialect, rest: dict[str, object]) -> None:
    ids = {"request_id": 7, "correlation_id": "c", "audit": {"custom": {"correlation_id": "c"}}}
    payload = json.dumps({"decision": "allow", **ids, **rest}).encode()
    found = codec_for(dialect).decode(0x20, payload)
    assert isinstance(found, Unreadable)
    assert found.correlation_id == "c" or found.request_id == 7, "it fails the request that it names"
    assert "cookie" not in found.reason
    assert found.is_echo, "a client may have brought it about"
