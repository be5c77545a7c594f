"""Every golden frame that goes to an agent, sent to ours over a real socket, and what comes back.

What an agent should answer is in the vectors' own words and in the dialects' rules: one answer for each event under the
ids that it came with, none for a cancel, a pong with the ping's own bytes, reports when asked. What the SDK's own agent
does wrongly (an "allow" for request 0 to whatever it does not know) is not done.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from support.scripted_proxy import Peer, run, scripted_proxy

from dialout import (
    Agent,
    Cancel,
    CancelReason,
    Configure,
    Decision,
    Dialect,
    GuardrailInspect,
    RegistrationError,
    Request,
    RequestBodyChunk,
    RequestComplete,
    RequestHeaders,
    ResponseBodyChunk,
    ResponseHeaders,
    WebSocketFrame,
    connect_to_proxy,
    encode_frame,
)

VECTORS: dict[str, dict[str, Any]] = {
    vector["name"]: vector
    for vector in json.loads((Path(__file__).parents[1] / "vectors.json").read_text())
    if vector["direction"] == "proxy->agent"
}
DIALECTS = {"G": (Dialect.SDK,), "R": (Dialect.CORE,), "superset": (Dialect.SDK, Dialect.CORE, Dialect.DOCS)}
ANSWERS_TO_REGISTRATIONS = sorted(name for name, vector in VECTORS.items() if vector["type"] in (0x02, 0x04))
FRAMES = sorted(
    (name, dialect)
    for name, vector in VECTORS.items()
    for dialect in DIALECTS[vector["dialect"]]
    if name not in ANSWERS_TO_REGISTRATIONS
)


class Recording(Agent):
    """Has every hook, notes what it is told, asks for more after a chunk that is not the last, and allows the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[str, object, Request]] = []

    def _note(self, name: str, event: object, request: Request) -> Decision:
        self.told.append((name, event, request))
        unfinished = isinstance(event, RequestBodyChunk | ResponseBodyChunk) and not event.is_last
        return Decision.more() if unfinished else Decision.allow()

    def on_request_headers(self, event: RequestHeaders, request: Request) -> Decision:
        """Note it."""
        return self._note("request_headers", event, request)

    async def on_request_body(self, event: RequestBodyChunk, request: Request) -> Decision:
        """Note it."""
        return self._note("request_body", event, request)

    def on_response_headers(self, event: ResponseHeaders, request: Request) -> Decision:
        """Note it."""
        return self._note("response_headers", event, request)

    async def on_response_body(self, event: ResponseBodyChunk, request: Request) -> Decision:
        """Note it."""
        return self._note("response_body", event, request)

    def on_request_complete(self, event: RequestComplete, request: Request) -> None:
        """Note it."""
        self._note("request_complete", event, request)

    def on_websocket_frame(self, event: WebSocketFrame, request: Request) -> Decision:
        """Note it."""
        return self._note("websocket_frame", event, request)

    def on_guardrail(self, event: GuardrailInspect, request: Request) -> Decision:
        """Note it."""
        return self._note("guardrail", event, request)

    def on_configure(self, event: Configure, request: Request) -> None:
        """Note it."""
        self._note("configure", event, request)

    def on_cancel(self, event: Cancel, request: Request) -> None:
        """Note it."""
        self._note("cancel", event, request)


HOOKS = {
    0x10: "request_headers", 0x11: "request_body", 0x12: "response_headers", 0x13: "response_body",
    0x14: "request_complete", 0x15: "websocket_frame", 0x16: "guardrail", 0x17: "configure",
}  # fmt: skip
CANCELS = {(Dialect.SDK, 0x30), (Dialect.CORE, 0x40)}
CANCELS_OF_EVERYTHING = {(Dialect.SDK, 0x31)}


def answers_to(name: str, dialect: Dialect) -> list[tuple[int, dict[str, Any]]]:
    """What must come back, worked out from the text of the frame alone."""
    vector = VECTORS[name]
    kind, sent = vector["type"], json.loads(vector["json"])
    if kind == dialect.ping_type:
        return [(dialect.pong_type, sent)]
    if kind == 0xE0:
        return [(0xE1, {"state": "healthy"})]
    if kind == 0xE2:
        return [(0xE3, {"requests_total": 0, "requests_active": 0, "requests_errored": 0})]
    if kind not in HOOKS:
        return []
    more = sent.get("is_last") is False
    if dialect is Dialect.CORE:
        core = {"version": 2, "decision": "allow", "needs_more": more}
        return [(0x20, core | {"audit.custom.correlation_id": sent["correlation_id"]})]
    decision: Any = {"needs_more": True} if more else "allow"
    return [(0x20, {"request_id": sent["request_id"], "decision": decision})]


def part_of(payload: bytes, expected: dict[str, Any]) -> dict[str, Any]:
    """The keys of an answer that something is expected of; a key with dots leads into it."""
    found = {}
    for key in expected:
        value = json.loads(payload)
        for step in key.split("."):
            value = value[step]
        found[key] = value
    return found


@pytest.mark.parametrize(("name", "dialect"), FRAMES)
def test_agent_answers_a_golden_frame_as_it_should(name: str, dialect: Dialect) -> None:
    agent, vector = Recording(), VECTORS[name]
    expected = answers_to(name, dialect)
    came: list[tuple[int, bytes]] = []

    async def script(peer: Peer) -> None:
        await peer.accept()
        peer.send(bytes.fromhex(vector["hex"]))
        # The pong says that everything before it was served.
        peer.send(encode_frame(dialect.ping_type, b'{"sequence":77777,"timestamp":77777}'))
        while (frame := await peer.frame()) is not None:
            if frame[0] == dialect.pong_type and b"77777" in frame[1]:
                break
            came.append(frame)
        while len(came) < len(expected):
            frame = await peer.frame()
            assert frame is not None
            came.append(frame)

    async def main() -> None:
        async with scripted_proxy(script) as proxy:
            connection = await connect_to_proxy(proxy.address, "waf-1", dialect=dialect, ping_interval=0)
            await connection.serve(agent)

    run(main())
    assert [kind for kind, _ in came] == [kind for kind, _ in expected]
    for (_, payload), (_, fields) in zip(came, expected, strict=True):
        assert part_of(payload, fields) == fields
    check_hooks(agent, vector, dialect)


def check_hooks(agent: Recording, vector: dict[str, Any], dialect: Dialect) -> None:
    """The agent's hook was told, under the right ids, and no other."""
    kind, sent = vector["type"], json.loads(vector["json"])
    if (dialect, kind) in CANCELS:
        ((hook, event, request),) = agent.told
        assert hook == "cancel"
        assert isinstance(event, Cancel)
        reason = sent["reason"]
        assert event.reason == (reason if isinstance(reason, int) else CancelReason[reason.upper()])
    elif kind in HOOKS:
        ((hook, event, request),) = agent.told
        assert hook == HOOKS[kind]
        for key in ("uri", "method", "is_last", "chunk_index", "opcode", "content", "config", "duration_ms"):
            if key in sent:
                assert getattr(event, key) == sent[key]
    else:
        assert agent.told == []
        return
    assert request.request_id == (None if dialect is Dialect.CORE else sent["request_id"])
    if dialect is Dialect.CORE:
        assert request.correlation_id == sent["correlation_id"]


@pytest.mark.parametrize("name", ANSWERS_TO_REGISTRATIONS)
def test_agent_takes_a_golden_answer_to_its_registration(name: str) -> None:
    vector = VECTORS[name]
    sent = json.loads(vector["json"])
    dialect = Dialect.SDK if vector["type"] == 0x04 else Dialect.CORE

    async def script(peer: Peer) -> None:
        await peer.register()
        peer.send(bytes.fromhex(vector["hex"]))
        await peer.end()

    async def main() -> None:
        async with scripted_proxy(script) as proxy:
            if sent.get("accepted", sent.get("success")):
                connection = await connect_to_proxy(proxy.address, "waf-1", dialect=dialect)
                assert connection.connection_id == (sent.get("assigned_id") or sent.get("connection_id") or "waf-1")
                assert connection.response.config == sent.get("config")
                connection.close()
                await connection.wait_closed()
            else:
                with pytest.raises(RegistrationError) as raised:
                    await connect_to_proxy(proxy.address, "waf-1", dialect=dialect)
                assert sent["error"] in str(raised.value)

    run(main())


def test_every_vector_for_agents_is_played() -> None:
    assert {name for name, _ in FRAMES} | set(ANSWERS_TO_REGISTRATIONS) == set(VECTORS)
    assert len(VECTORS) == 41
