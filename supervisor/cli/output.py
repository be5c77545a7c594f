"""The output of commands: JSON, tables, and notes on standard error.

This module lays out tables itself. For 100,000 connections it takes 1 s, and rich took 70 s. rich draws the texts that
change on a screen (``status --watch``).
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
    """A column: its heading, whether it holds numbers, and how it gives way on a narrow terminal.

    First the texts of a column are cut to *shortest* characters, if that is set. Then columns are left out, the highest
    *gives_way* first; a column with 0 stays. At last the longest texts of the remaining columns are cut.
    """

    heading: str
    numeric: bool = False
    gives_way: int = 0
    shortest: int | None = None


class Cell(NamedTuple):
    """A text in a table, and its colour when colours are enabled."""

    text: str
    colour: str | None = None


_LEAST_TEXT = 8
"""Fewest characters that are left of a text, for any width of the terminal."""


def is_dumb() -> bool:
    """Whether ``TERM`` names a terminal without escape sequences (term(7))."""
    return os.environ.get("TERM", "dumb") in ("", "dumb", "unknown")


def use_colour() -> bool:
    """Whether standard output is a terminal with colours and NO_COLOR is not set (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and not is_dumb()


def terminal_width() -> int | None:
    """Return the columns of the terminal. None when standard output is no terminal: lines may have any length."""
    if not sys.stdout.isatty():
        return None
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or None
    except OSError:
        return None


def screen_height() -> int | None:
    """Return the lines of the screen for a text that is drawn again and again.

    None means any number, as on a dumb terminal.
    """
    if is_dumb():
        return None
    try:
        return os.get_terminal_size(sys.stdout.fileno()).lines or None
    except (OSError, ValueError):
        return None


def folded(text: str, width: int | None, indent: int) -> list[str]:
    """Fold *text* into lines of at most *width* columns, all but the first behind *indent* blanks; None: one line."""
    if width is None or len(text) <= width:
        return [text]
    blanks = " " * min(indent, max(0, width - _LEAST_TEXT))
    # Words that are too long are paths. They stay whole, so that they can be copied.
    return textwrap.wrap(
        text, width, subsequent_indent=blanks, break_long_words=False, break_on_hyphens=False, drop_whitespace=True
    )


def note(text: str) -> None:
    """Print a message that is not the answer itself, on standard error."""
    click.echo(text, err=True)


def print_json(value: Any, *, one_line: bool = False, err: bool = False) -> None:
    """Print *value* as JSON in ASCII, indented on a terminal; on standard error with *err*.

    Metadata of agents may hold control characters outside ASCII that terminals obey: U+009B begins an escape sequence.
    """
    encoded = msgspec.json.encode(value)
    if (sys.stderr if err else sys.stdout).isatty() and not one_line:
        encoded = msgspec.json.format(encoded, indent=2)
    text = encoded.decode()
    if not text.isascii() or "\x7f" in text:
        text = re.sub(r"[^\x00-\x7e]", _json_escape, text)
    click.echo(text, err=err)


def table(columns: Sequence[Column], rows: Iterable[Sequence[Cell]], width: int | None, *, colour: bool) -> str:
    """Lay out *rows* under the headings, within *width* columns. None means any width.

    When the columns do not fit, texts are cut (with ``~``) and columns are left out, see `Column`.
    """
    lines = [[Cell(column.heading) for column in columns], *rows]
    widths = [max(len(line[i].text) for line in lines) for i in range(len(columns))]
    kept = list(range(len(columns)))
    if width is not None:
        kept, widths = _fitted(columns, widths, width)
    formats = [(i, widths[i], columns[i].numeric, i == kept[-1]) for i in kept]
    return "\n".join(_line(line, formats, colour=colour) for line in lines)


def line(cells: Sequence[Cell], widths: Sequence[int], width: int | None, *, colour: bool) -> str:
    """Lay out *cells* in columns of at least *widths*, as one line of a growing list; cut at *width* columns."""
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
    """Return *text* in a colour when colours are enabled."""
    return click.style(text, fg=colour) if colour and enabled else text


def _fitted(columns: Sequence[Column], widths: Sequence[int], available: int) -> tuple[list[int], list[int]]:
    """Return the columns that fit, and all widths. The kept columns have the widths to which they are cut."""
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
        # The last text is not padded: a line ends without blanks.
        padded = text.rjust(width) if numeric else text if last else text.ljust(width)
        parts.append(styled(padded, its_colour, enabled=colour))
    return "  ".join(parts).rstrip()


def _cut(text: str, width: int, *, ends: bool) -> str:
    """Cut *text* to *width* columns, with ``~`` for the missing part. *ends* keeps its end too: ids begin alike."""
    kept = min(8, width // 3) if ends else 0
    return f"{text[: width - kept - 1]}~{text[len(text) - kept :]}"


def _json_escape(found: re.Match[str]) -> str:
    # A character outside the basic plane needs two escapes in JSON, a UTF-16 surrogate pair.
    units = found[0].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))
