"""Check the types of values when they are constructed, so that the traceback shows the faulty line.

msgspec checks decoded values, but not constructed ones. Without these checks a body of bytes would be sent as base64
text. The proxy would refuse a header value that is a number, far from the hook that made it.
"""

from typing import Any

__all__ = ["is_body", "is_integer", "is_mapping_of_text", "is_text", "is_text_or_none", "is_texts", "wrong_type"]


def wrong_type(what: str, wanted: str, value: object) -> TypeError:
    """Build the error for a value of a wrong type. It names the wanted type and the actual type, not the value."""
    return TypeError(f"{what} is {wanted}, not {type(value).__name__}")


def is_text(value: object) -> bool:
    """Whether the value is a text, such as a header name."""
    return isinstance(value, str)


def is_text_or_none(value: object) -> bool:
    """Whether the value is a text or None."""
    return value is None or isinstance(value, str)


def is_integer(value: object) -> bool:
    """Whether the value is a whole number. True and False are not numbers here."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_body(value: object) -> bool:
    """Whether the value is bytes-like or None."""
    return value is None or isinstance(value, bytes | bytearray | memoryview)


def is_texts(value: object) -> bool:
    """Whether the value is a tuple or a list of texts. A single text is not accepted."""
    return isinstance(value, tuple | list) and all(isinstance(one, str) for one in value)


def is_mapping_of_text(value: Any) -> bool:
    """Whether the value is a dict with texts as keys and values."""
    return isinstance(value, dict) and all(isinstance(k, str) and isinstance(v, str) for k, v in value.items())
