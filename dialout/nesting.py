"""Measure how deep a JSON value is nested. msgspec reads deeper values than some other readers."""

from itertools import chain
from typing import Any, Final

__all__ = ["MAX_DEPTH", "is_too_deep"]

MAX_DEPTH: Final = 64
"""The most levels of nesting in a forwarded value. serde_json gives up at 128, Python at its recursion limit."""


def is_too_deep(text: bytes, *values: Any) -> bool:
    """Whether one of ``values`` has more than ``MAX_DEPTH`` levels. They were decoded from ``text``."""
    if text.count(b"{") + text.count(b"[") <= MAX_DEPTH:
        return False
    level = list(values)
    for _ in range(MAX_DEPTH):
        containers = (value for value in level if isinstance(value, dict | list))
        level = list(chain.from_iterable(node.values() if type(node) is dict else node for node in containers))
    return any(isinstance(value, dict | list) for value in level)
