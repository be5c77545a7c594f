"""Shows a configuration as KDL, and the differences between two of them. Pure. The results hold no secret.

A token is shown by the first digits of its digest, enough to find its line. An `agent-config` is shown by its size and
the first digits of its digest: it may hold a key for a service.
"""

import hashlib
from collections.abc import Iterator, Mapping
from enum import StrEnum

import msgspec

from ipc.options import PoolOptions
from supervisor.config.merge import encode
from supervisor.config.model import BLOCK, Config, TcpAddress, Token, format_duration
from supervisor.config.nodes import IN_ADMIN, IN_POOL, LIMITS, SEVERAL, SINGLE
from supervisor.config.values import duration, octal_mode

DIGEST_SHOWN = 12

NEEDS_RESTART = frozenset(
    {"path", "socket-mode", "socket-owner", "socket-group", "tcp-address", "shards", "runtime-dir", "pool",
     "status-dir", "status-mode", "status-group", "admin"}
)  # fmt: skip
"""Nodes that need a restart: the next supervisor uses the new value. `pool` and `admin` stand for all their nodes."""


class Setting(msgspec.Struct, frozen=True):
    """The values of a node, in the spelling of KDL, under its path below the block (``pool > strategy``).

    A node that may be repeated, such as a token, is one setting for each occurrence.
    """

    node: str
    values: tuple[str, ...]

    @property
    def top(self) -> str:
        """The first part of the path: the node directly below the block."""
        return self.node.partition(" > ")[0]


class Change(msgspec.Struct, frozen=True):
    """A node that differs between two configurations. `old` or `new` is empty when that one does not set it."""

    node: str
    old: list[str]
    new: list[str]
    needs_restart: bool


def settings(config: Config, *, tokens: tuple[Token, ...] = ()) -> list[Setting]:
    """List all settings of *config*, defaults included, in the documentation's order.

    *tokens* are the tokens of its token files.
    """
    found = []
    for node, (field, convert) in SINGLE.items():
        value = getattr(config.limits if field in LIMITS else config, field)
        if value is not None:
            found.append(Setting(node, (_spelled(value, convert),)))
    for node, (field, convert) in SEVERAL.items():
        several = getattr(config.limits if field in LIMITS else config, field)
        if several:
            found.append(Setting(node, tuple(_spelled(value, convert) for value in several)))
    for node, (field, convert) in IN_POOL.items():
        found.append(Setting(f"pool > {node}", (_spelled(getattr(config.pool, field), convert),)))
    if config.admin_listen is not None:
        for node, (field, convert) in IN_ADMIN.items():
            found.append(Setting(f"admin > {node}", (_spelled(getattr(config, field), convert),)))
    found += [Setting("auth > token-file", (quoted(path),)) for path in config.token_files]
    found += [_token("auth > token", token) for token in config.tokens]
    found += [_token("auth > token in a file", token) for token in tokens]
    for rule in config.agent_config:
        text = encode(rule.config)
        content = f"{{ /* {len(text)} bytes of JSON, sha256 {hashlib.sha256(text).hexdigest()[:8]} */ }}"
        found.append(Setting("agent-config", (*map(quoted, rule.patterns), content)))
    return found


def changes(old: list[Setting], new: list[Setting]) -> list[Change]:
    """Return the differences by node, in the order of *new*."""
    before, after = _by_node(old), _by_node(new)
    return [
        Change(node, before.get(node, []), after.get(node, []), node.partition(" > ")[0] in NEEDS_RESTART)
        for node in dict.fromkeys([*after, *before])
        if before.get(node) != after.get(node)
    ]


def as_kdl(found: list[Setting], notes: Mapping[str, str], *, only_noted: bool = False) -> Iterator[str]:
    """Yield the lines of a `reverse-listener` block. *notes* by node become comments behind the nodes.

    With *only_noted*, nodes without a note are left out.
    """
    yield f"{BLOCK} {{"
    inner: str | None = None
    for setting in found:
        if only_noted and setting.node not in notes:
            continue
        block, _, name = setting.node.rpartition(" > ")
        if block != (inner or ""):
            if inner:
                yield "    }"
            if block:
                yield f"    {block} {{"
            inner = block
        # Tokens of token files are shown as comments: they are not set in the configuration.
        commented = "// " if name.endswith(" in a file") else ""
        text = f"{commented}{name.removesuffix(' in a file')} {' '.join(setting.values)}"
        line = f"{'        ' if block else '    '}{text}"
        note = notes.get(setting.node)
        yield f"{line:<{_NOTES_BEGIN}} // {note}" if note else line
    if inner:
        yield "    }"
    yield "}"


def quoted(text: str) -> str:
    """Quote a string so that both versions of KDL read it."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\u{{{ord(c):x}}}" for c in escaped) + '"'


_NOTES_BEGIN = 56

assert {field for field, _ in IN_POOL.values()} <= set(PoolOptions.__struct_fields__)


def _token(node: str, token: Token) -> Setting:
    most = () if token.max_connections is None else (f"max-connections={token.max_connections}",)
    return Setting(node, (*map(quoted, token.patterns), f'sha256="{token.digest.hex()[:DIGEST_SHOWN]}..."', *most))


def _spelled(value: object, convert: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if convert is octal_mode and isinstance(value, int):
        return quoted(f"{value:04o}")
    if convert is duration and isinstance(value, int | float):
        return quoted(format_duration(value))
    if isinstance(value, int):
        return str(value)
    assert isinstance(value, str | StrEnum | TcpAddress), f"a setting of another type: {value!r}"
    return quoted(str(value))


def _by_node(found: list[Setting]) -> dict[str, list[str]]:
    by_node: dict[str, list[str]] = {}
    for setting in found:
        by_node.setdefault(setting.node, []).append(" ".join(setting.values))
    return by_node
