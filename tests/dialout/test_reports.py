"""News about an agent: health, metrics, configuration, flow control."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialout import (
    ConfigUpdate,
    Dialect,
    FlowAction,
    FlowControl,
    FrameDecoder,
    Health,
    HealthState,
    Histogram,
    Ignored,
    LocalProtocolError,
    Metrics,
    NotInDialect,
    Pong,
    Sample,
    codec_for,
)

SDK, CORE, DOCS = map(codec_for, (Dialect.SDK, Dialect.CORE, Dialect.DOCS))
HEALTHY = Health(HealthState.HEALTHY)


def compact(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def read(codec: Any, frame: bytes) -> Any:
    [(frame_type, payload)] = FrameDecoder().feed(frame)
    return codec.decode(frame_type, payload)


# --- health ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (b"null", HEALTHY),
        (b'{"state":"healthy"}', HEALTHY),
        (b'{"state":"degraded","message":"slow"}', Health(HealthState.DEGRADED, "slow")),
        (b'{"state":"unhealthy","message":null,"checks":[]}', Health(HealthState.UNHEALTHY)),
    ],
)
def test_sdk_health_is_read(payload: bytes, expected: Health) -> None:
    assert SDK.decode(0xE1, payload) == expected


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ({"status": "healthy"}, HEALTHY),
        (
            {"status": "degraded", "disabled_features": ["x"], "timeout_multiplier": 2.0},
            Health(HealthState.DEGRADED),
        ),
        ({"status": "draining", "eta_ms": 5000}, Health(HealthState.DRAINING, None, 5000)),
        ({"status": "draining", "eta_ms": None}, Health(HealthState.DRAINING)),
        ({"status": "unhealthy", "reason": "oom", "recoverable": True}, Health(HealthState.UNHEALTHY, "oom")),
        *((state.value, Health(state)) for state in HealthState),
        (1, HEALTHY),
        (2, Health(HealthState.DEGRADED)),
        (3, Health(HealthState.DRAINING)),
        (4, Health(HealthState.UNHEALTHY)),
    ],
)
def test_core_health_is_read_in_each_of_its_forms(state: Any, expected: Health) -> None:
    assert CORE.decode(0x30, compact({"state": state})) == expected


def test_core_health_prefers_message_to_reason() -> None:
    state = {"status": "unhealthy", "reason": "oom"}
    assert CORE.decode(0x30, compact({"state": state, "message": ""})) == Health(HealthState.UNHEALTHY, "")


@pytest.mark.parametrize(
    "payload",
    [b"", b"{}", b"[]", b'{"state":"SECRET"}', b'{"state":0}', b'{"state":5}', b'{"state":true}', b'{"state":{}}'],
)
def test_health_of_no_known_kind_is_ignored_with_a_reason(payload: bytes) -> None:
    for codec, frame_type in ((SDK, 0xE1), (CORE, 0x30)):
        inbound = codec.decode(frame_type, payload)
        assert isinstance(inbound, Ignored)
        assert inbound.frame_type == frame_type
        assert inbound.reason
        assert "SECRET" not in inbound.reason


def test_sdk_agent_dates_its_health() -> None:
    frame = SDK.encode_health(HEALTHY, agent_id="a", timestamp_ms=1_767_322_445_007)
    assert frame[5:] == b'{"state":"healthy","timestamp":"2026-01-02T02:54:05.007Z"}'
    with pytest.raises(LocalProtocolError, match="milliseconds"):
        SDK.encode_health(HEALTHY, agent_id="a", timestamp_ms=10**30)


def test_health_that_a_dialect_cannot_say_is_refused() -> None:
    with pytest.raises(NotInDialect, match="draining"):
        SDK.encode_health(Health(HealthState.DRAINING), agent_id="a", timestamp_ms=0)
    with pytest.raises(NotInDialect, match="health"):
        DOCS.encode_health(HEALTHY, agent_id="a", timestamp_ms=0)


# --- metrics -----------------------------------------------------------------------------------------

values = st.integers(0, 2**53) | st.floats(0, allow_nan=False, allow_infinity=False)


@given(
    st.tuples(*[st.integers(0, 2**53)] * 4),
    st.tuples(*[values] * 3),
    st.dictionaries(st.text("abc", min_size=1, max_size=4), values, max_size=3),
)
def test_proxy_reads_every_sdk_metrics_report(
    counted: tuple[int, ...], measured: tuple[float, ...], custom: dict[str, float]
) -> None:
    counters = ("requests_total", "requests_allowed", "requests_blocked", "requests_errored")
    gauges = ("requests_active", "average_latency_ms", "uptime_seconds")
    metrics = Metrics(
        tuple(map(Sample, counters, counted)),
        tuple(map(Sample, gauges, measured)) + tuple(Sample(*item) for item in custom.items()),
    )
    frame = SDK.encode_metrics(metrics, agent_id="a", timestamp_ms=0)
    assert read(SDK, frame) == metrics


def test_sdk_metrics_leave_out_what_is_no_number() -> None:
    custom = {"n": 1.5, "text": "5", "flag": True, "list": [1], "requests_total": 9}
    report = {"requests_total": "many", "requests_allowed": None, "requests_active": True, "custom": custom}
    assert SDK.decode(0xE3, compact(report)) == Metrics((), (Sample("n", 1.5),))
    assert SDK.decode(0xE3, b'{"custom":[]}') == Metrics()


def test_sdk_agent_writes_all_that_the_sdk_always_writes() -> None:
    fields = json.loads(SDK.encode_metrics(Metrics(), agent_id="a", timestamp_ms=0)[5:])
    assert fields == {
        "requests_total": 0,
        "requests_allowed": 0,
        "requests_blocked": 0,
        "requests_errored": 0,
        "requests_active": 0,
        "average_latency_ms": 0,
        "uptime_seconds": 0,
        "timestamp": "1970-01-01T00:00:00.000Z",
    }


@pytest.mark.parametrize(
    "metrics",
    [
        Metrics((Sample("of_mine", 1),)),
        Metrics((Sample("requests_total", 1, {"a": "b"}),)),
        Metrics((), (Sample("g", 1, {"a": "b"}),)),
        Metrics((), (), (Histogram("h", 1.0, 1),)),
    ],
)
def test_metrics_that_sdk_cannot_say_are_refused(metrics: Metrics) -> None:
    with pytest.raises(NotInDialect):
        SDK.encode_metrics(metrics, agent_id="a", timestamp_ms=0)
    with pytest.raises(NotInDialect):
        DOCS.encode_metrics(metrics, agent_id="a", timestamp_ms=0)
    assert read(CORE, CORE.encode_metrics(metrics, agent_id="a", timestamp_ms=0)) == metrics


@pytest.mark.parametrize(("bound", "expected"), [("+Inf", math.inf), ("Inf", math.inf), ("0.5", 0.5), (2, 2.0)])
def test_bound_of_core_bucket_is_a_number_or_a_text(bound: Any, expected: float) -> None:
    histogram = {"name": "h", "sum": 1.0, "count": 2, "buckets": [{"le": bound, "count": 2}]}
    assert CORE.decode(0x31, compact({"histograms": [histogram]})) == Metrics(
        (), (), (Histogram("h", 1.0, 2, ((expected, 2),)),)
    )


@pytest.mark.parametrize(
    "report",
    [
        [],
        {"counters": {}},
        {"counters": [{"name": "n"}]},
        {"gauges": [{"name": 5, "value": 1}]},
        {"histograms": [{"name": "h", "sum": 1, "count": 1, "buckets": [{"le": "NaN", "count": 1}]}]},
        {"histograms": [{"name": "h", "sum": 1, "count": 1, "buckets": [{"le": "SECRET", "count": 1}]}]},
    ],
)
def test_metrics_that_cannot_be_read_are_ignored_with_a_reason(report: object) -> None:
    inbound = CORE.decode(0x31, compact(report))
    assert isinstance(inbound, Ignored)
    assert inbound.reason
    assert "SECRET" not in inbound.reason


# --- configuration and flow --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["request_reload", "rule_update", "list_update", "restart_required", "config_error"])
def test_config_update_is_read_with_all_that_came_with_it(kind: Any) -> None:
    payload = compact({"update_type": {"type": kind, "a": [1]}, "request_id": "upd-1", "timestamp_ms": 1})
    assert CORE.decode(0x32, payload) == ConfigUpdate(kind, "upd-1", {"a": [1]})


@pytest.mark.parametrize(
    "update",
    [{}, {"type": None}, {"type": "SECRET"}, {"type": ["request_reload"]}, "request_reload", {"type": 1}],
)
def test_config_update_of_no_known_kind_is_ignored(update: Any) -> None:
    inbound = CORE.decode(0x32, compact({"update_type": update, "request_id": "upd-1"}))
    assert isinstance(inbound, Ignored)
    assert "SECRET" not in inbound.reason


def test_config_update_nested_too_deeply_is_ignored() -> None:
    for levels, kind in ((63, ConfigUpdate), (64, Ignored)):
        nested = b"[" * levels + b"]" * levels
        payload = b'{"update_type":{"type":"rule_update","rules":%b},"request_id":"u"}' % nested
        assert type(CORE.decode(0x32, payload)) is kind


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        ({"type": "pause"}, FlowControl(FlowAction.PAUSE)),
        ({"type": "resume"}, FlowControl(FlowAction.RESUME)),
        ({"type": "update_capacity", "buffer_available": 9}, FlowControl(FlowAction.UPDATE_CAPACITY, None, 9)),
        ("pause", FlowControl(FlowAction.PAUSE)),
        ("resume", FlowControl(FlowAction.RESUME)),
        (1, FlowControl(FlowAction.PAUSE)),
        (2, FlowControl(FlowAction.RESUME)),
        (3, FlowControl(FlowAction.UPDATE_CAPACITY)),
    ],
)
def test_flow_control_is_read_in_each_of_its_forms(action: Any, expected: FlowControl) -> None:
    assert CORE.decode(0x33, compact({"action": action, "correlation_id": None})) == expected
    one = CORE.decode(0x33, compact({"action": action, "correlation_id": "c7"}))
    assert isinstance(one, FlowControl)
    assert one.correlation_id == "c7"


@pytest.mark.parametrize("action", [None, 0, 4, True, "stop", {}, {"type": "stop"}, [1]])
def test_flow_control_of_no_known_kind_changes_nothing(action: Any) -> None:
    assert isinstance(CORE.decode(0x33, compact({"action": action})), Ignored)


def test_flow_control_exists_in_core_only() -> None:
    for codec in (SDK, DOCS):
        with pytest.raises(NotInDialect, match="flow control"):
            codec.encode_flow_control(FlowControl(FlowAction.PAUSE), timestamp_ms=0)
        assert codec.decode(0x33, b'{"action":"pause"}') == Ignored(0x33)


# --- pongs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("payload", [b"", b"{}", b"null", b"[", b'{"timestamp":null,"sequence":null}', b'"x"'])
def test_pong_that_cannot_be_read_is_still_a_pong(payload: bytes) -> None:
    assert SDK.decode(0xF1, payload) == DOCS.decode(0xF1, payload) == CORE.decode(0x42, payload) == Pong(None, payload)
