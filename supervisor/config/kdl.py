"""Reads the `reverse-listener` block of a KDL file. The file may be the configuration of a whole proxy.

Other top-level blocks belong to the proxy and are ignored. A block with a name like a misspelt `reverse-listener` is an
error. Inside the block, unknown and repeated nodes are errors. Otherwise a misspelt limit would have no effect, without
any message.

Relative paths count from the folder of the file. The current directory does not change the meaning of a configuration.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

import msgspec

from ipc.options import PoolOptions
from ipc.rundir import default_runtime_dir
from supervisor.config import values
from supervisor.config.document import Document, Node, read_document
from supervisor.config.errors import ConfigError, Problem, quoted
from supervisor.config.files import MAX_FILE_BYTES, read_text
from supervisor.config.hints import (
    digest_hint,
    missing_block_hint,
    next_node,
    next_node_hint,
)
from supervisor.config.jsonlike import to_object
from supervisor.config.model import (
    BLOCK,
    AgentConfigRule,
    Config,
    ReverseConnectionConfig,
    Token,
    validate,
)
from supervisor.config.nodes import (
    IN_ADMIN,
    IN_AUTH,
    IN_POOL,
    KNOWN,
    LIMITS,
    PATHS,
    PLAIN,
    SEVERAL,
    SINGLE,
    begins_comment,
    looks_like_block,
)
from supervisor.config.options import override, rename
from supervisor.config.reader import NodeReader, on_line
from supervisor.config.tokens import load_tokens, parse_digest


def load_config(
    path: str | os.PathLike[str],
    options: Mapping[str, object] | None = None,
    lines: dict[str, int | None] | None = None,
    others: list[str] | None = None,
) -> Config:
    """Read and check a file of at most 1 MiB, and the token files that it names. Raises ConfigError.

    `options` of the command line (see `options.apply_options`) replace values of the file before the checks. So an
    option may supply a value that the file lacks, such as a token file. The tokens of token files are checked and not
    kept; `tokens.load_tokens` reads them again. `lines` is filled with the line of each node, under its path. `others`
    is filled with the names of the proxy's blocks, which are not read.
    """
    source = os.fspath(path)
    reader = _Reader(source, _parse(read_text(source), source))
    config, problems = reader.read(options or {})
    if lines is not None:
        lines.update(reader.lines)
    if others is not None:
        others += dict.fromkeys(node.name for node in reader.document.nodes if node.name != BLOCK)
    try:
        load_tokens(config)
    except ConfigError as error:
        for problem in error.problems:
            if problem.file != source:
                problems.append(problem)
            elif not problems:
                # All token files are empty. Any other problem may be the cause, so this one is reported alone only.
                problems += reader.placed(rename([problem], options or {}))
    if problems:
        raise ConfigError(problems)
    return config


def parse_config(text: str, source: str) -> Config:
    """Parse and check a text. `source` names it in errors; relative paths count from the folder of `source`.

    Raises ConfigError with every problem of the text. Opens no file.
    """
    config, problems = _Reader(source, _parse(text, source)).read({})
    if problems:
        raise ConfigError(problems)
    return config


def _parse(text: str, source: str) -> Document:
    if len(text) > MAX_FILE_BYTES:
        raise ConfigError([Problem(source, None, "", f"is larger than {MAX_FILE_BYTES} bytes")])
    return read_document(text, source, _is_good)


def _is_good(line: str) -> bool:
    """Whether a line is valid in the block, in `pool` or in `admin`. Nodes that may hold a secret never are."""
    name = line.partition(" ")[0]
    block = next(
        (block for block, names in (("", PLAIN), ("pool", IN_POOL), ("admin", IN_ADMIN)) if name in names), None
    )
    if block is None:
        return False
    text = f"{block} {{\n{line}\n}}" if block else line
    try:
        reader = _Reader("", read_document(f"{BLOCK} {{\n{text}\n}}", ""))
        # With a token file, require-auth alone passes the check for tokens.
        reader.read({"token_file": "tokens"})
    except ConfigError:
        return False
    # Problems with the block around the line do not count: an admin block may lack its listen.
    return not any(problem.where.endswith(f" > {name}") for problem in reader.problems)


class _Reader(NodeReader):
    """Collects the values of the block, and all its problems."""

    def __init__(self, source: str, document: Document) -> None:
        super().__init__(source, document)
        self.fields: dict[str, Any] = {"source": source}
        self.tokens: list[Token] = []
        self.token_files: list[str] = []
        self.rules: list[AgentConfigRule] = []
        self.pool: dict[str, Any] = {}

    # The block among the blocks of a proxy.

    def find_block(self) -> Node:
        """Return the `reverse-listener` block. Raises ConfigError when there is none, or more than one."""
        found = [node for node in self.document.nodes if node.name == BLOCK]
        for node in self.document.nodes:
            if node.name != BLOCK and looks_like_block(node.name):
                yaml = " A block stands between { and }" if node.name.endswith(":") else ""
                hint = "a comment begins with //" if begins_comment(node.name) else f'did you mean "{BLOCK}"?{yaml}'
                self.report(node, "", f"unknown block {quoted(node.name)}", hint)
        for node in found[1:]:
            self.report(node, BLOCK, f"there is a block already{on_line(found[0])}", "join the two")
        if not found and not self.problems:
            path = quoted(str(default_runtime_dir() / "agents.sock"), 4096)
            blame, hint = missing_block_hint(self.document, looks_like_block, f"write {BLOCK} {{ path {path} }}")
            line = None if blame is None else blame.line
            self.problems.append(Problem(self.source, line, "", f"there is no {BLOCK} block", hint))
        if not found or len(found) > 1:
            raise ConfigError(self.problems)
        return found[0]

    # The nodes of the block.

    def read(self, options: Mapping[str, object]) -> tuple[Config, list[Problem]]:
        """Read all nodes, apply the options, and check the result. Return it with all problems."""
        block = self.find_block()
        if block.args or block.properties:
            hint = "write each as a node between { and }"
            if block.args:
                hint = f"remove what is between {BLOCK} and {{, or write it as a node between {{ and }}"
            self.report(block, BLOCK, "takes no values of its own", hint)
        self.check_annotations(block, BLOCK)
        self.check_semicolons(block, BLOCK)
        self.lines[BLOCK] = block.line
        self.read_nodes(block, BLOCK, KNOWN, ("agent-config",), self.read_node)
        config, problems = override(self.build(), options)
        # One mistake is one problem: after a problem with a token, the missing token is not reported too.
        tokens_broken = any(" > auth" in problem.where for problem in self.problems)
        found = [p for p in validate(config) if not (tokens_broken and p.where.endswith("> require-auth"))]
        self.problems += self.placed(rename(found, options))
        self.problems.sort(key=lambda problem: problem.line or 0)
        return config, self.problems + problems

    def placed(self, problems: Iterable[Problem]) -> list[Problem]:
        """Add line numbers to problems that name nodes. A repeated node has the line of the first."""
        return [
            problem
            if problem.file is None
            else msgspec.structs.replace(
                problem,
                line=self.lines.get(problem.where, self.lines[BLOCK]),
                hint=self.in_its_spelling(problem.hint),
            )
            for problem in problems
        ]

    def in_its_spelling(self, hint: str | None) -> str | None:
        """Return a hint with `true` in the spelling of this file's version of KDL."""
        return None if hint is None else hint.replace(" true", " #true") if self.document.kdl2 else hint

    def read_node(self, node: Node, where: str) -> None:
        if node.name in SINGLE:
            field, convert = SINGLE[node.name]
            self.store(field, self.one_value(node, where, convert))
        elif node.name in SEVERAL:
            field, convert = SEVERAL[node.name]
            self.check_plain(node, where)
            # An empty list of agents has an error of its own in `validate`, which names the effect.
            if not node.args and (node.properties or node.children):
                pass
            elif not node.args and field != "allowed_agents":
                self.report(node, where, "expected at least one value, got none")
            elif (name := next_node(self.document, node)) is not None:
                self.report(node, where, f"{name} among its values is the name of another node", next_node_hint(name))
            else:
                got = self.converted(node, where, convert, node.args)
                self.fields.update({field: got} if got is not None else {})
        elif node.name == "auth":
            if node.args or node.properties:
                self.report(node, where, "takes no values of its own", "write token or token-file between { and }")
            self.check_annotations(node, where)
            self.read_nodes(node, where, IN_AUTH, IN_AUTH, self.read_auth)
        elif node.name == "admin" and len(node.args) == 1 and not (node.children or node.properties):
            listen = node.args[0]
            bare = isinstance(listen, str) and _is_good(f"listen {quoted(listen, 4096)}")
            hint = f"write admin {{ listen {quoted(str(listen), 4096)} }}" if bare else "write listen between { and }"
            self.report(node, where, "takes no values of its own", hint)
        elif node.name in ("pool", "admin"):
            if node.args or node.properties:
                self.report(node, where, "takes no values of its own", "write each as a node between { and }")
            self.check_annotations(node, where)
            known, read = (IN_POOL, self.read_pool) if node.name == "pool" else (IN_ADMIN, self.read_admin)
            before = len(self.problems)
            self.read_nodes(node, where, tuple(known), (), read)
            has_listen = node.name == "pool" or any(child.name == "listen" for child in node.children)
            if not has_listen and not node.properties and len(self.problems) == before:
                self.report(node, where, "has no listen", 'write listen "127.0.0.1:9180" into it, or remove it')
        else:
            self.read_agent_config(node, where)

    def read_auth(self, node: Node, where: str) -> None:
        """Read a token or a token file. No message shows the text in place of a digest: it may be the token."""
        if node.name == "token-file":
            self.check_plain(node, where)
            if not node.args:
                self.report(node, where, "expected at least one file, got none")
            self.token_files += map(self.resolved, self.converted(node, where, values.path, node.args) or ())
            return
        how = 'write token "PATTERN" sha256="…"; "shardgate token" prints such a line'
        self.check_annotations(node, where)
        if node.children:
            self.report(node, where, "takes no block", how)
        unknown = [name for name in node.properties if name not in ("sha256", "max-connections")]
        digest = node.properties.get("sha256")
        if unknown:
            self.report(node, where, f"unknown property {quoted(unknown[0])}", how)
        elif digest is None:
            self.report(node, where, 'has no sha256="…"', how)
        elif not node.args:
            self.report(node, where, "expected at least one pattern of agent ids, got none", how)
        else:
            patterns = self.converted(node, where, values.pattern, node.args)
            most = self.converted(
                node, where, values.most_connections,
                [value for name, value in node.properties.items() if name == "max-connections"],
            )  # fmt: skip
            try:
                parsed = parse_digest(digest if isinstance(digest, str) else "")
            except ValueError as error:
                self.report(node, where, str(error), digest_hint(str(digest)) or how)
            else:
                if patterns is not None and most is not None:
                    self.tokens.append(Token(patterns, parsed, *most))

    def read_pool(self, node: Node, where: str) -> None:
        field, convert = IN_POOL[node.name]
        got = self.one_value(node, where, convert)
        if got is not None:
            self.pool[field] = got[0]

    def read_admin(self, node: Node, where: str) -> None:
        field, convert = IN_ADMIN[node.name]
        self.store(field, self.one_value(node, where, convert))

    def read_agent_config(self, node: Node, where: str) -> None:
        if not node.args:
            self.report(
                node,
                where,
                "expected at least one pattern of agent ids, got none",
                'agent-config "*" { … } is for every agent',
            )
        patterns = self.converted(node, where, values.pattern, node.args)
        if node.annotation is not None:
            self.report(node, where, "takes no type annotation")
        content = to_object(node, where, self.report)
        if patterns:
            self.rules.append(AgentConfigRule(patterns, content))

    def store(self, field: str, got: tuple[Any, ...] | None) -> None:
        if got is not None:
            self.fields[field] = self.resolved(got[0]) if field in PATHS and isinstance(got[0], str) else got[0]

    def resolved(self, path: str) -> str:
        """Resolve a relative path against the folder of the file."""
        return str(PurePath(self.source).parent / path)

    def build(self) -> Config:
        """Make the configuration from the values that could be read, with defaults for the rest."""
        fields = {name: value for name, value in self.fields.items() if name not in LIMITS}
        limits = {name: value for name, value in self.fields.items() if name in LIMITS}
        total = fields.get("max_handshakes", Config().max_handshakes)
        # An operator may lower the total alone. The default limit per peer then follows it.
        fields.setdefault("max_handshakes_per_peer", max(1, min(Config().max_handshakes_per_peer, total)))
        return Config(
            **fields,
            limits=ReverseConnectionConfig(**limits),
            tokens=tuple(self.tokens),
            token_files=tuple(self.token_files),
            agent_config=tuple(self.rules),
            pool=PoolOptions(**self.pool),
        )
