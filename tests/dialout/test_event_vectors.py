"""The golden frames of an accepted connection: events out, answers and news in, and all that controls them."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from dialout import (
    ALLOW,
    ALLOWED,
    AgentEvent,
    Answer,
    Audit,
    Block,
    BodyMutation,
    Cancel,
    CancelAll,
    CancelReason,
    Challenge,
    Codec,
    ConfigUpdate,
    Configure,
    Decision,
    Dialect,
    FlowAction,
    FlowControl,
    GuardrailInspect,
    HeaderOp,
    Health,
    HealthRequest,
    HealthState,
    Histogram,
    Inbound,
    Metrics,
    MetricsRequest,
    NotUnderstood,
    Ping,
    Pong,
    Redirect,
    RequestBodyChunk,
    RequestComplete,
    RequestHeaders,
    RequestMetadata,
    ResponseBodyChunk,
    ResponseHeaders,
    Sample,
    WebSocketClose,
    WebSocketFrame,
    codec_for,
    pong_for,
)

VECTORS: dict[str, dict[str, Any]] = {
    vector["name"]: vector for vector in json.loads((Path(__file__).parent / "vectors.json").read_text())
}
DIALECTS = {"G": Dialect.SDK, "R": Dialect.CORE, "superset": Dialect.DOCS}
NOW = "2026-01-02T03:04:05Z"
MS = 1_767_322_445_000


def codec_of(name: str) -> Codec:
    return codec_for(DIALECTS[VECTORS[name]["dialect"]])


def frame_of(name: str) -> bytes:
    return bytes.fromhex(VECTORS[name]["hex"])


def parts_of(name: str) -> tuple[int, bytes]:
    return VECTORS[name]["type"], VECTORS[name]["json"].encode()


# --- what each vector says ---------------------------------------------------------------------------


def headers_event(correlation_id: str, **metadata: Any) -> RequestHeaders:
    known = RequestMetadata(correlation_id=correlation_id, client_ip="203.0.113.7", client_port=54321, **metadata)
    return RequestHeaders("GET", "/", {"host": ["api.example.com"]}, metadata=known)


# name: request id, correlation id, event. The sdk has a correlation id in the metadata of its headers only.
EVENTS: dict[str, tuple[int, str, AgentEvent]] = {
    "g_request_headers": (1, "corr-1", headers_event("corr-1")),
    "g_request_headers_body_follows": (
        7,
        "corr-7",
        RequestHeaders(
            "POST",
            "/api/users",
            {"content-type": ["application/json"], "cookie": ["a=1", "b=2"], "host": ["api.example.com"]},
            True,
            RequestMetadata(
                correlation_id="corr-7",
                client_ip="203.0.113.7",
                client_port=54321,
                server_name="api.example.com",
                protocol="HTTP/2",
                tls_version="TLSv1.3",
                route_id="api",
                upstream_id="backend",
                traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            ),
        ),
    ),
    "g_request_body_chunk": (7, "", RequestBodyChunk(0, b"hello ", False)),
    "g_request_body_chunk_last": (7, "", RequestBodyChunk(1, b"world", True)),
    "g_response_headers": (7, "", ResponseHeaders(200, {"content-type": ["text/html"]}, True)),
    "g_response_body_chunk": (7, "", ResponseBodyChunk(0, b"hi", False)),
    "g_response_body_chunk_last": (7, "", ResponseBodyChunk(1, b"hi", True)),
    "r_request_headers": (
        1,
        "c1",
        RequestHeaders(
            "GET",
            "/a",
            {},
            has_body=None,
            metadata=RequestMetadata(
                correlation_id="c1",
                client_ip="203.0.113.7",
                client_port=54321,
                request_id="req-1",
                route_id="api",
                server_name="api.example.com",
                timestamp=NOW,
            ),
        ),
    ),
    "r_request_body_chunk": (1, "c1", RequestBodyChunk(0, b"hi", True, None, 2)),
    "r_response_headers": (1, "c2", ResponseHeaders(200, {}, None)),
    "r_response_body_chunk": (1, "c2", ResponseBodyChunk(0, b"hi", True, None, 2)),
    "r_request_complete": (1, "corr-1", RequestComplete(200, 12, 5, 1024)),
    "r_websocket_frame": (1, "corr-1", WebSocketFrame("text", b"hi", True, 0, client_ip="203.0.113.7")),
    "r_guardrail_inspect": (1, "corr-1", GuardrailInspect("prompt_injection", "ignore previous")),
    "r_configure": (1, "cfg-1", Configure({"rules_version": "3.4.0"}, "3")),
    "s_request_headers": (
        7,
        "corr-1",
        headers_event("corr-1", request_id="corr-1", server_name="api.example.com", route_id="api", timestamp=NOW),
    ),
    "s_request_body_chunk": (7, "corr-1", RequestBodyChunk(0, b"hi", True, 2, 2)),
    "s_response_headers": (7, "corr-1", ResponseHeaders(200, {"content-type": ["text/html"]}, True)),
    "s_response_body_chunk": (7, "corr-1", ResponseBodyChunk(0, b"hi", True, 2, 2)),
}
WAF = Audit(("waf",), ("942100",), ("sqli",), 0.95, {"k": "v"})
BLOCK_JSON = '{"error":"\\u003cslow \\u0026 steady\\u003e"}'
JSON_HEADERS = {"Content-Type": "application/json", "Retry-After": "5"}
RESPONSES: dict[str, tuple[int, Decision]] = {
    "g_decision_allow": (1, ALLOWED),
    "g_decision_allow_header_op": (7, Decision(ALLOW, (HeaderOp.set("X-WAF-Inspected", "true"),))),
    "g_decision_allow_header_ops": (
        7,
        Decision(ALLOW, (HeaderOp.set("X-A", "1"), HeaderOp.remove("X-B")), (HeaderOp.set("X-C", ""),)),
    ),
    "g_decision_block": (2, Decision(Block(403, "Access denied"), audit=WAF)),
    "g_decision_block_json_body": (3, Decision(Block(429, BLOCK_JSON, JSON_HEADERS))),
    "g_decision_redirect": (4, Decision(Redirect("https://login.example.com/?next=/a&x=1"))),
    "g_decision_challenge": (5, Decision(Challenge("captcha", {"n": 5, "site_key": "abc"}))),
    "g_decision_challenge_no_params": (6, Decision(Challenge("captcha"))),
    "g_decision_needs_more": (7, Decision(None, needs_more=True)),
    "r_agent_response_allow": (0, ALLOWED),
    "r_agent_response_block": (0, Decision(Block(403, "no"))),
    "r_agent_response_redirect": (0, Decision(Redirect("https://e.example/login"))),
    "r_agent_response_challenge": (0, Decision(Challenge("captcha", {"type": "recaptcha"}))),
    "r_agent_response_needs_more": (0, Decision(None, needs_more=True)),
    "r_agent_response_header_ops": (
        0,
        Decision(ALLOW, (HeaderOp.set("x-a", "1"), HeaderOp.add("x-a", "2"), HeaderOp.remove("x-b"))),
    ),
    "r_agent_response_body_mutation": (0, Decision(ALLOW, request_body_mutation=BodyMutation(b"hi", 0))),
    "r_agent_response_body_drop": (0, Decision(ALLOW, response_body_mutation=BodyMutation(b"", 3))),
    "r_agent_response_ws_close": (0, Decision(ALLOW, websocket_decision=WebSocketClose(1008, "policy"))),
    "r_agent_response_min": (0, ALLOWED),
}
# Go escapes & in strings and the smallest answer leaves out what may be left out: read, and written otherwise.
WRITTEN_OTHERWISE = {"g_decision_redirect", "r_agent_response_min"}
SDK_COUNTERS = ("requests_total", "requests_allowed", "requests_blocked", "requests_errored")
NEWS: dict[str, Inbound] = {
    "g_decision_request_id_zero": NotUnderstood(),
    "g_pong": Pong(MS, b'{"timestamp":1767322445000}'),
    "g_health_response": Health(HealthState.HEALTHY, "operational"),
    "g_health_response_checks": Health(HealthState.DEGRADED, "ok"),
    "g_metrics_response": Metrics(
        tuple(Sample(name, 0) for name in SDK_COUNTERS),
        (
            Sample("requests_active", 0),
            Sample("average_latency_ms", 0),
            Sample("uptime_seconds", 2.813908282),
            Sample("waf_blocks_total", 2),
            Sample("waf_patterns_count", 10),
            Sample("waf_requests_total", 7),
        ),
    ),
    "r_health_status": Health(HealthState.HEALTHY),
    "r_health_status_unhealthy": Health(HealthState.UNHEALTHY, "oom"),
    "r_health_status_int": Health(HealthState.UNHEALTHY),
    "r_metrics_report": Metrics(
        (Sample("agent_requests_total", 5),),
        (Sample("agent_queue_depth", 1.5),),
        (Histogram("agent_requests_duration_seconds", 0.5, 2, ((0.1, 1), (math.inf, 2))),),
    ),
    "r_config_update_request": ConfigUpdate("request_reload", "upd-1"),
    "r_config_update_list": ConfigUpdate(
        "list_update", "upd-1", {"list_id": "blocklist", "add": ["1.2.3.4"], "remove": []}
    ),
    "r_flow_control_pause": FlowControl(FlowAction.PAUSE),
    "r_flow_control_resume": FlowControl(FlowAction.RESUME),
    "r_flow_control_pause_int": FlowControl(FlowAction.PAUSE),
    "r_pong": Pong(1, b'{"sequence":1,"timestamp_ms":1767322445000}'),
}
SDK, CORE = codec_for(Dialect.SDK), codec_for(Dialect.CORE)


def cancel(codec: Codec, correlation_id: str, reason: CancelReason) -> bytes:
    return codec.encode_cancel(request_id=1, correlation_id=correlation_id, reason=reason, timestamp_ms=MS)


# name: the frame as we make it, and what an agent reads.
CONTROLS: dict[str, tuple[bytes | None, Any]] = {
    "g_cancel_request": (
        cancel(SDK, "", CancelReason.CLIENT_DISCONNECT),
        (1, None, Cancel(CancelReason.CLIENT_DISCONNECT)),
    ),
    "g_cancel_all": (SDK.encode_cancel_all(), (None, None, CancelAll())),
    "g_cancel_all_reason": (
        SDK.encode_cancel_all(CancelReason.PROXY_SHUTDOWN),
        (None, None, CancelAll(CancelReason.PROXY_SHUTDOWN)),
    ),
    "g_health_request": (SDK.encode_health_request(), (None, None, HealthRequest())),
    "g_metrics_request": (SDK.encode_metrics_request(), (None, None, MetricsRequest())),
    "g_ping": (
        SDK.encode_ping(sequence=1, timestamp_ms=MS),
        (None, None, Ping(b'{"timestamp":1767322445000}')),
    ),
    "r_cancel": (
        cancel(CORE, "c4", CancelReason.CLIENT_DISCONNECT),
        (None, "c4", Cancel(CancelReason.CLIENT_DISCONNECT)),
    ),
    "r_cancel_shutdown": (
        cancel(CORE, "z1", CancelReason.PROXY_SHUTDOWN),
        (None, "z1", Cancel(CancelReason.PROXY_SHUTDOWN)),
    ),
    "r_ping": (
        CORE.encode_ping(sequence=1, timestamp_ms=MS),
        (None, None, Ping(b'{"sequence":1,"timestamp_ms":1767322445000}')),
    ),
}


# --- the tests ---------------------------------------------------------------------------------------


def test_every_vector_after_the_beginning_is_in_one_list() -> None:
    later = {
        name for name in VECTORS if not ("registration" in name or name.startswith(("x_", "s_accept", "s_reject")))
    }
    assert later == EVENTS.keys() | RESPONSES.keys() | NEWS.keys() | CONTROLS.keys()
    assert len(later) == len(EVENTS) + len(RESPONSES) + len(NEWS) + len(CONTROLS)
    assert len(VECTORS) == 95


@pytest.mark.parametrize(("name", "case"), EVENTS.items())
def test_proxy_writes_event_byte_for_byte_and_agent_reads_it(name: str, case: tuple[int, str, AgentEvent]) -> None:
    request_id, correlation_id, event = case
    codec = codec_of(name)
    frame = codec.encode_event(event, request_id=request_id, correlation_id=correlation_id, now="never written")
    assert frame == frame_of(name)
    ids = {
        Dialect.SDK: (request_id, None),
        Dialect.CORE: (None, correlation_id),
        Dialect.DOCS: (request_id, correlation_id),
    }
    assert codec.decode_event(*parts_of(name)) == (*ids[codec.dialect], event)


@pytest.mark.parametrize(("name", "case"), RESPONSES.items())
def test_proxy_reads_answer_and_agent_writes_it_byte_for_byte(name: str, case: tuple[int, Decision]) -> None:
    request_id, response = case
    codec = codec_of(name)
    correlation_id = None if request_id else "corr-1"
    assert codec.decode(*parts_of(name)) == Answer(request_id or None, correlation_id, response)
    written = codec.encode_answer(response, request_id=request_id, correlation_id=correlation_id)
    assert (written == frame_of(name)) is (name not in WRITTEN_OTHERWISE)


@pytest.mark.parametrize(("name", "expected"), NEWS.items())
def test_proxy_reads_news(name: str, expected: Inbound) -> None:
    assert codec_of(name).decode(*parts_of(name)) == expected


@pytest.mark.parametrize(("name", "case"), CONTROLS.items())
def test_proxy_writes_control_byte_for_byte_and_agent_reads_it(name: str, case: tuple[bytes | None, Any]) -> None:
    frame, received = case
    assert frame == frame_of(name)
    assert codec_of(name).decode_event(*parts_of(name)) == received


@pytest.mark.parametrize(("ping", "pong"), [("g_ping", "g_pong"), ("r_ping", "r_pong")])
def test_pong_answers_ping_byte_for_byte(ping: str, pong: str) -> None:
    assert pong_for(codec_of(ping).dialect, *parts_of(ping)) == frame_of(pong)


def test_agent_writes_core_news_byte_for_byte() -> None:
    healthy = CORE.encode_health(Health(HealthState.HEALTHY), agent_id="rust-waf", timestamp_ms=MS)
    assert healthy == frame_of("r_health_status")
    metrics = NEWS["r_metrics_report"]
    assert isinstance(metrics, Metrics)
    report = CORE.encode_metrics(metrics, agent_id="rust-waf", timestamp_ms=MS, interval_ms=10_000)
    assert report == frame_of("r_metrics_report")
    for name in ("r_flow_control_pause", "r_flow_control_resume"):
        flow = NEWS[name]
        assert isinstance(flow, FlowControl)
        assert CORE.encode_flow_control(flow, timestamp_ms=MS) == frame_of(name)
