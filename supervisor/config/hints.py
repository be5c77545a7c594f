"""Hints about values and nodes that need more than the value itself: its spelling, or its neighbours. Pure.

A hint proposes a value only when the reader of that value accepts it.
"""

import re
from collections.abc import Callable, Iterable

from supervisor.config.document import Document, Node
from supervisor.config.errors import printable, quoted
from supervisor.config.model import BLOCK
from supervisor.config.nodes import ALL_NAMES, Convert, begins_comment
from supervisor.config.paths import VARIABLE
from supervisor.config.repair import spelled
from supervisor.config.values import BadValue, duration, integer, octal_mode

_AROUND = " \t,;'\"`\u2018\u2019\u201a\u201c\u201d\u201e\u00ab\u00bb"
_SIZE = re.compile(r"([0-9]{1,6})\s*([kmg])(i?b)?", re.IGNORECASE)
_BYTES = {"k": 1024, "m": 1024**2, "g": 1024**3}
_RIGHTS = re.compile(r"-?((?:[r-][w-][x-]){3})")
_DEFAULTS = ("auto", "default", "none", "max", "all", "unlimited", "infinity", "cpu", "cpus")


def value_hint(convert: Convert[object], value: object, spelling: str | None, hint: str | None) -> str | None:
    """Guess the intended value from *value* and its *spelling* in the file; else return *hint*, given by its reader."""
    if convert is octal_mode:
        return _mode_hint(value, spelling) or hint
    if not isinstance(value, str):
        return hint
    bare = value.strip(_AROUND)
    if bare != value and (meant := _taken(convert, bare)) is not None:
        return f"did you mean {meant}?"
    if convert is integer:
        return hint or _size_hint(value)
    return hint


def _taken(convert: Convert[object], text: str) -> str | None:
    """Return the spelling of *text* that its reader accepts; None when it accepts none."""
    candidates: list[tuple[object, str]] = [(text, quoted(text, 4096))]
    if re.fullmatch(r"[0-9]{1,15}", text):
        candidates.append((int(text), str(int(text))))
    for candidate, written in candidates:
        try:
            convert(candidate)
        except BadValue:
            continue
        return written
    return None


def _size_hint(value: str) -> str | None:
    size = _SIZE.fullmatch(value.strip())
    if size is not None and (size[3] or "").lower() == "ib":
        return f"did you mean {int(size[1]) * _BYTES[size[2].lower()]}?"
    if size is not None:
        return "write the number of bytes, such as 65536 for 64 KiB"
    return "leave the node out for its default" if value.strip().lower() in _DEFAULTS else None


def _mode_hint(value: object, spelling: str | None) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    if isinstance(value, str):
        rights = _RIGHTS.fullmatch(value.strip(_AROUND))
        if rights is not None:
            digits = "".join(str(sum(4 >> i for i in range(3) if part[i] != "-")) for part in _triples(rights[1]))
            return f'did you mean "0{digits}"?'
        meant = _taken(octal_mode, value.strip(_AROUND))
        return f"did you mean {meant}?" if meant else None
    if spelling is None:
        return 'such as "0660"'
    # Kubernetes writes 420, a decimal, for 0644. Read as octal digits, 420 gives the owner no right to write.
    as_number = f"{value:04o}" if 0 <= value <= 0o777 else None
    as_digits = f"0{value}" if re.fullmatch("[0-7]{3}", str(value)) else None
    if spelling.lower().startswith(("0o", "0x", "0b")):
        as_digits = None
    right = next((mode for mode in (as_digits, as_number) if mode and mode[1] in "67"), as_digits or as_number)
    return f'write it as a string: "{right}"' if right else None


def _triples(rights: str) -> Iterable[str]:
    return (rights[i : i + 3] for i in (0, 3, 6))


def spellings(document: Document, node: Node) -> list[str | None]:
    """Return the spelling of each value of a node; None for all when they cannot be matched."""
    found = list(spelled(document.spelling(node)))
    return [*found] if len(found) == len(node.args) else [None] * len(node.args)


def next_node(document: Document, node: Node) -> str | None:
    """Find the name of another node among the values of *node*: probably the next node, without a line break."""
    for value, spelling in zip(node.args, spellings(document, node), strict=True):
        if isinstance(value, str) and value in ALL_NAMES and (spelling is None or not spelling.endswith(('"', "#"))):
            return value
    return None


def several_hint(document: Document, node: Node, convert: Convert[object]) -> str | None:
    """Guess the mistake when a node has several values and one is expected."""
    name = next_node(document, node)
    if name is not None:
        return next_node_hint(name)
    if any(isinstance(value, str) and begins_comment(value) for value in node.args):
        return "a comment begins with //"
    if convert is duration and (meant := _taken(convert, "".join(map(str, node.args)))) is not None:
        return f"did you mean {meant}?"
    return None


def next_node_hint(name: str) -> str:
    """Return the hint that nodes need a line break or a semicolon between them."""
    return f"end each node with a line break or a semicolon, also in front of {name}"


def digest_hint(text: str) -> str | None:
    """Return the hint for a digest that names a variable; None for any other text."""
    if VARIABLE.search(text):
        return (
            "variables are not replaced by their values here; a token-file keeps digests apart from the configuration"
        )
    return None


_PROXY_BLOCKS = (
    "schema-version", "version", "system", "server", "listeners", "routes", "upstreams", "filters", "agents", "waf",
    "namespace", "limits", "observability", "rate-limits", "cache",
)  # fmt: skip
"""Top-level blocks in the configuration of the protocol's own proxy."""


def missing_block_hint(
    document: Document, looks_like_block: Callable[[str], bool], default: str
) -> tuple[Node | None, str]:
    """Return the hint for a missing `reverse-listener` block, and the node with the mistake, or None.

    The block may stand inside another one, or its nodes may stand at the top of the file.
    """
    inside = _find(document.nodes, looks_like_block)
    if inside is not None:
        above, node = inside
        return node, f'move "{BLOCK}" out of "{printable(above.name)}", to the top of the file'
    names = {node.name for node in document.nodes if node.children or node.args}
    ours = document.nodes if all(node.name in ALL_NAMES for node in document.nodes) else ()
    if "include" in names or "import" in names:
        word = "include" if "include" in names else "import"
        return None, f"{word} is not read: {default}"
    if ours:
        return ours[0], f'put "{ours[0].name}" and the other nodes into {BLOCK} {{ … }}'
    if names & set(_PROXY_BLOCKS):
        read = ", ".join(printable(name) for name in _PROXY_BLOCKS if name in names)
        return None, f"{read} of a proxy are not read: {default}"
    return None, default


def _find(nodes: Iterable[Node], looks_like_block: Callable[[str], bool]) -> tuple[Node, Node] | None:
    """Find the first `reverse-listener` block inside another block. Return the outer one and the inner one."""
    for above in nodes:
        for node in above.children:
            if looks_like_block(node.name):
                return above, node
        deeper = _find(above.children, looks_like_block)
        if deeper is not None:
            return deeper
    return None
