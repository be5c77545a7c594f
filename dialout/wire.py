"""What one dialect is made of: a table of functions that ``dialout.codec`` calls, one table for each."""

from collections.abc import Callable
from typing import Any, Final, TypeAlias

import msgspec
from msgspec import Struct

from dialout.bodies import body_by_headers
from dialout.capabilities import Capabilities, Event
from dialout.decisions import Decision
from dialout.dialects import Dialect
from dialout.errors import LocalProtocolError
from dialout.events import (
    AgentEvent,
    Cancel,
    CancelAll,
    CancelReason,
    HealthRequest,
    MetricsRequest,
    RequestHeaders,
    ResponseHeaders,
)
from dialout.inbound import FlowControl, Health, Ignored, Inbound, Metrics
from dialout.received import WireIds
from dialout.responses import READ_ERRORS, why
from dialout.scan import refuse_costly

__all__ = [
    "MAX_REPORT",
    "Reader",
    "Wire",
    "Writer",
    "checked",
    "checked_size",
    "encode_json",
    "has_body",
    "report_reader",
]

Writer: TypeAlias = Callable[[Any, int, str, str], Struct]
"""(event, request id, correlation id, now) to the struct that is the payload."""

Reader: TypeAlias = Callable[[bytes], Inbound]
"""A payload to what it says; never raises."""


class Wire(Struct, frozen=True, kw_only=True):
    """One dialect. None stands for a frame that it does not have."""

    dialect: Dialect

    # The proxy's side.
    writers: dict[type[AgentEvent], Writer]
    readers: dict[int, Reader]
    receivable: Callable[[Capabilities], Event]
    check_ids: Callable[[int, str], None]
    cancel: Callable[[int, str, CancelReason, int], bytes]
    cancel_all: Callable[[CancelReason | None], bytes] | None = None
    ping: Callable[[int, int], bytes]
    ping_mark: Callable[[int, int], int]
    health_request: bytes | None = None
    metrics_request: bytes | None = None

    # The agent's side.
    answer: Callable[[Decision, int | None, str | None], bytes]
    health: Callable[[Health, str, int], bytes] | None = None
    metrics: Callable[[Metrics, str, int, int], bytes] | None = None
    flow_control: Callable[[FlowControl, int], bytes] | None = None
    config_error: Callable[[str, int], bytes] | None = None
    controls: dict[int, type[Cancel | CancelAll | HealthRequest | MetricsRequest]]
    ids_of: Callable[[WireIds], tuple[int | None, str | None]]


_WRITE_ERRORS: Final = (TypeError, ValueError, OverflowError, RecursionError)
_encode = msgspec.json.Encoder().encode


def encode_json(value: object) -> bytes:
    """JSON text; LocalProtocolError for what has none (a lone surrogate, an object of our own)."""
    try:
        return _encode(value)
    except _WRITE_ERRORS as error:
        raise LocalProtocolError(f"this cannot be written as JSON: {error}") from error


def checked(name: str, value: int, bits: int) -> int:
    """``value``, if it fits that many bits unsigned; agents refuse the whole frame otherwise."""
    if 0 <= value < 1 << bits:
        return value
    raise LocalProtocolError(f"{name} is {value}, it must be 0 to {(1 << bits) - 1}")


def checked_size(name: str, value: int | None) -> int | None:
    """``checked`` for a number of bytes that may be unknown."""
    return None if value is None else checked(name, value, 64)


MAX_REPORT: Final = 64 * 1024
"""Bytes of a report: health, metrics, a word about configuration. A thousand series of metrics take about as many."""

_SCANNED_ABOVE: Final = 256


def has_body(event: RequestHeaders | ResponseHeaders) -> bool:
    """Whether to say that a body follows, for a dialect that has no word for "unknown"."""
    return body_by_headers(event.headers) is True if event.has_body is None else event.has_body


def report_reader(frame_type: int, read: Callable[[bytes], Inbound | None]) -> Reader:
    """A reader of news about the agent; what ``read`` cannot read, or finds unknown (None), is Ignored.

    So is what has more than ``MAX_REPORT`` bytes, and what would be dear to decode.
    """

    def reader(payload: bytes) -> Inbound:
        if len(payload) > MAX_REPORT:
            return Ignored(frame_type, f"larger than {MAX_REPORT} bytes")
        try:
            refuse_costly(payload, _SCANNED_ABOVE)
            return read(payload) or Ignored(frame_type, "of no known kind")
        except READ_ERRORS as error:
            return Ignored(frame_type, why(error))

    return reader
