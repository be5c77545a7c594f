"""Read and build the reports of agents about themselves: health, metrics, configuration, flow control.

Readers return None for a report of an unknown kind, and raise for one that cannot be read. Such reports have no effect.
The crate's agents do not always write the form that its own reader expects. So the readers accept every form: health is
an object, a string or a number.
"""

import math
from datetime import UTC, datetime
from typing import Annotated, Any, Final

from msgspec import Meta, Struct
from msgspec.json import Decoder

from dialout.errors import LocalProtocolError, NotInDialect
from dialout.inbound import (
    ConfigUpdate,
    ConfigUpdateKind,
    FlowAction,
    FlowControl,
    Health,
    HealthState,
    Histogram,
    Metrics,
    Sample,
)
from dialout.nesting import is_too_deep

__all__ = [
    "core_config_error",
    "core_flow_control",
    "core_health",
    "core_metrics",
    "read_config_update",
    "read_core_health",
    "read_core_metrics",
    "read_flow_control",
    "read_sdk_health",
    "read_sdk_metrics",
    "sdk_health",
    "sdk_metrics",
]

_U64 = Annotated[int, Meta(ge=0)]


def rfc3339(timestamp_ms: int) -> str:
    """Format a Unix time in milliseconds as RFC 3339, in UTC."""
    try:
        moment = datetime.fromtimestamp(timestamp_ms / 1000, UTC)
    except (OverflowError, OSError, ValueError) as error:
        raise LocalProtocolError(f"{timestamp_ms} is not a time in milliseconds: {error}") from error
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


# --- health ------------------------------------------------------------------------------------------


class _SdkHealth(Struct, gc=False):
    state: str
    message: str | None = None


class _CoreState(Struct, gc=False):
    status: str
    reason: str | None = None
    eta_ms: _U64 | None = None


class _CoreHealth(Struct, gc=False):
    state: _CoreState | str | int
    message: str | None = None


_decode_sdk_health = Decoder(_SdkHealth | None).decode
_decode_core_health = Decoder(_CoreHealth).decode
_STATES: Final = {state.value: state for state in HealthState}
_STATE_BY_NUMBER: Final = dict(enumerate(HealthState, start=1))


def read_sdk_health(payload: bytes) -> Health | None:
    """Read the payload of 0xE1. ``null`` comes from an agent that is up and has nothing to report."""
    wire = _decode_sdk_health(payload)
    if wire is None:
        return Health(HealthState.HEALTHY)
    state = _STATES.get(wire.state)
    return None if state is None else Health(state, wire.message)


def read_core_health(payload: bytes) -> Health | None:
    """Read the payload of 0x30. The state is a tagged object, a string, or a number from 1 to 4."""
    wire = _decode_core_health(payload)
    if isinstance(wire.state, int):
        state = _STATE_BY_NUMBER.get(wire.state)
        return None if state is None else Health(state, wire.message)
    if isinstance(wire.state, str):
        state = _STATES.get(wire.state)
        return None if state is None else Health(state, wire.message)
    state = _STATES.get(wire.state.status)
    if state is None:
        return None
    message = (wire.state.reason or None) if wire.message is None else wire.message
    return Health(state, message, wire.state.eta_ms)


def sdk_health(health: Health, timestamp_ms: int) -> dict[str, Any]:
    """Build the payload of 0xE1. Raises NotInDialect for a draining agent."""
    if health.state is HealthState.DRAINING:
        raise NotInDialect("sdk agents cannot say that they are draining")
    message = {} if health.message is None else {"message": health.message}
    return {"state": health.state.value, **message, "timestamp": rfc3339(timestamp_ms)}


def core_health(health: Health, agent_id: str, timestamp_ms: int) -> dict[str, Any]:
    """Build the payload of 0x30, in the crate's struct form."""
    state: dict[str, Any] = {"status": health.state.value}
    if health.state is HealthState.DEGRADED:
        state |= {"disabled_features": [], "timeout_multiplier": 1.0}
    elif health.state is HealthState.DRAINING:
        state["eta_ms"] = health.eta_ms
    elif health.state is HealthState.UNHEALTHY:
        state |= {"reason": health.message or "", "recoverable": True}
    return {
        "agent_id": agent_id,
        "state": state,
        "message": health.message,
        "load": None,
        "resources": None,
        "valid_until_ms": None,
        "timestamp_ms": timestamp_ms,
    }


# --- metrics -----------------------------------------------------------------------------------------

_SDK_COUNTERS: Final = ("requests_total", "requests_allowed", "requests_blocked", "requests_errored")
_SDK_GAUGES: Final = (
    "requests_active",
    "average_latency_ms",
    "p50_latency_ms",
    "p95_latency_ms",
    "p99_latency_ms",
    "uptime_seconds",
)
_SDK_NAMES: Final = frozenset(_SDK_COUNTERS + _SDK_GAUGES)
_SDK_ALWAYS: Final = (*_SDK_COUNTERS, "requests_active", "average_latency_ms", "uptime_seconds")


class _CoreSample(Struct, gc=False):
    name: str
    value: float
    labels: dict[str, str] | None = None


class _CoreBucket(Struct, gc=False):
    le: float | str
    count: _U64


class _CoreHistogram(Struct, gc=False):
    name: str
    sum: float
    count: _U64
    buckets: list[_CoreBucket] | None = None
    labels: dict[str, str] | None = None


class _CoreMetrics(Struct, gc=False):
    counters: list[_CoreSample] | None = None
    gauges: list[_CoreSample] | None = None
    histograms: list[_CoreHistogram] | None = None


_decode_object = Decoder(dict[str, Any]).decode
_decode_core_metrics = Decoder(_CoreMetrics).decode


def _is_number(value: object) -> bool:
    return type(value) is float or type(value) is int


def read_sdk_metrics(payload: bytes) -> Metrics:
    """Read the payload of 0xE3. Values that are not numbers are left out."""
    wire = _decode_object(payload)
    custom = wire.get("custom")
    measured = [name for name in _SDK_GAUGES if _is_number(wire.get(name))]
    gauges = [Sample(name, wire[name]) for name in measured]
    if type(custom) is dict:
        free = [name for name, value in custom.items() if _is_number(value) and name not in _SDK_NAMES]
        gauges += [Sample(name, custom[name]) for name in free]
    counted = [name for name in _SDK_COUNTERS if _is_number(wire.get(name))]
    return Metrics(tuple(Sample(name, wire[name]) for name in counted), tuple(gauges))


def read_core_metrics(payload: bytes) -> Metrics:
    """Read the payload of 0x31. Raises ValueError for a bucket bound that is not a number."""
    wire = _decode_core_metrics(payload)
    return Metrics(
        tuple(Sample(one.name, one.value, one.labels or {}) for one in wire.counters or ()),
        tuple(Sample(one.name, one.value, one.labels or {}) for one in wire.gauges or ()),
        tuple(
            Histogram(
                one.name,
                one.sum,
                one.count,
                tuple((_bound(bucket.le), bucket.count) for bucket in one.buckets or ()),
                one.labels or {},
            )
            for one in wire.histograms or ()
        ),
    )


def _bound(text: float | str) -> float:
    try:
        bound = float(text)
    except ValueError:
        bound = math.nan
    if math.isnan(bound):
        raise ValueError("the bound of a histogram bucket is not a number")
    return bound


def sdk_metrics(metrics: Metrics, timestamp_ms: int) -> dict[str, Any]:
    """Build the payload of 0xE3. The SDK's own names stand at the top, other gauges under ``custom``.

    Raises NotInDialect for a counter of another name, for labels and for histograms.
    """
    if metrics.histograms or any(one.labels for one in (*metrics.counters, *metrics.gauges)):
        raise NotInDialect("sdk agents can report neither histograms nor labels")
    if not all(one.name in _SDK_COUNTERS for one in metrics.counters):
        raise NotInDialect(f"sdk agents have these counters: {', '.join(_SDK_COUNTERS)}")
    values = {one.name: one.value for one in (*metrics.counters, *metrics.gauges)}
    fields: dict[str, Any] = {name: values.pop(name, 0) for name in _SDK_ALWAYS}
    fields |= {name: values.pop(name) for name in _SDK_GAUGES if name in values}
    if values:
        fields["custom"] = values
    return fields | {"timestamp": rfc3339(timestamp_ms)}


def core_metrics(metrics: Metrics, agent_id: str, timestamp_ms: int, interval_ms: int) -> dict[str, Any]:
    """Build the payload of 0x31."""
    return {
        "agent_id": agent_id,
        "timestamp_ms": timestamp_ms,
        "interval_ms": interval_ms,
        "counters": [{"name": one.name, "labels": one.labels, "value": int(one.value)} for one in metrics.counters],
        "gauges": [{"name": one.name, "labels": one.labels, "value": one.value} for one in metrics.gauges],
        "histograms": [
            {
                "name": one.name,
                "labels": one.labels,
                "sum": one.sum,
                "count": one.count,
                "buckets": [{"le": "+Inf" if le == math.inf else le, "count": count} for le, count in one.buckets],
            }
            for one in metrics.histograms
        ],
    }


# --- configuration and flow --------------------------------------------------------------------------


class _ConfigUpdate(Struct):
    update_type: dict[str, Any]
    request_id: str | None = None


class _Action(Struct, gc=False):
    type: str
    buffer_available: _U64 | None = None


class _FlowControl(Struct, gc=False):
    action: _Action | str | int
    correlation_id: str | None = None


_decode_config_update = Decoder(_ConfigUpdate).decode
_decode_flow_control = Decoder(_FlowControl).decode
_CONFIG_KINDS: Final[dict[str, ConfigUpdateKind]] = {
    "request_reload": "request_reload",
    "rule_update": "rule_update",
    "list_update": "list_update",
    "restart_required": "restart_required",
    "config_error": "config_error",
}
_ACTIONS: Final = {action.value: action for action in FlowAction}
_ACTION_BY_NUMBER: Final = dict(enumerate(FlowAction, start=1))


def read_config_update(payload: bytes) -> ConfigUpdate | None:
    """Read the payload of 0x32."""
    wire = _decode_config_update(payload)
    tag = wire.update_type.pop("type", None)
    kind = _CONFIG_KINDS.get(tag) if type(tag) is str else None
    if kind is None or is_too_deep(payload, wire.update_type):
        return None
    return ConfigUpdate(kind, wire.request_id or "", wire.update_type)


def core_config_error(error: str, timestamp_ms: int) -> dict[str, Any]:
    """Build the payload of 0x32 for a configuration that cannot be applied, in the crate's struct form."""
    update = {"type": "config_error", "error": error, "field": None}
    return {"request_id": f"config-error-{timestamp_ms}", "timestamp_ms": timestamp_ms, "update_type": update}


def read_flow_control(payload: bytes) -> FlowControl | None:
    """Read the payload of 0x33. The action is a tagged object, a string, or a number from 1 to 3."""
    wire = _decode_flow_control(payload)
    available = None
    if isinstance(wire.action, int):
        action = _ACTION_BY_NUMBER.get(wire.action)
    elif isinstance(wire.action, str):
        action = _ACTIONS.get(wire.action)
    else:
        action, available = _ACTIONS.get(wire.action.type), wire.action.buffer_available
    return None if action is None else FlowControl(action, wire.correlation_id, available)


def core_flow_control(flow: FlowControl, timestamp_ms: int) -> dict[str, Any]:
    """Build the payload of 0x33, in the crate's struct form."""
    action: dict[str, Any] = {"type": flow.action.value}
    if flow.action is FlowAction.UPDATE_CAPACITY:
        action["buffer_available"] = flow.buffer_available or 0
    return {"correlation_id": flow.correlation_id, "action": action, "timestamp_ms": timestamp_ms}
