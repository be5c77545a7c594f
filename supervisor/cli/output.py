"""What commands print: JSON, tables, and texts from outside made safe for a terminal.

Tables are laid out here and not by rich: 100,000 connections took it 70 s, this takes one. rich draws what changes on
a screen (``status --watch``).
"""

import os
import re
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import click
import msgspec


class Column(NamedTuple):
    """A column: its heading, whether it holds numbers, and how it gives way in a terminal that is too narrow.

    Texts of the last column are cut to *shortest* characters, where that is set, before columns are left out: those
    with the highest *gives_way* first. 0 stays, and the longest texts of these are cut at last.
    """

    heading: str
    numeric: bool = False
    gives_way: int = 0
    shortest: int | None = None


class Cell(NamedTuple):
    """A text in a table, and its colour where there are colours."""

    text: str
    colour: str | None = None


_LEAST_TEXT = 8
"""Characters that are left of a text at least, however narrow the terminal is."""


def is_dumb() -> bool:
    """Whether the terminal obeys no escape sequences, as far as ``TERM`` tells (term(7))."""
    return os.environ.get("TERM", "dumb") in ("", "dumb", "unknown")


def use_colour() -> bool:
    """Whether standard output is a terminal and nobody asked for no colour (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and not is_dumb()


def terminal_width() -> int | None:
    """The columns of the terminal; None when standard output is none and lines may have any length."""
    if not sys.stdout.isatty():
        return None
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or None
    except OSError:
        return None


def screen_height() -> int | None:
    """The lines of a text that is drawn again and again; None where it may have any number, as on a dumb terminal."""
    if is_dumb():
        return None
    try:
        return os.get_terminal_size(sys.stdout.fileno()).lines or None
    except (OSError, ValueError):
        return None


def folded(text: str, width: int | None, indent: int) -> list[str]:
    """*text* in lines of at most *width* columns where it is given, all but the first behind *indent* blanks."""
    if width is None or len(text) <= width:
        return [text]
    blanks = " " * min(indent, max(0, width - _LEAST_TEXT))
    # Words that are too long are paths: whole they can be copied.
    return textwrap.wrap(
        text, width, subsequent_indent=blanks, break_long_words=False, break_on_hyphens=False, drop_whitespace=True
    )


def note(text: str) -> None:
    """Tell the operator something that is not the answer itself: on standard error."""
    click.echo(text, err=True)


def print_json(value: Any, *, one_line: bool = False, err: bool = False) -> None:
    """Print *value* as JSON in ASCII, indented for people at a terminal; on standard error with *err*.

    Agents' metadata may hold characters that terminals obey even outside ASCII (U+009B begins an escape sequence).
    """
    encoded = msgspec.json.encode(value)
    if (sys.stderr if err else sys.stdout).isatty() and not one_line:
        encoded = msgspec.json.format(encoded, indent=2)
    text = encoded.decode()
    if not text.isascii() or "\x7f" in text:
        text = re.sub(r"[^\x00-\x7e]", _json_escape, text)
    click.echo(text, err=err)


def table(columns: Sequence[Column], rows: Iterable[Sequence[Cell]], width: int | None, *, colour: bool) -> str:
    """Lay out *rows* under the headings, within *width* columns where it is given.

    When the columns do not fit, texts of the last one are cut (with ``~``), and columns are left out.
    """
    lines = [[Cell(column.heading) for column in columns], *rows]
    widths = [max(len(line[i].text) for line in lines) for i in range(len(columns))]
    kept = list(range(len(columns)))
    if width is not None:
        kept, widths = _fitted(columns, widths, width)
    formats = [(i, widths[i], columns[i].numeric, i == kept[-1]) for i in kept]
    return "\n".join(_line(line, formats, colour=colour) for line in lines)


def line(cells: Sequence[Cell], widths: Sequence[int], width: int | None, *, colour: bool) -> str:
    """*cells* in columns of at least these *widths*, as one line of a list that grows; cut at *width* columns."""
    parts, left = [], 1 << 20 if width is None else width
    for cell, its_width in zip(cells, widths, strict=True):
        text = cell.text.ljust(its_width)
        if len(text.rstrip()) > left:
            text = f"{text[: max(0, left - 1)]}~"
        parts.append(styled(text, cell.colour, enabled=colour))
        left -= len(text) + 2
        if left <= 0:
            break
    return "  ".join(parts).rstrip()


def styled(text: str, colour: str | None, *, enabled: bool) -> str:
    """*text* in a colour where colours are enabled."""
    return click.style(text, fg=colour) if colour and enabled else text


def _fitted(columns: Sequence[Column], widths: Sequence[int], available: int) -> tuple[list[int], list[int]]:
    """The columns that fit, and all widths with the last of them cut; others too where that is not enough."""
    least = [width if c.shortest is None else min(width, c.shortest) for c, width in zip(columns, widths, strict=True)]
    kept = list(range(len(columns)))

    def spare() -> int:
        return available - sum(least[i] for i in kept) - 2 * (len(kept) - 1)

    while spare() < 0:
        first_to_go = max(kept, key=lambda i: columns[i].gives_way)
        if not columns[first_to_go].gives_way:
            break
        kept.remove(first_to_go)
    texts = [i for i in kept if not columns[i].numeric]
    while spare() < 0 and texts:
        longest = max(texts, key=lambda i: least[i])
        if least[longest] <= _LEAST_TEXT:
            break
        least[longest] -= 1
    cut = list(widths)
    for i in kept:
        cut[i] = least[i]
    cut[kept[-1]] = min(widths[kept[-1]], least[kept[-1]] + max(spare(), 0))
    return kept, cut


def _line(cells: Sequence[Cell], formats: Sequence[tuple[int, int, bool, bool]], *, colour: bool) -> str:
    parts = []
    for i, width, numeric, last in formats:
        text, its_colour = cells[i]
        if len(text) > width:
            text = _cut(text, width, ends=not last)
        # No blanks at the end of a line.
        padded = text.rjust(width) if numeric else text if last else text.ljust(width)
        parts.append(styled(padded, its_colour, enabled=colour))
    return "  ".join(parts).rstrip()


def _cut(text: str, width: int, *, ends: bool) -> str:
    """*text* in *width* columns, with ``~`` for what was left out; with both *ends*, since ids begin alike."""
    kept = min(8, width // 3) if ends else 0
    return f"{text[: width - kept - 1]}~{text[len(text) - kept :]}"


def _json_escape(found: re.Match[str]) -> str:
    # Outside the basic plane JSON has two escapes, a UTF-16 surrogate pair.
    units = found[0].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))
