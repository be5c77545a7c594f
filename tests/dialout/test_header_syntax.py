"""Which header names and values may be written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialout.header_syntax import why_bad_header

TOKEN = "!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


@pytest.mark.parametrize("name", ["x-a", "Content-Type", "a", "1", TOKEN])
def test_a_token_is_a_name(name: str) -> None:
    assert why_bad_header(name, "v") is None
    assert why_bad_header(name) is None


@pytest.mark.parametrize(
    "name", ["", " ", "x a", "x:", ":path", "x\r", "x\n", "\nx", "x\0", "x\t", "naïve", "x\u212a", "(x)", "x,y", 'x"']
)
def test_what_is_no_token_is_no_name(name: str) -> None:
    assert why_bad_header(name, "v")


@pytest.mark.parametrize("value", ["", "1", " a\tb ", "ä", "\u2028", "\x01", "x" * 100_000])
def test_a_value_may_be_any_text_without_a_line_end(value: str) -> None:
    assert why_bad_header("x", value) is None


@pytest.mark.parametrize("value", ["\r", "\n", "\0", "a\r\nset-cookie: b", "a\n", "\0a"])
def test_a_value_has_no_cr_lf_or_nul(value: str) -> None:
    assert why_bad_header("x", value)


@given(st.text(), st.text() | st.none())
def test_the_rule_is_that_of_rfc_9110_for_any_text(name: str, value: str | None) -> None:
    good = bool(name) and set(name) <= set(TOKEN) and not set(value or "") & set("\r\n\0")
    assert (why_bad_header(name, value) is None) is good
