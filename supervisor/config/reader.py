"""Reads the nodes of a configuration: converts their values and reports their problems."""

from collections.abc import Callable, Iterable

from supervisor.config import values
from supervisor.config.document import Document, Node, Scalar
from supervisor.config.errors import Problem, printable
from supervisor.config.hints import several_hint, spellings, value_hint
from supervisor.config.jsonlike import step
from supervisor.config.nodes import SEVERAL, Convert, T, meant
from supervisor.config.values import BadValue


class NodeReader:
    """Reads nodes of *document* and collects all problems. *source* is the name of the file in them."""

    def __init__(self, source: str, document: Document) -> None:
        self.source = source
        self.document = document
        self.problems: list[Problem] = []
        self.lines: dict[str, int | None] = {}
        """The line of each node that was read, under its path."""

    def report(self, node: Node, where: str, message: str, hint: str | None = None) -> None:
        """Keep a problem with a node."""
        self.problems.append(Problem(self.source, node.line, where, message, hint))

    def read_nodes(
        self,
        block: Node,
        where: str,
        known: tuple[str, ...],
        repeatable: tuple[str, ...],
        read: Callable[[Node, str], None],
    ) -> None:
        """Call `read` for each known node of a block. Unknown nodes and wrong repetitions are reported instead."""
        seen: dict[str, Node] = {}
        for node in block.children:
            path = step(where, node)
            if node.span is not None and node.span[0] in self.document.after_semicolon:
                continue
            if node.name not in known:
                self.report(node, path, "unknown node", meant(node.name, known))
            elif node.name in seen and node.name not in repeatable:
                hint = "put all values into one node" if node.name in SEVERAL else "remove one of the two"
                self.report(node, path, f"is there already{on_line(seen[node.name])}", hint)
            else:
                seen.setdefault(node.name, node)
                self.lines.setdefault(path, node.line)
                read(node, path)

    def check_plain(self, node: Node, where: str) -> None:
        """Report properties, blocks and type annotations of a node that takes values only."""
        if node.properties:
            name = printable(next(iter(node.properties))[:40])
            self.report(
                node, where, f'takes no properties, got "{name}"', "write the value alone, without a name and ="
            )
        if node.children:
            self.report(node, where, "takes no block", "write the value behind the name, without braces")
        self.check_annotations(node, where)

    def check_annotations(self, node: Node, where: str) -> None:
        """Report type annotations. No node that is checked here takes one."""
        if node.annotation is not None or node.annotated:
            self.report(node, where, "takes no type annotation")

    def check_semicolons(self, block: Node, where: str) -> None:
        """Report nodes behind a semicolon that begins their line. In other languages such a line is a comment."""
        for node in block.children:
            if node.span is not None and node.span[0] in self.document.after_semicolon:
                message = "stands behind a semicolon, which begins no comment: it is in effect"
                self.report(node, step(where, node), message, "a comment begins with //; else remove the semicolon")
            self.check_semicolons(node, step(where, node))

    def one_value(self, node: Node, where: str, convert: Convert[T]) -> tuple[T, ...] | None:
        """Convert the one value of a node. Reports no value, several values or a bad value, and returns None."""
        self.check_plain(node, where)
        if len(node.args) == 1:
            return self.converted(node, where, convert, node.args)
        # One mistake is one problem: a value in braces, or behind a name and =, is not reported as missing too.
        if node.args or not (node.properties or node.children):
            hint = several_hint(self.document, node, convert)
            self.report(node, where, f"expected one value, got {len(node.args) or 'none'}", hint)
        return None

    def converted(self, node: Node, where: str, convert: Convert[T], args: Iterable[Scalar]) -> tuple[T, ...] | None:
        """Convert all values. Reports every bad value, and returns None when there is one."""
        result: list[T] = []
        good = True
        how = spellings(self.document, node)
        for place, value in enumerate(args):
            try:
                result.append(convert(value))
            except BadValue as error:
                good = False
                hint = value_hint(convert, value, how[place] if place < len(how) else None, error.hint)
                if hint is not None and convert is values.boolean and self.document.words_of(node) == "#true":
                    hint = hint.replace(" true", " #true").replace(" false", " #false")
                self.report(node, where, error.message, hint)
        return tuple(result) if good else None


def on_line(node: Node) -> str:
    """Return the line of a node as the end of a message; empty when it is unknown."""
    return "" if node.line is None else f", on line {node.line}"
