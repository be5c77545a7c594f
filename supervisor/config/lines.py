r"""The lines of a file that an operator edits: one rule for its reader and for its writer.

A line ends at ``\n`` and nowhere else. Programs disagree about other characters: `str.splitlines` ends a line at eight
more, a terminal at a carriage return, editors at U+2028. The text after such a character is a comment to one program
and a line of its own to another. So a line with such a character is refused.
"""

import unicodedata
from collections.abc import Sequence

_LINE_ENDS = "\u2028\u2029"
_NAMES = {"\0": "null", "\v": "vertical tab", "\f": "form feed", "\r": "carriage return", "\x85": "next line"}
_DIRECTIONS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""They change the order in which an editor shows the characters of a line: UAX #9. A reader sees a different line."""


def split_lines(text: str) -> list[str]:
    r"""Split a text at each ``\n``. A line of a CRLF file keeps its ``\r``; a final ``\n`` begins no further line."""
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    return lines


def join_lines(lines: Sequence[str]) -> str:
    r"""Join lines, each with its end. The last one gets ``\r\n`` when all others have that, in a file of such lines."""
    *others, last = lines or [""]
    if others and all(line.endswith("\r") for line in others) and not last.endswith("\r"):
        last += "\r"
    return "".join(f"{line}\n" for line in (*others, last)) if lines else ""


def objection(line: str) -> str | None:
    r"""Name a character that a line must not hold, or None. A tab and the ``\r`` of a CRLF file are allowed."""
    for character in line.removesuffix("\r"):
        if is_odd(character):
            name = _NAMES.get(character) or unicodedata.name(character, "control character").lower()
            return f"U+{ord(character):04X} ({name}) is not allowed inside a line"
    return None


def is_odd(character: str) -> bool:
    """Whether a character ends a line for some programs, or changes how a line is shown."""
    if character in _LINE_ENDS or character in _DIRECTIONS:
        return True
    return character != "\t" and unicodedata.category(character) == "Cc"
