"""Blocks of a document that are to be run: fenced, behind a mark of their own."""

import re
from pathlib import Path


def block(document: Path, name: str) -> str:
    """The block of *document* behind ``<!-- name -->``."""
    found = re.search(rf"<!-- {re.escape(name)} -->\n```\w+\n(.*?)```", document.read_text(), re.DOTALL)
    assert found, f"{document.name} has no block {name!r}"
    return found[1]


def names(document: Path, prefix: str) -> list[str]:
    """The marks of all blocks of *document* that begin with *prefix*, in order."""
    return re.findall(rf"<!-- ({re.escape(prefix)}.*?) -->\n```", document.read_text())


def without_mark(document: Path) -> list[str]:
    """The first lines of shell blocks that have no mark: nobody would run them."""
    return re.findall(r"(?<!-->)\n```sh\n(.*)\n", document.read_text())
