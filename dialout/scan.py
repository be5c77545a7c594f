"""Find in one linear scan whether a JSON text is expensive or dangerous to decode, without decoding it.

Expensive values in msgspec 0.23, measured: a number from about 1e289 up costs 11 µs and needs 6 bytes. A tie between
two floats (1e23) costs 0.4 µs. An integer of 4,000 digits costs 66 µs. A container of 2 bytes takes 64 bytes of memory.
Everything else costs less than 10 ns for each byte.

The scan uses bytes methods that loop in C, so no Python code runs for each byte. A short text with few suspicious
bytes, inside or outside of its strings, passes at once. From other texts the scan first removes the strings, because
their contents cost nothing. 16 MiB of any content take 160 ms at most.

The text need not be JSON. Decoders stop at the first fault, and the scan sees all bytes before that fault.
"""

from typing import Final

from dialout.errors import RemoteProtocolError
from dialout.nesting import MAX_DEPTH

__all__ = ["MAX_DIGITS", "MAX_KEYS", "MAX_LEVELS", "refuse_costly", "why_costly"]

MAX_LEVELS: Final = MAX_DEPTH + 3
"""The most levels of nesting in a whole text. Forwarded values have `MAX_DEPTH` and stand up to three levels down."""

MAX_DIGITS: Final = 64
"""The most digits in a number before its exponent. Programs write up to 20 (integers) or 17 (floats)."""

MAX_KEYS: Final = 10_000
"""The most keys, and the most containers. As Python objects they take 2.4 MB at most.

A report of 1,000 series has 4,000 of them.
"""

MAX_STRINGS: Final = 100_000
"""The most strings, keys included. Python needs 50 bytes for each beside its text."""

MAX_EXPONENTS: Final = 1000
"""The most numbers with an exponent of two digits or more. A thousand expensive ones (ties) cost 0.4 ms."""

MAX_LARGE_EXPONENTS: Final = 8
"""The most numbers with an exponent of three digits or more. Eight cost 0.1 ms.

The limit is not 0 because some programs write the largest float.
"""

_SMALL: Final = 8192
"""Size in bytes up to which a text is first scanned with its strings. Larger ones are mostly strings (bodies)."""

_LONG_NUMBER: Final = b"0" * (MAX_DIGITS + 1)
_NOT_IN_OUTLINE: Final = b"+-."
# Every digit becomes 0, so that runs of digits can be found. 1E+05 and 1e05 look the same.
_OUTLINE: Final = bytes.maketrans(b"123456789E", b"000000000e")
_NO_BRACKET: Final = bytes(sorted(set(range(256)) - set(b"[]{}")))


def why_costly(payload: bytes, *, max_keys: int = MAX_KEYS, max_levels: int = MAX_LEVELS) -> str | None:
    """Return the first reason why this JSON text must not be decoded, or None if it is cheap to decode.

    The reason quotes nothing of the text. It completes a sentence such as "the answer has ...".
    """
    if len(payload) <= min(_SMALL, 4 * max_keys):
        containers = payload.count(b"[") + payload.count(b"{")
        if containers <= max_levels and _why_numbers(payload) is None:
            return None
    elif payload.count(b'"') > 2 * MAX_STRINGS and _quotes(payload) > 2 * MAX_STRINGS:
        return f"more than {MAX_STRINGS} strings"
    outside = _without_strings(payload)
    if outside.count(b":") > max_keys:
        return f"more than {max_keys} keys"
    brackets = outside.translate(None, _NO_BRACKET)
    # The loop takes a step for each bracket, so it looks at no more than the legal number of them, with their ends.
    if _is_deep(brackets[: 2 * max_keys], max_levels):
        return f"more than {max_levels} levels of nesting"
    if brackets.count(b"[") + brackets.count(b"{") > max_keys:
        return f"more than {max_keys} arrays and objects"
    return _why_numbers(outside)


def refuse_costly(payload: bytes, above: int) -> None:
    """Raise RemoteProtocolError if the text has more than *above* bytes and is expensive to decode.

    The most expensive text below that size costs 0.6 µs for each byte.
    """
    if len(payload) > above and (reason := why_costly(payload)) is not None:
        raise RemoteProtocolError(f"it is too costly to read: it has {reason}")


def _why_numbers(text: bytes) -> str | None:
    """Return the fault in the numbers of a text. If the text still has strings, the fault may be in a string."""
    outline = text.translate(_OUTLINE, _NOT_IN_OUTLINE)
    if _LONG_NUMBER in outline:
        return f"a number of more than {MAX_DIGITS} digits"
    large = outline.count(b"e00")
    if large > MAX_LARGE_EXPONENTS and outline.count(b"e000") > MAX_LARGE_EXPONENTS:
        return f"more than {MAX_LARGE_EXPONENTS} numbers with an exponent of three digits or more"
    if large > MAX_EXPONENTS:
        return f"more than {MAX_EXPONENTS} numbers with an exponent of two digits or more"
    return None


def _without_escapes(payload: bytes) -> bytes:
    """Remove escaped backslashes and quotes, so that every quote in the text begins or ends a string."""
    # Pairs of backslashes go first, from left to right, as a reader takes them. A backslash that is left over escapes
    # the next character.
    return payload.replace(b"\\\\", b"").replace(b'\\"', b"") if b"\\" in payload else payload


def _quotes(payload: bytes) -> int:
    return _without_escapes(payload).count(b'"')


def _without_strings(payload: bytes) -> bytes:
    """Return the text outside of the strings, with a quote in place of each string."""
    return b'"'.join(_without_escapes(payload).split(b'"')[::2])


def _is_deep(brackets: bytes, max_levels: int) -> bool:
    depth = 0
    for bracket in brackets:
        # Only opening brackets have this bit: 0x5b and 0x7b have it, 0x5d and 0x7d do not.
        depth += 1 if bracket & 2 else -1
        if depth > max_levels:
            return True
    return False
