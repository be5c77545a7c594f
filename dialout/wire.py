"""The parts of one dialect: a table of functions that ``dialout.codec`` calls. Each dialect has its table."""

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
"""Takes (event, request id, correlation id, now) and returns the struct that is the payload."""

Reader: TypeAlias = Callable[[bytes], Inbound]
"""Takes a payload and returns its message. Never raises."""


class Wire(Struct, frozen=True, kw_only=True):
    """One dialect. None means that it does not have the frame."""

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
    """Encode as JSON. Raises LocalProtocolError for values without a JSON form (lone surrogates, unknown types)."""
    try:
        return _encode(value)
    except _WRITE_ERRORS as error:
        raise LocalProtocolError(f"this cannot be written as JSON: {error}") from error


def checked(name: str, value: int, bits: int) -> int:
    """Return ``value`` if it fits that many bits unsigned. Otherwise raise LocalProtocolError.

    Agents refuse the whole frame for a value that does not fit.
    """
    if 0 <= value < 1 << bits:
        return value
    raise LocalProtocolError(f"{name} is {value}, it must be 0 to {(1 << bits) - 1}")


def checked_size(name: str, value: int | None) -> int | None:
    """Do the same as ``checked`` for a number of bytes that may be None, which means unknown."""
    return None if value is None else checked(name, value, 64)


MAX_REPORT: Final = 64 * 1024
"""The most bytes of a report: health, metrics, configuration or flow control. 1,000 metric series need about that."""

_SCANNED_ABOVE: Final = 256


def has_body(event: RequestHeaders | ResponseHeaders) -> bool:
    """Whether to announce a body, for a dialect that cannot say "unknown". Most callers look at the event first."""
    return body_by_headers(event.headers) is True if event.has_body is None else event.has_body


def report_reader(frame_type: int, read: Callable[[bytes], Inbound | None]) -> Reader:
    """Make a reader of reports about the agent. It returns Ignored if ``read`` fails, or returns None.

    It also ignores a report that has more than ``MAX_REPORT`` bytes, or that is expensive to decode.
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
