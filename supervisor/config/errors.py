"""Errors of a configuration: each problem with its place and, where possible, a hint.

ConfigError          a mistake of the operator: one or many Problems, exit code 78
  └─ Problem         one mistake: file and line, node or option, message, hint
"""

from collections.abc import Iterable

import msgspec


def printable(text: str) -> str:
    """Escape all characters of `text` that could move a cursor or forge a line on a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def quoted(text: str, limit: int = 60) -> str:
    """Put `text` in double quotes for a message. It is escaped, and cut after `limit` characters."""
    if len(text) > limit:
        text = text[:limit] + "…"
    return '"' + printable(text) + '"'


class Problem(msgspec.Struct, frozen=True):
    """One mistake and its place.

    `file` is None for a command line option. `line` counts from 1; None when the problem has no single line. `where` is
    a path of nodes (`reverse-listener > require-auth`) or an option (`--shards`).
    """

    file: str | None
    line: int | None
    where: str
    message: str
    hint: str | None = None

    def __str__(self) -> str:
        place = ""
        if self.file is not None:
            place = f"{self.file}: " if self.line is None else f"{self.file}:{self.line}: "
        where = f"{self.where}: " if self.where else ""
        hint = f"; {self.hint}" if self.hint else ""
        return printable(f"{place}{where}{self.message}{hint}")


class ConfigError(Exception):
    """A configuration that must not be used. Holds every problem found, in the order of the file.

    `str()` gives one problem per line. A program that ends with this error exits with `exit_code` (EX_CONFIG of
    sysexits.h).
    """

    exit_code = 78

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = list(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        return "\n".join(map(str, self.problems))
