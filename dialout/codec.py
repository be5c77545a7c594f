"""Encode events and decode answers in the dialect of an agent, and the reverse for the agent itself.

How the dialects differ on the wire (each has a module, ``wire_sdk`` and so on):

===============  =========================  ============================  =======================
subject          sdk                        core                          docs
===============  =========================  ============================  =======================
a request is     ``request_id``, a number   ``correlation_id``, a text    either of them
events           the first four             all eight                     the first four
header changes   flat                       tagged                        flat
needs_more       is a decision              beside the decision           beside the decision
body mutations   none                       in the answer                 in the answer, or 0x21
cancel           text reason; one for all   number reason, one by one     like sdk
health, metrics  asked for                  sent unasked                  none
flow control     none                       sent unasked                  none
===============  =========================  ============================  =======================
"""

from typing import Final, TypeAlias

from dialout.capabilities import Capabilities, Event
from dialout.decisions import Decision
from dialout.dialects import Dialect, with_draining
from dialout.errors import LocalProtocolError, NotInDialect, UnreadableEvent
from dialout.events import AgentEvent, Cancel, CancelAll, CancelReason, FromProxy
from dialout.frames import HEADER, MAX_FRAME_LENGTH
from dialout.inbound import FlowControl, Health, Ignored, Inbound, Metrics, Ping, Pong
from dialout.received import read_event, read_ids, read_request
from dialout.responses import READ_ERRORS, why
from dialout.wire import Wire, encode_json
from dialout.wire_core import CORE
from dialout.wire_docs import DOCS
from dialout.wire_sdk import SDK

__all__ = ["Codec", "codec_for"]

_Received: TypeAlias = tuple[int | None, str | None, FromProxy | Ping | Pong | Ignored]


class Codec:
    """One dialect, for both ends of a connection. It has no state, so connections share it.

    Encoders return whole frames. They raise LocalProtocolError for values that an agent would refuse. They raise its
    subclass NotInDialect for messages that the dialect does not have. ``decode`` never raises. ``decode_event`` raises
    UnreadableEvent only.
    """

    __slots__ = ("_event_types", "_readers", "_wire", "_writers", "dialect")

    def __init__(self, wire: Wire) -> None:
        self.dialect = wire.dialect
        self._wire = wire
        self._writers = wire.writers
        self._readers = wire.readers
        self._event_types = frozenset(kind.frame_type for kind in wire.writers)

    # --- the proxy's side ---

    def receivable_events(self, capabilities: Capabilities) -> Event:
        """Return the mask of the events that may be sent to an agent with these capabilities.

        Unlike ``Capabilities.events`` it excludes frames that the dialect does not have. For core agents it also
        applies the features that gate body chunks, WebSocket frames, guardrails and configuration.
        """
        return self._wire.receivable(capabilities)

    def can_receive(self, event: AgentEvent | type[AgentEvent] | Event, capabilities: Capabilities) -> bool:
        """Whether this event (an event, its class or its flag) may be sent to an agent with these capabilities."""
        flag = event if isinstance(event, Event) else event.flag
        return flag & self._wire.receivable(capabilities) == flag

    def encode_event(self, event: AgentEvent, *, request_id: int, correlation_id: str, now: str) -> bytes:
        """Encode an event as one frame, in the form that real peers of this dialect write.

        ``request_id`` is 1 to 2**64 - 1, best below 2**53. It must be unique over the life of an sdk agent's process.
        ``correlation_id`` must be unique among the unanswered events of a core connection. Each dialect writes the
        ids that it has. ``now`` (RFC 3339) replaces an empty ``timestamp``.
        """
        write = self._writers.get(type(event))
        if write is None:
            raise NotInDialect(f"the {self.dialect} dialect has no frame for {type(event).__name__}")
        self._wire.check_ids(request_id, correlation_id)
        payload = encode_json(write(event, request_id, correlation_id, now))
        length = len(payload) + 1
        if length > MAX_FRAME_LENGTH:
            raise LocalProtocolError(f"an event of {length - 1} bytes of JSON does not fit into a frame of 16 MiB")
        # The same as encode_frame without its other checks. This runs for each of 60,000 requests a second.
        return HEADER.pack(length, event.frame_type) + payload

    def encode_cancel(self, *, request_id: int, correlation_id: str, reason: CancelReason, timestamp_ms: int) -> bytes:
        """Encode the cancel of one request. Send it only to agents with ``cancellation`` in their capabilities.

        The answer to the cancelled event may arrive nevertheless.
        """
        self._wire.check_ids(request_id, correlation_id)
        return self._wire.cancel(request_id, correlation_id, reason, timestamp_ms)

    def encode_cancel_all(self, reason: CancelReason | None = None) -> bytes | None:
        """Encode the cancel of all requests. Returns None for core, where each request needs a cancel of its own.

        An sdk agent also drops the requests of its other connections.
        """
        return self._wire.cancel_all(reason) if self._wire.cancel_all else None

    def encode_ping(self, *, sequence: int, timestamp_ms: int, draining: bool = False) -> bytes:
        """Encode a ping. Its pong carries ``ping_mark``, so each ping of a connection needs another mark.

        With ``draining`` the ping also says that the agent drains; see ``dialout.dialects.with_draining``.
        """
        frame = self._wire.ping(sequence, timestamp_ms)
        return with_draining(frame) if draining else frame

    def ping_mark(self, *, sequence: int, timestamp_ms: int) -> int:
        """Return the ``Pong.mark`` to expect: the sequence (core), or the timestamp, the only field of the others."""
        return self._wire.ping_mark(sequence, timestamp_ms)

    def encode_health_request(self) -> bytes | None:
        """Encode the request for ``Health``. Returns None if the dialect has no such frame."""
        return self._wire.health_request

    def encode_metrics_request(self) -> bytes | None:
        """Encode the request for ``Metrics``. Returns None if the dialect has no such frame."""
        return self._wire.metrics_request

    def decode(self, frame_type: int, payload: bytes) -> Inbound:
        """Read a frame from an agent. Never raises, for any type and any bytes."""
        read = self._readers.get(frame_type)
        return Ignored(frame_type) if read is None else read(payload)

    # --- the agent's side ---

    def encode_answer(
        self, response: Decision, *, request_id: int | None = None, correlation_id: str | None = None
    ) -> bytes:
        """Encode the answer to one event. The ids are the ones that ``decode_event`` returned with the event."""
        return self._wire.answer(response, request_id, correlation_id)

    def encode_health(self, health: Health, *, agent_id: str, timestamp_ms: int) -> bytes:
        """Encode a health report. sdk agents send it on request, core agents unsolicited."""
        if self._wire.health is None:
            raise NotInDialect(f"the {self.dialect} dialect has no health frame")
        return self._wire.health(health, agent_id, timestamp_ms)

    def encode_metrics(self, metrics: Metrics, *, agent_id: str, timestamp_ms: int, interval_ms: int = 0) -> bytes:
        """Encode a metrics report. sdk agents send it on request, core agents every ``interval_ms``."""
        if self._wire.metrics is None:
            raise NotInDialect(f"the {self.dialect} dialect has no metrics frame")
        return self._wire.metrics(metrics, agent_id, timestamp_ms, interval_ms)

    def encode_config_error(self, error: str, *, timestamp_ms: int) -> bytes:
        """Encode the report that a configuration cannot be applied. Only core has this frame."""
        if self._wire.config_error is None:
            raise NotInDialect(f"the {self.dialect} dialect has no word for a configuration that cannot be applied")
        return self._wire.config_error(error, timestamp_ms)

    def encode_flow_control(self, flow: FlowControl, *, timestamp_ms: int) -> bytes:
        """Encode a flow control message. Only core has this frame; other agents just read more slowly."""
        if self._wire.flow_control is None:
            raise NotInDialect(f"the {self.dialect} dialect has no flow control frame")
        return self._wire.flow_control(flow, timestamp_ms)

    def decode_event(self, frame_type: int, payload: bytes) -> _Received:
        """Read a frame from the proxy. Returns (request id, correlation id, message).

        The answer must carry these ids. An id is None if the dialect or the frame does not have it. Answer a ping with
        ``pong_for``. Raises UnreadableEvent, with the ids if they could be read. Answer such an event with a failure:
        an unanswered event holds the client until the proxy's timeout.
        """
        if frame_type in self._event_types or self._wire.controls.get(frame_type) is Cancel:
            return self._decode_addressed(frame_type, payload)
        if frame_type == self.dialect.ping_type:
            return None, None, Ping(payload)
        if frame_type == self.dialect.pong_type:
            pong = self.decode(frame_type, payload)
            return None, None, pong if isinstance(pong, Pong) else Ignored(frame_type)
        kind = self._wire.controls.get(frame_type)
        if kind is CancelAll:
            return None, None, CancelAll(_cancel_reason(payload))
        return None, None, Ignored(frame_type) if kind is None else kind()

    def _decode_addressed(self, frame_type: int, payload: bytes) -> _Received:
        """Read a frame that belongs to one request."""
        request_id = correlation_id = None
        if frame_type == 0x10:
            try:
                found, event = read_request(payload)
                request_id, correlation_id = self._wire.ids_of(found)
            except READ_ERRORS:
                pass  # The frame is read again below, the ids first, so that the error can name them.
            else:
                return request_id, correlation_id, event
        try:
            ids = read_ids(payload)
            request_id, correlation_id = self._wire.ids_of(ids)
            if frame_type in self._event_types:
                return request_id, correlation_id, read_event(frame_type, payload)
        except READ_ERRORS as error:
            message = f"a frame of type 0x{frame_type:02x} cannot be read: {why(error)}"
            raise UnreadableEvent(message, request_id, correlation_id) from None
        return request_id, correlation_id, Cancel(ids.cancel_reason)


def _cancel_reason(payload: bytes) -> CancelReason | None:
    """The reason of a cancel for all requests. Such a cancel is valid even if its payload cannot be read."""
    try:
        return read_ids(payload).cancel_reason
    except READ_ERRORS:
        return None


_CODECS: Final = {wire.dialect: Codec(wire) for wire in (SDK, CORE, DOCS)}


def codec_for(dialect: Dialect) -> Codec:
    """Return the codec of a dialect, always the same object."""
    return _CODECS[dialect]
