"""The look at a JSON text before it is decoded: as a slow reader sees it, and in linear time."""

import json
from base64 import b64encode
from collections import Counter
from typing import Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dialout.scan import MAX_DIGITS, MAX_EXPONENTS, MAX_KEYS, MAX_LARGE_EXPONENTS, MAX_LEVELS, MAX_STRINGS, why_costly

SMALL_KEYS, SMALL_LEVELS = 6, 4
DIGITS: Final = b"0123456789"


def strings_taken_out(text: bytes) -> tuple[bytes, int]:
    """What stands outside of strings, and how many strings there are: read byte by byte."""
    outside, strings, position = bytearray(), 0, 0
    while position < len(text):
        if text[position : position + 1] != b'"':
            outside.append(text[position])
            position += 1
            continue
        strings += 1
        outside += b" "
        position += 1
        while position < len(text) and text[position : position + 1] != b'"':
            position += 2 if text[position : position + 1] == b"\\" else 1
        position += 1
    return bytes(outside), strings


def measured(text: bytes) -> dict[str, int]:
    """All that is limited, counted byte by byte."""
    outside, strings = strings_taken_out(text)
    count, depth = Counter(strings=strings), 0
    count["keys"], count["containers"] = outside.count(b":"), outside.count(b"[") + outside.count(b"{")
    position = 0
    while position < len(outside):
        byte = outside[position]
        depth += (byte in b"[{") - (byte in b"]}")
        count["levels"] = max(count["levels"], depth)
        if byte not in DIGITS:
            position += 1
            continue
        digits = exponent = 0
        while position < len(outside) and outside[position] in DIGITS + b".-+":
            digits += outside[position] in DIGITS
            position += 1
        if outside[position : position + 1] in {b"e", b"E"}:
            position += 1
            while position < len(outside) and outside[position] in DIGITS + b"+-":
                exponent += outside[position] in DIGITS
                position += 1
        count["digits"] = max(count["digits"], digits, exponent)
        count["exponents"] += exponent >= 2
        count["large exponents"] += exponent >= 3
    return count


def is_costly(text: bytes, max_keys: int, max_levels: int) -> bool:
    seen = measured(text)
    limits = {
        "strings": MAX_STRINGS,
        "keys": max_keys,
        "containers": max_keys,
        "levels": max_levels,
        "digits": MAX_DIGITS,
        "exponents": MAX_EXPONENTS,
        "large exponents": MAX_LARGE_EXPONENTS,
    }
    return any(seen[name] > limit for name, limit in limits.items())


texts_in_strings = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["1e308" * 9, "9" * 70, "[" * 9, '{"a":' * 9, "\\", '\\"', '"' * 3, "\\\\", ":" * 9]),
)
numbers = st.one_of(
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([1e308, -1e300, 1e-300, 1e23, 10**63, 10**64, -(10**64), 10**80]),
)
documents = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts_in_strings),
    lambda inner: st.one_of(
        st.lists(inner, max_size=12),
        st.dictionaries(texts_in_strings, inner, max_size=4),
        st.integers(1, 8).flatmap(lambda depth: inner.map(lambda value: nested(value, depth))),
    ),
    max_leaves=25,
)


def nested(value: object, depth: int) -> object:
    for _ in range(depth):
        value = [value]
    return value


@given(documents, st.booleans(), st.sampled_from([None, 1]))
def test_scan_finds_costly_what_a_slow_reader_finds_costly(value: object, escaped: bool, indent: int | None) -> None:
    text = json.dumps(value, ensure_ascii=escaped, indent=indent).encode()
    found = why_costly(text, max_keys=SMALL_KEYS, max_levels=SMALL_LEVELS)
    assert (found is not None) == is_costly(text, SMALL_KEYS, SMALL_LEVELS)


@given(
    st.lists(st.sampled_from(['"', "\\", "1e308,", "[", "]", "{", "}", ":", "5" * 40, ".", "e", "-", " "])).map("".join)
)
@example("\\" * 7 + '"' + "1e308," * 9)
def test_scan_never_raises_and_quotes_nothing(text: str) -> None:
    found = why_costly(text.encode(), max_keys=SMALL_KEYS, max_levels=SMALL_LEVELS)
    assert found is None or found.replace(" ", "").isalnum()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"[%b1]" % (b"1e308," * 9), "exponent of three digits"),
        (b"[%b1]" % (b"1E+308," * 9), "exponent of three digits"),
        (b"[%b1]" % (b"1e00308," * 9), "exponent of three digits"),
        (b"[%b1]" % (b"1e23," * 1001), "exponent of two digits"),
        (b"[%b]" % (b"9" * 65), "digits"),
        (b"[0.%b]" % (b"9" * 65), "digits"),
        (b"[1e%b]" % (b"0" * 65), "digits"),
        (b"[" * 68 + b"]" * 68, "levels of nesting"),
        (b'{"a":' * 68 + b"1" + b"}" * 68, "levels of nesting"),
        (b"[%b[]]" % (b"[]," * MAX_KEYS), "arrays and objects"),
        (b"{%b}" % b",".join(b'"":1' for _ in range(MAX_KEYS + 1)), "keys"),
        (b'[%b""]' % (b'"",' * MAX_STRINGS), "strings"),
    ],
)
def test_scan_says_what_is_costly(text: bytes, reason: str) -> None:
    assert reason in (why_costly(text) or "")


@pytest.mark.parametrize(
    "text",
    [
        b'{"request_id":1,"decision":"allow"}',
        b'{"a":1.7976931348623157e308,"b":-1.7976931348623157E+308,"c":18446744073709551615,"d":5e-324}',
        b'{"data":"' + b"1e308" * 100_000 + b'"}',
        b'{"data":"' + b64encode(b"\xd5\xed\xfd\xf4" * 100_000) + b'"}',
        b'{"body":"' + b'{\\"a\\":[' * 20_000 + b'"}',
        b'{"body":"' + b"9" * 100_000 + b'\\\\","next":[1]}',
        b"[" * MAX_LEVELS + b"]" * MAX_LEVELS,
        b"",
    ],
)
def test_scan_lets_pass_what_is_cheap_and_whatever_strings_hold(text: bytes) -> None:
    assert why_costly(text) is None
