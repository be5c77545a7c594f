"""A KDL text as a tree of nodes with their lines, or the problems of a text that is not KDL."""

from collections.abc import Sequence

import ckdl
import msgspec

from supervisor.config.errors import ConfigError, Problem
from supervisor.config.repair import Judge, advise
from supervisor.config.scan import MAX_DEPTH, Lines, Mark, Scan, scan

Scalar = str | int | float | bool | None


class Node(msgspec.Struct, frozen=True):
    """A KDL node.

    `annotated` lists the type annotations on its values. The reader of the node decides about them. `span` holds the
    offsets of its text, begin and end; None when they are unknown.
    """

    name: str
    line: int | None
    args: tuple[Scalar, ...] = ()
    properties: dict[str, Scalar] = {}
    children: "tuple[Node, ...]" = ()
    annotation: str | None = None
    annotated: tuple[str, ...] = ()
    span: tuple[int, int] | None = None


class Document(msgspec.Struct, frozen=True):
    """The top-level nodes of a text.

    `kdl2` is set when the text has a word of KDL 2, such as `#true`. Hints must then spell such words the same way.
    `after_semicolon` holds the offsets of nodes behind a semicolon that begins their line.
    """

    nodes: tuple[Node, ...]
    kdl2: bool = False
    text: str = ""
    after_semicolon: frozenset[int] = frozenset()

    def spelling(self, node: Node) -> str:
        """Return the text of a node, with its block; empty when its offsets are unknown."""
        return "" if node.span is None else self.text[node.span[0] : node.span[1]]

    def words_of(self, node: Node) -> str:
        """Return the spelling of true that keeps the text valid in place of a node: `true` or `#true`."""
        if self.kdl2 or node.span is None:
            return "#true" if self.kdl2 else "true"
        start, end = node.span
        # A bare word as a value makes the text KDL 2, where true is spelled #true.
        return "true" if isinstance(_parse(f"{self.text[:start]}x true{self.text[end:]}"), ckdl.Document) else "#true"


def _no_proposal(_: str) -> bool:
    return False


def read_document(text: str, source: str, judge: Judge = _no_proposal) -> Document:
    """Parse KDL 1 or 2. Raises ConfigError with one problem, with its line when that is known.

    *judge* decides which lines a hint may propose.
    """
    scanned, lines = scan(text), Lines(text)
    if scanned.limit is not None:
        offset, message = scanned.limit
        raise ConfigError([Problem(source, lines.at(offset), "", message)])
    parsed = _parse(text)
    if isinstance(parsed, str):
        offset, message, hint = _locate(text, scanned, parsed, judge)
        raise ConfigError([Problem(source, lines.at(offset), "", f"syntax error: {message}", hint)])
    try:
        nodes = _build(parsed.nodes, scanned.nodes, lines, None, 0)
    except RecursionError:
        raise ConfigError([Problem(source, None, "", f"blocks are nested more than {MAX_DEPTH} deep")]) from None
    return Document(nodes, scanned.kdl2, text, frozenset(scanned.after_semicolon))


def _parse(text: str) -> "ckdl.Document | str":
    """Parse a text. Return the document, or the message of the parser's error."""
    try:
        return ckdl.parse(text)
    except ckdl.ParseError as error:
        return str(error)
    except (ValueError, OverflowError) as error:
        # Text that is not UTF-8, or an escape such as \u{D800} that stands for no character.
        return "a character that is not allowed" if isinstance(error, UnicodeError) else "a value is out of range"


def _locate(text: str, scanned: Scan, error: str, judge: Judge) -> tuple[int, str, str | None]:
    """Find the place of a syntax error: offset, message, hint.

    Every checkpoint before the error closes to a valid document. Every later one does not. A binary search finds the
    first bad checkpoint, with about 10 parses for a file of a thousand nodes.
    """
    points = scanned.checkpoints
    low, high = 0, len(points)
    while low < high:
        middle = (low + high) // 2
        point = points[middle]
        low, high = (middle + 1, high) if _closes(text[: point.end], point.depth) else (low, middle)
    if low < len(points):
        bad = points[low]
        mixed = scanned.kdl1 and scanned.kdl2
        advice = advise(text[bad.start : bad.end], text[bad.start : bad.start + 8192], error, judge, mixed=mixed)
        found = bad.start, _reworded(error), advice
        begin, end, depth = bad.start, bad.end, bad.depth
    elif scanned.broken is not None:
        found = *scanned.broken, _block_hint(text, *scanned.broken)
        begin, end, depth = (points[-1].end, found[0], points[-1].depth) if points else (0, found[0], 0)
    else:
        return len(text.rstrip()), _reworded(error), None
    # A string without its closing quote goes on to the next quote. The text after that quote is invalid. The text
    # before the string is valid.
    loose = next((start for start in scanned.loose_strings if begin <= start <= end), None)
    if loose is not None and _closes(text[:loose], depth):
        return loose, "a string that begins here runs over the end of the line", "is its closing quote missing?"
    return found


def _closes(text: str, depth: int) -> bool:
    """Tell whether the beginning of a text is a document once its open blocks are closed."""
    return not isinstance(_parse(text + "\n" + "}\n" * depth), str)


def _reworded(error: str) -> str:
    return "this is not KDL" if error == "Parse error" else error[:1].lower() + error[1:]


def _block_hint(text: str, offset: int, message: str) -> str | None:
    if "needs a name" not in message:
        return None
    if text[offset] == "{" and not text[:offset].strip():
        return "this looks like JSON: a block of KDL is its name, and its nodes between { and }"
    return "the brace stands on the line of the name"


def _build(
    nodes: "Sequence[ckdl.Node]", marks: Sequence[Mark] | None, lines: Lines, above: int | None, depth: int
) -> tuple[Node, ...]:
    """Join the parser's nodes with the scanner's marks. Nodes without a match get the line of their parent.

    Raises RecursionError beyond MAX_DEPTH, which the scanner should have refused.
    """
    if depth > MAX_DEPTH:
        raise RecursionError
    marks = marks or ()
    known = len(nodes) == len(marks) and all(
        mark.name is None or mark.name == node.name for node, mark in zip(nodes, marks, strict=True)
    )
    built = []
    for index, node in enumerate(nodes):
        line = lines.at(marks[index].start) if known else above
        inner = marks[index].children if known else None
        values = [*node.args, *node.properties.values()]
        built.append(
            Node(
                node.name,
                line,
                tuple(map(_plain, node.args)),
                {name: _plain(value) for name, value in node.properties.items()},
                _build(node.children, inner, lines, line, depth + 1),
                node.type_annotation,
                tuple(value.type_annotation for value in values if isinstance(value, ckdl.Value)),
                (marks[index].start, marks[index].end) if known else None,
            )
        )
    return tuple(built)


def _plain(value: object) -> Scalar:
    """Return a value without its type annotation."""
    inner = value.value if isinstance(value, ckdl.Value) else value
    assert inner is None or isinstance(inner, str | int | float), "KDL has no other values"
    return inner
