r"""The lines of a file that an operator keeps: one rule for its reader and for its writer.

A line ends at ``\n`` and nowhere else. Programs disagree about other characters: `str.splitlines` ends a line at eight
more, a terminal at a carriage return, editors at U+2028. What follows one of them is a comment to one program and a
line of its own to the next. So a line that holds such a character is refused.
"""

import unicodedata
from collections.abc import Sequence

_LINE_ENDS = "\u2028\u2029"
_NAMES = {"\0": "null", "\v": "vertical tab", "\f": "form feed", "\r": "carriage return", "\x85": "next line"}
_DIRECTIONS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""They change the order in which an editor shows a line, so that a person reads another one: UAX #9."""


def split_lines(text: str) -> list[str]:
    r"""Split a text at each ``\n``. A line of a CRLF file keeps its ``\r``; a final ``\n`` begins no further line."""
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    return lines


def join_lines(lines: Sequence[str]) -> str:
    r"""Put lines together, each with its end. New ones get a ``\r`` where all lines of the file have one."""
    carriage = "\r" if len(lines) > 1 and lines[0].endswith("\r") else ""
    return "".join(f"{line.removesuffix(carriage)}{carriage}\n" for line in lines)


def objection(line: str) -> str | None:
    r"""Say which character a line must not hold, or None. A tab is fine, and so is the ``\r`` of a CRLF file."""
    for character in line.removesuffix("\r"):
        if is_odd(character):
            name = _NAMES.get(character) or unicodedata.name(character, "control character").lower()
            return f"U+{ord(character):04X} ({name}) is not allowed inside a line"
    return None


def is_odd(character: str) -> bool:
    """Whether a character ends lines for some programs, or is shown as something else than it is."""
    if character in _LINE_ENDS or character in _DIRECTIONS:
        return True
    return character != "\t" and unicodedata.category(character) == "Cc"
