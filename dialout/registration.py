"""The registration: the first frame of a connection, for both ends.

The listener cuts it out of the stream (``scan_first_frame``) and reads it (``parse_registration``). The agent builds
it (``RegistrationRequest``). Its answer is in ``dialout.answers``; the names of that module can be imported from here
too.

The listener's functions check, in this order: framing, JSON object, protocol version, agent id syntax, type of
auth_token, dialect and capabilities, metadata. The listener itself decides on tokens, allowlists and limits. For any
bytes from a peer these functions raise only ``Rejection`` and ``NotAgentProtocol``.

The reader is as lenient as real agents require. Unknown keys are ignored. Keys match exactly: the agents' *parsers*
ignore case, but their writers do not vary it. The last of duplicate keys counts. null is the same as absent. The reader
is strict on UTF-8, on trailing bytes, on types, and on metadata that other JSON readers could not read back.
"""

from functools import lru_cache
from struct import Struct as Packing
from typing import Any, Final

import msgspec
from msgspec import Struct

from dialout.answers import (
    RegistrationResponse,
    acceptance_frame,
    parse_registration_response,
    rejection_frame,
)
from dialout.capabilities import Capabilities, Event, read_core, read_flags, write_core, write_flags
from dialout.claims import (
    AGENT_ID_RULE,
    PROTOCOL_VERSION,
    Claim,
    bad_registration,
    is_agent_id,
    read_claim,
)
from dialout.dialects import Dialect, answer_type_for
from dialout.errors import ErrorCode, LocalProtocolError, NotAgentProtocol, Rejection
from dialout.frames import MAX_FRAME_LENGTH, encode_frame
from dialout.nesting import MAX_DEPTH
from dialout.scan import why_costly

__all__ = [
    "MAX_METADATA_DEPTH",
    "PROTOCOL_VERSION",
    "Capabilities",
    "Event",
    "Registration",
    "RegistrationRequest",
    "RegistrationResponse",
    "acceptance_frame",
    "answer_type_so_far",
    "is_agent_id",
    "parse_registration",
    "parse_registration_response",
    "rejection_frame",
    "scan_first_frame",
]

MAX_METADATA_DEPTH: Final = MAX_DEPTH
"""The most levels of nesting in metadata. serde_json gives up at 128, Python's readers at their recursion limit."""

MAX_CAPABILITIES: Final = 4096
"""The most bytes of capabilities. Agents write up to 700. Unknown keys are ignored, but reading them takes time."""

_COSTS_LITTLE: Final = 1024
"""Bytes of capabilities that are decoded without a scan. Decoding takes 30 µs at most; the scan would take 1 µs."""

_FLAT: Final = 2 * MAX_METADATA_DEPTH
"""Bytes of metadata that need no scan. They cannot be nested too deeply, and hold at most 20 expensive numbers."""

_SDK, _CORE, _DOCS = Dialect.SDK, Dialect.CORE, Dialect.DOCS
_LENGTH: Final = Packing(">I")
_V1_TYPE: Final = 0x7B  # "{": v1 frames have no type byte; their JSON follows the length directly
_HTTP_STARTS: Final = frozenset(
    (b"GET ", b"HEAD", b"POST", b"PUT ", b"DELE", b"CONN", b"OPTI", b"TRAC", b"PATC", b"PRI ", b"HTTP")
)

_PROXY_STARTS: Final = ((b"PROXY ", 1), (b"\r\n\r\n\x00\r\nQUIT\n", 2))
"""The first bytes of a PROXY protocol header, with its version (haproxy.org, proxy-protocol.txt, 2.1 and 2.2)."""

# --- the first frame ---------------------------------------------------------------------------------


def scan_first_frame(data: bytes, max_bytes: int) -> int | tuple[int, bytes, bytes]:
    """Cut the first frame out of all bytes that were read from a connection so far.

    Returns (frame type, payload, residue). The residue is the bytes behind the frame. If the frame is incomplete,
    returns the number of bytes (> 0) that must arrive before the next call. ``max_bytes`` limits the length field,
    type byte included. It may not exceed ``MAX_FRAME_LENGTH``.

    Raises NotAgentProtocol for HTTP and TLS. Raises Rejection for a PROXY protocol header. Raises it as well for a
    length of 0 or above ``max_bytes``, from the four bytes alone, and for v1 framing, from the fifth. After either
    error, unread bytes may still be in the socket.
    """
    have = len(data)
    if have < 4:
        if data[:2] == b"\x16\x03":
            raise NotAgentProtocol("TLS")
        return 4 - have
    length: int = _LENGTH.unpack_from(data)[0]
    if not 0 < length <= max_bytes <= MAX_FRAME_LENGTH or (have > 4 and data[4] == _V1_TYPE):
        raise _bad_start(data, length, max_bytes)
    end = length + 4
    if have < end:
        return end - have
    return data[4], data[5:end], data[end:]


def answer_type_so_far(data: bytes) -> int:
    """Return the type byte of a rejection that follows these bytes of an incomplete first frame (timeout, EOF)."""
    return answer_type_for(data[4] if len(data) > 4 else None)


def _bad_start(data: bytes, length: int, max_bytes: int) -> NotAgentProtocol | Rejection:
    # HTTP and TLS come first. Read as a length, their first bytes are above every legal limit.
    if max_bytes > MAX_FRAME_LENGTH:
        raise LocalProtocolError(f"max_bytes is {max_bytes}, no frame is longer than {MAX_FRAME_LENGTH}")
    if data[:2] == b"\x16\x03":
        return NotAgentProtocol("TLS")
    if data[:4] in _HTTP_STARTS:
        return NotAgentProtocol("HTTP")
    for start, version in _PROXY_STARTS:
        if data.startswith(start[: len(data)]):
            message = (
                f"this is a PROXY protocol header (version {version}), which is not read here:"
                " have the load balancer send none to this address"
            )
            return bad_registration(message, answer_type_for(None))
    if length == 0:
        # A fifth byte would belong to the next frame, so it must not choose the type of the answer.
        return bad_registration("a frame of length 0 is not a registration", answer_type_for(None))
    if len(data) > 4 and data[4] == _V1_TYPE:
        message = "protocol version mismatch: expected 2, got v1 framing (no type byte)"
        return Rejection(ErrorCode.VERSION_MISMATCH, message, answer_type_for(_V1_TYPE))
    message = f"the registration frame announces {length} bytes, the limit is {max_bytes}"
    return bad_registration(message, answer_type_so_far(data))


# --- the listener's side -----------------------------------------------------------------------------


class Registration(Struct, frozen=True, gc=False):
    """A well-formed registration. Whether its agent may register is not decided yet.

    ``auth_token`` is None when absent, null or empty. It never shows in repr. ``metadata`` is raw JSON text, at most
    ``MAX_METADATA_DEPTH`` levels deep, or ``b""`` when absent or null. It is an object; only core agents may send other
    JSON values. ``warnings`` are for the operator's log and quote nothing from the agent.
    """

    dialect: Dialect
    agent_id: str
    auth_token: str | None
    capabilities: Capabilities
    metadata: bytes = b""
    warnings: tuple[str, ...] = ()

    @property
    def answer_type(self) -> int:
        """Type byte of the frame that accepts or refuses this registration: 0x04 (sdk) or 0x02."""
        return self.dialect.answer_type

    def __repr__(self) -> str:
        return _repr_without_token(self)

    def __rich_repr__(self) -> list[tuple[str, object]]:
        return _fields_without_token(self)


_read_flags_again = lru_cache(maxsize=256)(read_flags)
_decode_any = msgspec.json.Decoder().decode


def parse_registration(frame_type: int, payload: bytes) -> Registration:
    """Read the first frame of a connection as a registration.

    It has two steps, ``read_claim`` and ``read_registration``. A listener that checks tokens does so between them.
    Raises Rejection, which the caller can answer with: version_mismatch unless ``protocol_version`` is the integer 2,
    bad_registration for every other fault.
    """
    registration = read_registration(read_claim(frame_type, payload))
    try:
        if registration.metadata:
            _decode_any(registration.metadata)
    except (msgspec.DecodeError, RecursionError) as error:
        raise bad_registration(f"metadata cannot be read: {error}", registration.answer_type) from None
    return registration


def read_registration(claim: Claim) -> Registration:
    """Read the rest of a registration after its claim was accepted. Raises Rejection: bad_registration.

    Metadata is checked but not decoded. It is JSON that is cheap to read for each byte. A number in it may be too large
    for some readers, as 1e999 is. ``parse_registration`` refuses such numbers.
    """
    answer_type = claim.answer_type
    try:
        dialect, capabilities, warnings = _read_capabilities(claim, answer_type)
        metadata = bytes(claim.metadata)
        if metadata == b"null":
            metadata = b""
        else:
            _check_metadata(metadata, dialect, answer_type)
    except msgspec.DecodeError as error:
        message = f"the registration is not valid JSON: {error}"
    except RecursionError:
        message = "the registration is nested too deeply"
    else:
        return Registration(dialect, claim.agent_id, claim.auth_token, capabilities, metadata, warnings)
    raise bad_registration(message, answer_type)


def _read_capabilities(claim: Claim, answer_type: int) -> tuple[Dialect, Capabilities, tuple[str, ...]]:
    raw = bytes(claim.capabilities)
    if len(raw) > _COSTS_LITTLE:
        reason = f"more than {MAX_CAPABILITIES} bytes" if len(raw) > MAX_CAPABILITIES else why_costly(raw)
        if reason is not None:
            raise bad_registration(f"capabilities have {reason}", answer_type)
    try:
        if claim.frame_type == 0x03:
            # Agents of one kind declare the same bytes, and there are few kinds, so a cache helps. Whole registrations
            # must not be cached: they hold tokens.
            read = _read_flags_again if len(raw) <= _COSTS_LITTLE else read_flags
            return _SDK, read(raw)[0], ()
        core = read_core(raw)
        if core is not None:
            capabilities, inner_id = core
            if inner_id is None or inner_id == claim.agent_id:
                return _CORE, capabilities, ()
            return _CORE, capabilities, ("capabilities.agent_id differs from agent_id, which is the one used",)
        capabilities, named = read_flags(raw)
    except msgspec.ValidationError as error:
        raise bad_registration(f"capabilities do not fit: {error}", answer_type) from None
    if named:
        return _DOCS, capabilities, ()
    message = "unrecognised capabilities: neither handles_* flags nor supported_events or features"
    raise bad_registration(message, answer_type)


def _check_metadata(metadata: bytes, dialect: Dialect, answer_type: int) -> None:
    """Check the type of the metadata, and that its text is cheap to read. ``read_claim`` has found that it is JSON."""
    if dialect is not _CORE and metadata[:1] != b"{":
        raise bad_registration("metadata must be an object", answer_type)
    if len(metadata) <= _FLAT:
        return
    reason = why_costly(metadata, max_levels=MAX_METADATA_DEPTH)
    if reason is not None:
        raise bad_registration(f"metadata has {reason}", answer_type)


# --- the agent's side --------------------------------------------------------------------------------


class RegistrationRequest(Struct, frozen=True, kw_only=True):
    """The registration that an agent sends, with the field names of the protocol's document.

    ``name`` (default: the agent id) and ``version`` describe the agent's software. Only core frames carry them.
    ``auth_token`` never shows in repr. An empty token counts as none.
    """

    protocol_version: int = PROTOCOL_VERSION
    agent_id: str
    capabilities: Capabilities = Capabilities()
    auth_token: str | None = None
    metadata: dict[str, Any] | None = None
    name: str = ""
    version: str = ""

    def encode(self, dialect: Dialect) -> bytes:
        """Build the whole registration frame in one dialect, byte for byte as agents of that dialect write it.

        The flag schema of sdk and docs lacks some fields of Capabilities; they are left out. Raises LocalProtocolError
        when the agent id is not legal, or metadata cannot be written as JSON.
        """
        if not is_agent_id(self.agent_id):
            raise LocalProtocolError(f"agent_id must be {AGENT_ID_RULE}, not {self.agent_id!r}")
        fields: dict[str, object] = {"protocol_version": self.protocol_version, "agent_id": self.agent_id}
        if dialect is _CORE:
            fields["capabilities"] = write_core(
                self.capabilities, self.agent_id, self.name or self.agent_id, self.version
            )
            fields["auth_token"] = self.auth_token or None
            fields["metadata"] = self.metadata
        else:
            fields["capabilities"] = write_flags(self.capabilities)
            if self.auth_token:
                fields["auth_token"] = self.auth_token
            if self.metadata:
                fields["metadata"] = self.metadata
        try:
            payload = msgspec.json.encode(fields)
        except (TypeError, ValueError, RecursionError) as error:
            raise LocalProtocolError(f"the registration cannot be written as JSON: {error}") from error
        return encode_frame(dialect.registration_type, payload)

    def __repr__(self) -> str:
        return _repr_without_token(self)

    def __rich_repr__(self) -> list[tuple[str, object]]:
        return _fields_without_token(self)


def _fields_without_token(value: Registration | RegistrationRequest) -> list[tuple[str, object]]:
    shown: list[tuple[str, object]] = []
    for name in value.__struct_fields__:
        field = getattr(value, name)
        shown.append((name, "<hidden>" if name == "auth_token" and field is not None else field))
    return shown


def _repr_without_token(value: Registration | RegistrationRequest) -> str:
    fields = ", ".join(f"{name}={field!r}" for name, field in _fields_without_token(value))
    return f"{type(value).__name__}({fields})"
