"""The answer to a registration. The listener writes it, the agent reads it; the JSON is the same for all dialects.

The SDK reads ``accepted``, ``assigned_id``, ``config`` and ``error``. The Rust crate requires ``success``,
``proxy_id``, ``proxy_version`` and ``connection_id``. An answer carries both sets, so only its type byte depends on the
dialect. A refusal also has ``error_code`` and ``retry_after_ms``, which older agents ignore.
"""

import re
from functools import lru_cache
from typing import Any, Final

import msgspec
from msgspec import Struct

from dialout.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from dialout.frames import HEADER, encode_frame
from dialout.scan import refuse_costly

__all__ = ["RegistrationResponse", "acceptance_frame", "parse_registration_response", "rejection_frame"]

_needs_no_escape = re.compile(r"[A-Za-z0-9._:@-]+").fullmatch
_encode = msgspec.json.encode


# --- the listener's side -----------------------------------------------------------------------------


def acceptance_frame(
    answer_type: int,
    assigned_id: str,
    *,
    proxy_id: str,
    proxy_version: str,
    config: bytes | None = None,
) -> bytes:
    """Build the whole frame that accepts a registration.

    ``assigned_id`` must be unique among the listener's connections. ``config`` is the text of a JSON object, or None.
    Raises LocalProtocolError for another JSON value, because SDK agents could not read the answer. It runs for every
    accepted connection, so the JSON is a template if the id needs no escaping.
    """
    quoted = f'"{assigned_id}"'.encode() if _needs_no_escape(assigned_id) else _quote(assigned_id)
    middle = _acceptance_middle(proxy_id, proxy_version)
    if config is None:
        payload = b'{"accepted":true,"assigned_id":%b%b%b}' % (quoted, middle, quoted)
        return HEADER.pack(len(payload) + 1, answer_type) + payload
    if config[:1] != b"{" or config[-1:] != b"}":
        raise LocalProtocolError("config must be the text of a JSON object, without white space around it")
    payload = b'{"accepted":true,"assigned_id":%b,"config":%b%b%b}' % (quoted, config, middle, quoted)
    return encode_frame(answer_type, payload)


@lru_cache(maxsize=16)
def _acceptance_middle(proxy_id: str, proxy_version: str) -> bytes:
    return b',"success":true,"proxy_id":%b,"proxy_version":%b,"connection_id":' % (
        _quote(proxy_id),
        _quote(proxy_version),
    )


def _quote(text: str) -> bytes:
    """Encode a JSON string. A lone surrogate, which UTF-8 cannot carry, becomes a question mark."""
    try:
        return _encode(text)
    except UnicodeEncodeError:
        return _encode(text.encode(errors="replace").decode())


def rejection_frame(
    answer_type: int,
    error: str,
    error_code: ErrorCode,
    *,
    proxy_id: str,
    proxy_version: str,
    retry_after_ms: int | None = None,
) -> bytes:
    """Build the whole frame that refuses a registration. Send it before any close that comes before acceptance.

    ``error`` is for people, ``error_code`` for programs. Give ``retry_after_ms`` only where waiting helps.
    """
    wait = b"" if retry_after_ms is None else b',"retry_after_ms":%d' % retry_after_ms
    payload = (
        b'{"accepted":false,"error":%b,"success":false,"proxy_id":%b,"proxy_version":%b,"connection_id":"",'
        b'"error_code":"%b"%b}' % (_quote(error), _quote(proxy_id), _quote(proxy_version), error_code.encode(), wait)
    )
    return encode_frame(answer_type, payload)


# --- the agent's side --------------------------------------------------------------------------------


class RegistrationResponse(Struct, frozen=True, kw_only=True):
    """The answer of the listener. Texts come from the peer, so escape them before they reach a terminal.

    ``error_code`` is None when the listener gave none, or one that this version does not know. ``error`` gives the
    reason as text. ``retry_after_ms`` is None when waiting does not help, or the listener did not say.
    """

    accepted: bool
    assigned_id: str | None = None
    config: dict[str, Any] | None = None
    error: str | None = None
    error_code: ErrorCode | None = None
    retry_after_ms: int | None = None
    proxy_id: str | None = None
    proxy_version: str | None = None


class _Answer(Struct):
    accepted: bool | None = None
    success: bool | None = None
    assigned_id: str | None = None
    connection_id: str | None = None
    config: dict[str, Any] | None = None
    error: str | None = None
    error_code: Any = None
    retry_after_ms: Any = None
    proxy_id: str | None = None
    proxy_version: str | None = None


_SCANNED_ABOVE: Final = 2048
_decode_answer = msgspec.json.Decoder(_Answer).decode
_ERROR_CODES: Final = {code.value: code for code in ErrorCode}


def parse_registration_response(frame_type: int, payload: bytes) -> RegistrationResponse:
    """Read the first frame of a listener: one of this package, of the SDK's or of the crate's format.

    An answer with neither ``accepted`` nor ``success`` is a refusal, as it is to the SDK. Raises RemoteProtocolError
    when the frame is not an answer (its type is neither 0x02 nor 0x04), does not parse, or contradicts itself.
    """
    if frame_type not in {0x02, 0x04}:
        raise RemoteProtocolError(f"the listener answered with type 0x{frame_type:02x}, not 0x02 or 0x04")
    try:
        refuse_costly(payload, _SCANNED_ABOVE)
        answer = _decode_answer(payload or b"{}")
    except (RemoteProtocolError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteProtocolError(f"the listener's answer cannot be read: {error}") from error
    verdicts = {answer.accepted, answer.success} - {None}
    if len(verdicts) == 2:
        raise RemoteProtocolError("the listener's answer contradicts itself: accepted and success differ")
    code, wait = answer.error_code, answer.retry_after_ms
    return RegistrationResponse(
        accepted=True in verdicts,
        assigned_id=answer.assigned_id or answer.connection_id or None,
        config=answer.config,
        error=answer.error,
        error_code=_ERROR_CODES.get(code) if type(code) is str else None,
        retry_after_ms=wait if type(wait) is int and wait >= 0 else None,
        proxy_id=answer.proxy_id,
        proxy_version=answer.proxy_version,
    )
