"""Refuse values of a wrong type where they are written: one line later it is known no more who wrote them.

msgspec checks what it decodes, and nothing that is constructed. Without this a body of bytes would leave as base64
text, and a header value that is a number would be refused by the proxy, far from the hook that gave it.
"""

from typing import Any

__all__ = ["is_body", "is_integer", "is_mapping_of_text", "is_text", "is_text_or_none", "is_texts", "wrong_type"]


def wrong_type(what: str, wanted: str, value: object) -> TypeError:
    """The error that says what a value should be; it names the type of what was given, and not the value."""
    return TypeError(f"{what} is {wanted}, not {type(value).__name__}")


def is_text(value: object) -> bool:
    """Whether it is a text, as a header's name."""
    return isinstance(value, str)


def is_text_or_none(value: object) -> bool:
    """Whether it is a text, or absent."""
    return value is None or isinstance(value, str)


def is_integer(value: object) -> bool:
    """Whether it is a whole number; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_body(value: object) -> bool:
    """Whether it is bytes, or absent."""
    return value is None or isinstance(value, bytes | bytearray | memoryview)


def is_texts(value: object) -> bool:
    """Whether it is a tuple or a list of texts; a text alone is none, though it is made of texts."""
    return isinstance(value, tuple | list) and all(isinstance(one, str) for one in value)


def is_mapping_of_text(value: Any) -> bool:
    """Whether it is a dict of texts by texts."""
    return isinstance(value, dict) and all(isinstance(k, str) and isinstance(v, str) for k, v in value.items())
