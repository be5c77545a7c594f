"""What commands print: JSON, tables, and texts from outside made safe for a terminal.

Tables are laid out here and not by rich: 100,000 connections took it 70 s, this takes one. rich draws what changes on
a screen (``status --watch``).
"""

import os
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import click
import msgspec


class Column(NamedTuple):
    """A column: its heading, whether it holds numbers, and how it gives way in a terminal that is too narrow.

    Texts of the last column are cut to *shortest* characters, where that is set, before columns are left out: those
    with the highest *gives_way* first. 0 stays.
    """

    heading: str
    numeric: bool = False
    gives_way: int = 0
    shortest: int | None = None


class Cell(NamedTuple):
    """A text in a table, and its colour where there are colours."""

    text: str
    colour: str | None = None


def use_colour() -> bool:
    """Whether standard output is a terminal and nobody asked for no colour (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def terminal_width() -> int | None:
    """The columns of the terminal; None when standard output is none and lines may have any length."""
    if not sys.stdout.isatty():
        return None
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or None
    except OSError:
        return None


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


def styled(text: str, colour: str | None, *, enabled: bool) -> str:
    """*text* in a colour where colours are enabled."""
    return click.style(text, fg=colour) if colour and enabled else text


def _fitted(columns: Sequence[Column], widths: Sequence[int], available: int) -> tuple[list[int], list[int]]:
    """The columns that fit, and all widths with the last of them cut."""
    least = [width if c.shortest is None else min(width, c.shortest) for c, width in zip(columns, widths, strict=True)]
    kept = list(range(len(columns)))

    def spare() -> int:
        return available - sum(least[i] for i in kept) - 2 * (len(kept) - 1)

    while spare() < 0:
        first_to_go = max(kept, key=lambda i: columns[i].gives_way)
        if not columns[first_to_go].gives_way:
            break
        kept.remove(first_to_go)
    cut = list(widths)
    cut[kept[-1]] = min(widths[kept[-1]], least[kept[-1]] + max(spare(), 0))
    return kept, cut


def _line(cells: Sequence[Cell], formats: Sequence[tuple[int, int, bool, bool]], *, colour: bool) -> str:
    parts = []
    for i, width, numeric, last in formats:
        text, its_colour = cells[i]
        if len(text) > width:
            text = text[: width - 1] + "~"
        # No blanks at the end of a line.
        padded = text.rjust(width) if numeric else text if last else text.ljust(width)
        parts.append(styled(padded, its_colour, enabled=colour))
    return "  ".join(parts).rstrip()


def _json_escape(found: re.Match[str]) -> str:
    # Outside the basic plane JSON has two escapes, a UTF-16 surrogate pair.
    units = found[0].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))
