"""What may stand in a header, for property tests: hypothesis strategies."""

from hypothesis import strategies as st

header_names = st.from_regex(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,12}", fullmatch=True)
"""Tokens, RFC 9110 section 5.6.2."""

header_values = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"), max_size=12)

words = st.text(st.characters(codec="utf-8", min_codepoint=0x21, exclude_characters="\x7f"), max_size=12)
"""Texts without spaces and control characters: URLs, and the types of challenges."""

header_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | header_values,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(header_values, inner, max_size=3),
    max_leaves=4,
)
"""JSON whose texts may go into headers: the params of challenges."""
