"""See in one linear look what makes a JSON text dear or dangerous to decode, without decoding it.

What is dear in msgspec 0.23, measured: a number from about 1e289 up costs 11 µs, and needs 6 bytes; a tie between two
floats (1e23) 0.4 µs; an integer of 4,000 digits 66 µs. A container of 2 bytes holds 64 bytes of memory. Everything else
costs less than 10 ns for each byte.

The look works on bytes that the interpreter's own C loops go over: no step is taken for each byte in Python. A text
that holds little of what is looked for, wherever it stands, is let pass at once. From the others the strings are
taken out first: what they hold costs nothing. 16 MiB take 160 ms at most, whatever they hold.

The text need not be JSON. Decoders stop at the first fault, and all that stands before it is seen as it is.
"""

from typing import Final

from dialout.errors import RemoteProtocolError
from dialout.nesting import MAX_DEPTH

__all__ = ["MAX_DIGITS", "MAX_KEYS", "MAX_LEVELS", "refuse_costly", "why_costly"]

MAX_LEVELS: Final = MAX_DEPTH + 3
"""Levels of nesting in a whole text: values that we pass on have `MAX_DEPTH`, and stand up to three levels down."""

MAX_DIGITS: Final = 64
"""Digits of a number in front of its exponent. The longest that programs write have 20 (integers) or 17 (floats)."""

MAX_KEYS: Final = 10_000
"""Keys, and containers: a report of 1,000 series has 4,000. As Python objects they are 2.4 MB at most."""

MAX_STRINGS: Final = 100_000
"""Strings, keys included. Python holds 50 bytes for each beside its text."""

MAX_EXPONENTS: Final = 1000
"""Numbers whose exponent has two digits or more. A thousand of the dear kind (ties) cost 0.4 ms."""

MAX_LARGE_EXPONENTS: Final = 8
"""Numbers whose exponent has three digits or more: eight cost 0.1 ms. Some programs write the largest float."""

_SMALL: Final = 8192
"""Bytes up to which a text is first looked at with its strings. Most of a larger one is strings: bodies, in base64."""

_LONG_NUMBER: Final = b"0" * (MAX_DIGITS + 1)
_NOT_IN_OUTLINE: Final = b"+-."
# Every digit becomes 0, so that runs of digits can be found; 1E+05 and 1e05 look the same.
_OUTLINE: Final = bytes.maketrans(b"123456789E", b"000000000e")
_NO_BRACKET: Final = bytes(sorted(set(range(256)) - set(b"[]{}")))


def why_costly(payload: bytes, *, max_keys: int = MAX_KEYS, max_levels: int = MAX_LEVELS) -> str | None:
    """The first reason why this JSON text must not be decoded, or None when decoding it costs little for each byte.

    The reason quotes nothing of the text, and reads well behind "the answer has" and the like.
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
    # As many as may be there, each with its end; the loop takes a step for each.
    if _is_deep(brackets[: 2 * max_keys], max_levels):
        return f"more than {max_levels} levels of nesting"
    if brackets.count(b"[") + brackets.count(b"{") > max_keys:
        return f"more than {max_keys} arrays and objects"
    return _why_numbers(outside)


def refuse_costly(payload: bytes, above: int) -> None:
    """Raise RemoteProtocolError when the text has more than *above* bytes, and decoding it would be dear.

    Below that, the dearest text that there is costs 0.6 µs for each byte.
    """
    if len(payload) > above and (reason := why_costly(payload)) is not None:
        raise RemoteProtocolError(f"it is too costly to read: it has {reason}")


def _why_numbers(text: bytes) -> str | None:
    """What is wrong with the numbers of a text without strings; of one with strings, what may be."""
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
    """The text without escaped backslashes and quotes, so that every quote in it begins or ends a string."""
    # From left to right, as a reader takes them: what is left of a run of backslashes escapes what follows.
    return payload.replace(b"\\\\", b"").replace(b'\\"', b"") if b"\\" in payload else payload


def _quotes(payload: bytes) -> int:
    return _without_escapes(payload).count(b'"')


def _without_strings(payload: bytes) -> bytes:
    """What stands outside of the strings, with a quote in place of each."""
    return b'"'.join(_without_escapes(payload).split(b'"')[::2])


def _is_deep(brackets: bytes, max_levels: int) -> bool:
    depth = 0
    for bracket in brackets:
        # Only what opens has this bit: 0x5b and 0x7b have it, 0x5d and 0x7d do not.
        depth += 1 if bracket & 2 else -1
        if depth > max_levels:
            return True
    return False
