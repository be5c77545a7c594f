"""Read the claim of a registration: version, agent id and token, and nothing else.

Whether an agent may register depends on these alone. Nothing else is decoded before that decision, because an attacker
without a token could make decoding expensive. 65 kB of numbers like ``1e308`` take 30 to 100 ms, since each needs
arithmetic with hundreds of digits. msgspec skips a value that it need not build in time linear in its length, measured
at 1 to 2 ns a byte. It gives up on deep nesting.
"""

import re
from typing import Final

import msgspec
from msgspec import Raw, Struct

from dialout.dialects import answer_type_for
from dialout.errors import ErrorCode, Rejection

__all__ = ["AGENT_ID_RULE", "PROTOCOL_VERSION", "Claim", "bad_registration", "is_agent_id", "read_claim"]

PROTOCOL_VERSION: Final = 2
AGENT_ID_RULE: Final = "1 to 128 characters of A-Z a-z 0-9 . _ : @ -"

_VERSION: Final = str(PROTOCOL_VERSION).encode()
_MAX_ID_TEXT: Final = 2 + 6 * 128
"""Bytes of the longest agent id in JSON. Each character may be written as ``\\u0061``."""

_agent_id_matches = re.compile(r"[A-Za-z0-9._:@-]{1,128}").fullmatch
# As nearly all agents write it, without escapes.
_plain_id = re.compile(rb'"([A-Za-z0-9._:@-]{1,128})"').fullmatch
_is_u32 = re.compile(rb"0|[1-9][0-9]{0,9}").fullmatch


def is_agent_id(text: str) -> bool:
    """Whether this is a legal agent id: 1 to 128 characters of ``A-Z a-z 0-9 . _ : @ -``."""
    return _agent_id_matches(text) is not None


class Claim(Struct, frozen=True, gc=False):
    """The part of a registration that decides whether its agent may register.

    ``auth_token`` is None when absent, null or empty. It never shows in repr. ``capabilities`` and ``metadata`` are
    JSON text that has not been read yet, ``null`` when absent.
    """

    frame_type: int
    agent_id: str
    auth_token: str | None
    capabilities: Raw
    metadata: Raw

    @property
    def answer_type(self) -> int:
        """Type byte of the frame that accepts or refuses this registration: 0x04 (sdk) or 0x02."""
        return answer_type_for(self.frame_type)

    def __repr__(self) -> str:
        return f"Claim(frame_type={self.frame_type!r}, agent_id={self.agent_id!r})"


# Empty: no JSON value is.
_ABSENT = Raw()


class _Payload(Struct, gc=False):
    protocol_version: Raw = _ABSENT
    agent_id: Raw = _ABSENT
    capabilities: Raw = Raw(b"null")
    auth_token: Raw = _ABSENT
    metadata: Raw = Raw(b"null")
    supported_versions: Raw = _ABSENT
    client_name: Raw = _ABSENT


_decode_payload = msgspec.json.Decoder(_Payload).decode
_decode_text = msgspec.json.Decoder(str).decode


def read_claim(frame_type: int, payload: bytes) -> Claim:
    """Read the claim out of the first frame of a connection.

    Takes time linear in the length of the payload, for any payload. Raises Rejection, which the caller can answer
    with: version_mismatch unless ``protocol_version`` is the integer 2, bad_registration for every other fault.
    """
    answer_type = answer_type_for(frame_type)
    if frame_type not in {0x01, 0x03}:
        message = f"the first frame has type 0x{frame_type:02x}, a registration has 0x03 or 0x01"
        raise bad_registration(message, answer_type)
    try:
        if not payload.isascii():
            payload.decode()  # msgspec does not check the text of values that it skips.
        fields = _decode_payload(payload)
        plain = _plain_id(bytes(fields.agent_id))
        if plain is None or bytes(fields.protocol_version) != _VERSION:
            _check_version(fields, frame_type, answer_type)
        agent_id = _read_agent_id(bytes(fields.agent_id), answer_type) if plain is None else plain[1].decode()
        token = None if fields.auth_token is _ABSENT else _read_token(bytes(fields.auth_token), answer_type)
    except UnicodeDecodeError as error:
        message = f"the registration is not valid UTF-8 at byte {error.start}"
    except msgspec.ValidationError as error:
        # The message names keys and types of the structs in this module, never a value.
        message = f"the registration does not fit: {error}"
    except msgspec.DecodeError as error:
        message = f"the registration is not valid JSON: {error}"
    except RecursionError:
        message = "the registration is nested too deeply"
    else:
        return Claim(frame_type, agent_id, token, fields.capabilities, fields.metadata)
    raise bad_registration(message, answer_type)


def bad_registration(message: str, answer_type: int) -> Rejection:
    """Build the rejection of a frame that is not a valid registration."""
    return Rejection(ErrorCode.BAD_REGISTRATION, message, answer_type)


def _check_version(fields: _Payload, frame_type: int, answer_type: int) -> None:
    version = bytes(fields.protocol_version)
    # A proxy's handshake has the same type byte. One of its two forms has no version.
    if frame_type == 0x01 and bytes(fields.agent_id) in (b"", b"null"):
        proxy_says_hello = bytes(fields.supported_versions) or bytes(fields.client_name)
        if proxy_says_hello:
            raise bad_registration("this is a proxy's handshake; here agents register", answer_type)
    # Compared as text: in Python 2.0 equals 2 and true is an int. Only the integer counts, and it has one spelling.
    if version != _VERSION:
        if version in (b"", b"null"):
            got = "none"
        elif _is_u32(version) and int(version) < 2**32:
            got = version.decode()
        else:
            got = "something else"
        message = f"protocol version mismatch: expected {PROTOCOL_VERSION}, got {got}"
        raise Rejection(ErrorCode.VERSION_MISMATCH, message, answer_type)


def _read_agent_id(text: bytes, answer_type: int) -> str:
    if text in (b"", b"null"):
        raise bad_registration("agent_id is missing", answer_type)
    agent_id = _decode_text(text) if text[0] == 0x22 and len(text) <= _MAX_ID_TEXT else ""
    if not _agent_id_matches(agent_id):
        raise bad_registration(f"agent_id must be a string of {AGENT_ID_RULE}", answer_type)
    return agent_id


def _read_token(text: bytes, answer_type: int) -> str | None:
    if text in (b"", b"null"):
        return None
    if text[0] != 0x22:
        raise bad_registration("auth_token must be a string", answer_type)
    return _decode_text(text) or None
