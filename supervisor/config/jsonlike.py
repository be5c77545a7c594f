"""JSON objects written as KDL nodes: the body of `agent-config`.

    rules_version "3.4.0"               "rules_version": "3.4.0"          one argument: a value
    paranoia 2                          "paranoia": 2
    tags "eu" "blue"                    "tags": ["eu", "blue"]            several: an array
    (array)tags "eu"                    "tags": ["eu"]                    an array even of one or none
    limit rate=100 burst=20             "limit": {"rate": 100, "burst": 20}
    limit { rate 100; burst 20 }        the same; both together: one object
    rules { - id=1; - id=2 }            "rules": [{"id": 1}, {"id": 2}]   children called "-": an array
    (object)limit                       "limit": {}                       an empty object

Some forms are errors, because they would lose data or are ambiguous: a name twice in one object, arguments beside
properties or children, `-` beside names, a node without any content, other type annotations, infinity and NaN, and
numbers beyond 64 bits.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from supervisor.config.document import Node, Scalar
from supervisor.config.errors import printable

# Agents decode this with parsers of their own, some of them recursive.
MAX_LEVELS = 32

# Called with a node, the path to it, a message and a hint.
Report = Callable[[Node, str, str, str | None], None]


def to_object(node: Node, where: str, report: Report, level: int = 1) -> dict[str, Any]:
    """Make an object of the properties and children of `node`. Bad ones go to `report` and are left out or None."""
    result: dict[str, Any] = {name: _scalar(node, value, where, report) for name, value in node.properties.items()}
    seen: dict[str, int | None] = dict.fromkeys(node.properties, node.line)
    for child in node.children:
        path = step(where, child)
        if child.name == "-":
            report(child, path, "an element of an array beside named values", 'give it a name, or call all "-"')
        elif child.name in seen:
            line = seen[child.name]
            report(
                child,
                path,
                "is there already" + (f", on line {line}" if line is not None else ""),
                "write an array as one node with several values, or as a block of nodes called -",
            )
        else:
            seen[child.name] = child.line
            result[child.name] = _value(child, path, report, level + 1)
    return result


def step(where: str, node: Node) -> str:
    """Append the node's name to the path, cut after 40 characters."""
    name = node.name if len(node.name) <= 40 else node.name[:40] + "…"
    return f"{where} > {printable(name)}"


def _value(node: Node, where: str, report: Report, level: int) -> Any:
    """Turn one node into the JSON value of its name."""
    if level > MAX_LEVELS:
        report(node, where, f"is nested more than {MAX_LEVELS} levels deep", None)
        return None
    if node.annotation not in (None, "array", "object"):
        report(node, where, "a type annotation here is (array) or (object)", None)
    inside = bool(node.properties or node.children)
    if node.args and (inside or node.annotation == "object"):
        report(node, where, "values beside properties or children", "give the values a name of their own")
    elif node.args:
        values = [_scalar(node, value, where, report) for value in node.args]
        return values if len(values) > 1 or node.annotation == "array" else values[0]
    elif _is_array(node):
        return [_value(child, step(where, child), report, level + 1) for child in node.children]
    elif inside or node.annotation == "object":
        if node.annotation == "array":
            report(node, where, "names in an array", 'call its elements "-"')
        return to_object(node, where, report, level)
    else:
        report(node, where, "has no value", "write one behind it: true, a number, a string; or (object) in front")
    return None


def _is_array(node: Node) -> bool:
    children: Sequence[Node] = node.children
    if node.annotation == "object" or node.properties:
        return False
    if children:
        return all(child.name == "-" for child in children)
    return node.annotation == "array"


def _scalar(node: Node, value: Scalar, where: str, report: Report) -> Scalar:
    if isinstance(value, float) and not math.isfinite(value):
        report(node, where, "JSON has no infinity and no NaN", "write it as a string")
        return None
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        report(node, where, "a number that does not fit into 64 bits", "write it as a string")
        return None
    return value
