"""Hints about a line that is not KDL, from its spelling. Pure.

Operators write the comments, lists and assignments of other languages. A hint proposes a line only when the caller
judges that line valid. The text may hold a secret, so a hint repeats only parts that are known to be harmless.
"""

import re
from collections.abc import Callable, Iterator

from supervisor.config.scan import KDL2_WORDS, Word, words

Judge = Callable[[str], bool]
"""Whether a line is valid inside the block, and may be repeated in a message."""

_DURATION = re.compile(r'(?<![\w".])\d+(?:ms|s|m|h)(?![\w".])')
_SIZE = re.compile(r"(?<![\w\".])\d+\s*[kKmMgG](?:i?[bB])?(?![\w\"])")
_TYPOGRAPHIC = re.compile("[\u2018\u2019\u201a\u201c\u201d\u201e\u00ab\u00bb]")
_LIST = re.compile(r"[^\[\]{}]{0,100}\[([^\[\]{}]{0,4000})\]")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"|[^\s",;\[\]]+')
_GOES_ON = re.compile(r"[ \t]*\r?\n[ \t]*\"")
_MAX_LINE = 1000


def advise(node: str, rest: str, error: str, judge: Judge, *, mixed: bool = False) -> str | None:
    """Return a hint for *node*, which is not KDL. *rest* is the text from there on.

    *error* is the parser's message. *mixed* means that the text has words of both versions of KDL.
    """
    node = node.strip()
    comment = next((word for word in words(node) if _begins_comment(word)), None)
    if comment is not None:
        return "a comment begins with //; text that begins with # stands in double quotes"
    if mixed:
        return "KDL 1 writes true and KDL 2 writes #true: use one of them in the whole file"
    for look in (_foreign, _list, _assignment, _comma, _name, _case, _brace, _quotes, _number):
        hint = look(node, rest, judge)
        if hint is not None:
            return hint
    if "identifier" in error or "argument" in error or error == "Parse error":
        return _proposed(_quoted_words(node), judge) or (
            "put text in double quotes, and a space in front of each value and brace"
        )
    return None


def _begins_comment(word: Word) -> bool:
    if word.kind != "bare" or not word.text.startswith("#"):
        return False
    return word.text not in KDL2_WORDS and word.text.lower() not in KDL2_WORDS


def _foreign(node: str, rest: str, _: Judge) -> str | None:
    if node.startswith("[") and re.match(r"\[+[\w.\" -]+\]+\s*(?:\n|$)", rest):
        return "this looks like TOML or INI: a block of KDL is its name, and its nodes between { and }"
    if node.startswith("<"):
        return "this looks like XML: a block of KDL is its name, and its nodes between { and }"
    return None


def _list(_: str, rest: str, judge: Judge) -> str | None:
    found = _LIST.match(rest)
    if found is None:
        return None
    name = re.split(r"[\s=:\[]", rest, maxsplit=1)[0]
    values = " ".join(value if value.startswith('"') else f'"{value}"' for value in _STRING.findall(found[1]))
    hint = "a list has no brackets and no commas: its values stand behind the name"
    return _proposed([f"{name} {values}"], judge) or hint


def _assignment(node: str, _: str, judge: Judge) -> str | None:
    found = re.match(r'("?[A-Za-z_][\w.-]*"?)\s*(?:=|:=|:)\s*(.*)', node)
    if found is None:
        return None
    name, value = found.groups()
    lines = [f"{name} {value}".rstrip(" ,;"), *_quoted_words(f"{name} {value}".rstrip(" ,;"))]
    return _proposed(lines, judge) or "the value stands behind the name and a space, without = or :"


def _comma(node: str, rest: str, judge: Judge) -> str | None:
    found = words(node)
    if not any(word.kind == "bare" and "," in word.text for word in found):
        return None
    if node.endswith(",") and _GOES_ON.match(rest, len(node)):
        return "values stand on one line with a space between them, or behind a backslash at the end of the line"
    lines = [
        " ".join(" ".join(change(word.text) if word.kind == "bare" else word.text for word in found).split())
        for change in (_without_thousands, lambda text: text.replace(",", " "))
    ]
    return _proposed([*lines, *_quoted_words(lines[-1])], judge) or "values have a space between them, and no comma"


def _without_thousands(text: str) -> str:
    return text.replace(",", "") if re.fullmatch(r"\d{1,3}(?:,\d{3})+", text) else text


def _name(node: str, rest: str, _: Judge) -> str | None:
    found = re.match(r"\d+(?=[\s{;}]|$)", node)
    if found is None:
        return None
    if "{" in rest.partition("\n")[0]:
        return f'a name that begins with a digit stands in double quotes: "{found[0]}"'
    return "a value stands behind the name of its node, on the same line and without braces"


def _case(node: str, _: str, judge: Judge) -> str | None:
    found = words(node)
    if all(word.text in KDL2_WORDS or word.text.lower() not in KDL2_WORDS for word in found if word.kind == "bare"):
        return None
    line = " ".join(word.text.lower() if word.text.lower() in KDL2_WORDS else word.text for word in found)
    return _proposed([line], judge) or "#true, #false and #null have small letters"


def _brace(node: str, _: str, __: Judge) -> str | None:
    return "put a space in front of each value and brace, as in: name {" if re.search(r'[\w"]\{', node) else None


def _quotes(node: str, _: str, judge: Judge) -> str | None:
    if _TYPOGRAPHIC.search(node) or re.search(r"\s'", node):
        straight = _TYPOGRAPHIC.sub('"', node).replace("'", '"')
        return _proposed([straight], judge) or 'text stands in straight double quotes, "…"'
    return None


def _number(node: str, _: str, __: Judge) -> str | None:
    size = _SIZE.search(node)
    duration = _DURATION.search(node)
    if duration is not None:
        return f'put it in double quotes: "{duration[0]}"'
    if size is not None:
        return "write the number of bytes, such as 65536 for 64 KiB"
    return None


def _quoted_words(node: str) -> list[str]:
    """Return the node with all its values in quotes; an empty list when it has quotes or marks already."""
    if any(character in node for character in '"{};()'):
        return []
    name, *values = node.split() or [""]
    return [f"{name} " + " ".join(f'"{value}"' for value in values)] if values else []


def _proposed(lines: list[str], judge: Judge) -> str | None:
    for line in lines:
        if len(line) <= _MAX_LINE and line.isprintable() and judge(line):
            return f"write {line}"
    return None


def spelled(node: str) -> Iterator[str]:
    """Yield the values of a node as they are spelled, without its name, its properties and its block."""
    found = words(node)[1:]
    for place, word in enumerate(found):
        after = found[place + 1].text if place + 1 < len(found) else ""
        before = found[place - 1].text if place else ""
        if word.text == "{":
            return
        if word.kind != "mark" and "=" not in (after, before):
            yield word.text
