"""Tokens of agents: makes, hashes, reads and checks them. Only digests are ever kept."""

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Iterable, Sequence

import msgspec

from supervisor.config.errors import ConfigError, Problem
from supervisor.config.files import read_text
from supervisor.config.lines import objection, split_lines
from supervisor.config.model import MAX_CONNECTIONS, Config, Token
from supervisor.config.patterns import AgentPatterns, pattern_problem

_HEX_DIGEST = re.compile(r"[0-9a-fA-F]{64}")
_LINE = re.compile(r"(\S+)\s+sha256[:=](\S+)(?:\s+max-connections[:=](\S+))?")
_HOW_TO = 'a line is PATTERN[,PATTERN…] sha256:HEX [max-connections:N]; "shardgate token" prints one'


def hash_token(token: str) -> bytes:
    """Return the SHA-256 of the token's UTF-8 form: 32 bytes."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def new_token() -> str:
    """Make a token of 256 random bits: 43 characters of A-Z a-z 0-9 - _."""
    return secrets.token_urlsafe(32)


_EMPTY_DIGEST = hash_token("")


def parse_digest(text: str) -> bytes:
    """Read a digest written as 64 hex digits. Raises ValueError.

    No message repeats the input: it may be the token itself, written here by mistake.
    """
    if not _HEX_DIGEST.fullmatch(text):
        raise ValueError(f"a SHA-256 is 64 hex digits, this has {len(text)} characters")
    digest = bytes.fromhex(text)
    if digest == _EMPTY_DIGEST:
        raise ValueError("this is the SHA-256 of nothing, and an empty token counts as a missing one")
    return digest


def read_token_file(path: str | os.PathLike[str]) -> tuple[Token, ...]:
    """Read tokens, one per line: `PATTERN[,PATTERN…] sha256:HEX [max-connections:N]`. Raises ConfigError.

    The error holds all problems. `=` is accepted in place of `:`. Blank lines and lines that begin with `#` are
    skipped. `access` has the rule about writers of the file, and `lines` the rule about ends of lines. Other users may
    read the file: it holds digests, and a generated token cannot be guessed from its digest.
    """
    name = os.fspath(path)
    lines = read_token_lines(split_lines(read_text(name)), name)
    if lines.problems:
        raise ConfigError(lines.problems)
    return tuple(token for _, token in lines.tokens)


class TokenLines(msgspec.Struct, frozen=True):
    """The content of a token file: tokens with their line numbers, and the problems of other lines."""

    tokens: list[tuple[int, Token]]
    problems: list[Problem]


def read_token_lines(lines: Sequence[str], name: str) -> TokenLines:
    """Read the lines of a token file. Problems name it *name*."""
    tokens: list[tuple[int, Token]] = []
    problems: list[Problem] = []
    for number, line in enumerate(lines, 1):
        odd = objection(line)
        if odd is not None:
            problems.append(Problem(name, number, "", odd, "remove it; a line ends with LF, or with CR and LF"))
            continue
        try:
            token = parse_token_line(line)
        except ValueError as error:
            problems.append(Problem(name, number, "token", str(error), _HOW_TO))
        else:
            tokens += [(number, token)] if token is not None else []
    return TokenLines(tokens, problems)


def parse_token_line(line: str) -> Token | None:
    """Read one line of a token file; None for a blank line and a comment.

    Raises ValueError. Its text never repeats the line.
    """
    text = line.strip()
    if not text or text.startswith("#"):
        return None
    found = _LINE.fullmatch(text)
    if found is None:
        raise ValueError("expected patterns and a SHA-256")
    patterns = tuple(found[1].split(","))
    for pattern in patterns:
        problem = pattern_problem(pattern)
        if problem is not None:
            raise ValueError(problem)
    return Token(patterns, parse_digest(found[2]), None if found[3] is None else _parse_most(found[3]))


def _parse_most(text: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,7}", text) or int(text) > MAX_CONNECTIONS:
        raise ValueError(f"max-connections: expected a number from 1 to {MAX_CONNECTIONS}")
    return int(text)


def load_tokens(config: Config) -> tuple[Token, ...]:
    """Collect the tokens of `config` and of its token files.

    Raises ConfigError for files that cannot be used, and when tokens are required but there are none.
    """
    tokens = list(config.tokens)
    problems: list[Problem] = []
    for path in config.token_files:
        try:
            tokens += read_token_file(path)
        except ConfigError as error:
            problems += error.problems
    if config.limits.require_auth and not tokens and not problems:
        files = ", ".join(config.token_files) or "the configuration"
        where = "reverse-listener > require-auth"
        problems.append(Problem(config.source, None, where, f"no agent could register: no token in {files}", _HOW_TO))
    if problems:
        raise ConfigError(problems)
    return tuple(tokens)


class _Entry(msgspec.Struct, frozen=True):
    digest: bytes
    patterns: AgentPatterns
    rules: tuple[tuple[AgentPatterns, str], ...] = ()


class TokenTable:
    """Checks presented tokens against digests. The time of a check reveals nothing about them.

    An attacker can vary the token and the agent id. The secrets are digests, tokens and the names of existing agents.

    - The token is hashed first. No later step sees a value that the attacker chose freely.
    - A dict finds the entry by a BLAKE2b of the digest, under a random key of this table. An attacker can neither
      predict nor choose the place in the dict. So the time of the look-up leaks no prefix of a digest. The number of
      tokens does not change its cost.
    - The full digests are compared with `hmac.compare_digest`.
    - A miss takes the same steps on a dummy entry: a comparison and a pattern match. An unknown agent, a known agent
      with a wrong token and a missing token differ in no step. The agent's id is matched against configured patterns
      only when the digest of its token was found.

    Several tokens may be valid for one id, so that tokens can be rotated. One token may have several patterns.
    """

    __slots__ = ("_dummy", "_entries", "_key")

    def __init__(self, tokens: Iterable[Token]) -> None:
        self._key = secrets.token_bytes(32)
        alike: dict[bytes, list[Token]] = {}
        for token in tokens:
            alike.setdefault(token.digest, []).append(token)
        self._entries = {
            self._place(digest): _Entry(
                digest,
                AgentPatterns(dict.fromkeys(pattern for token in same for pattern in token.patterns)),
                tuple((AgentPatterns(token.patterns), token.rule) for token in same),
            )
            for digest, same in alike.items()
        }
        # No token hashes to 32 random bytes.
        self._dummy = _Entry(secrets.token_bytes(32), AgentPatterns(("no-such-agent-*",)))

    def __len__(self) -> int:
        """Return the number of different tokens."""
        return len(self._entries)

    def _place(self, digest: bytes) -> bytes:
        return hashlib.blake2b(digest, digest_size=16, key=self._key).digest()

    def knows(self, agent_id: str) -> bool:
        """Return whether any token is valid for `agent_id`. For answers to operators, never to agents."""
        return any(entry.patterns.matches(agent_id) for entry in self._entries.values())

    def check(self, agent_id: str, token: str | None) -> bool:
        """Return whether `token` is valid for `agent_id`. An empty token counts as missing."""
        return self._entry_for(agent_id, token) is not None

    def rule_for(self, agent_id: str, token: str | None) -> str | None:
        """Return the rule of `token` for `agent_id`, see `Token.rule`; None when it is not valid."""
        entry = self._entry_for(agent_id, token)
        if entry is None:
            return None
        if len(entry.rules) == 1:
            return entry.rules[0][1]
        # The token is valid. The time from here on reveals no more than the acceptance itself.
        return next(rule for patterns, rule in entry.rules if patterns.matches(agent_id))

    def _entry_for(self, agent_id: str, token: str | None) -> _Entry | None:
        digest = hash_token(token or "")
        entry = self._entries.get(self._place(digest), self._dummy)
        same = hmac.compare_digest(entry.digest, digest)
        match = entry.patterns.matches(agent_id)
        # `&` instead of `and`: no step is skipped.
        return entry if bool(token) & same & match else None
