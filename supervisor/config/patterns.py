"""Patterns of agent ids: exact ids, and `*` for any run of characters.

Matching is case-sensitive. Every character but `*` is literal. Patterns are not regular expressions: with their
backtracking one id of 128 characters could occupy the accept loop.
"""

import re
from collections.abc import Iterable, Sequence

import msgspec

# An agent id has 1 to 128 of these characters without the `*`. Registration refuses any other id before it is matched.
MAX_ID_LENGTH = 128
_ID_PATTERN = re.compile(r"[A-Za-z0-9._:@*-]+")


def pattern_problem(pattern: str) -> str | None:
    """Return the mistake in `pattern`, or None. The text never repeats the pattern."""
    if not pattern:
        return "a pattern cannot be empty"
    if not _ID_PATTERN.fullmatch(pattern):
        return "a pattern is made of A-Z a-z 0-9 . _ : @ - and *"
    if len(pattern.replace("*", "")) > MAX_ID_LENGTH:
        return f"a pattern of more than {MAX_ID_LENGTH} characters can match no agent id"
    return None


class _Wildcard(msgspec.Struct, frozen=True):
    """A pattern with at least one `*`, cut at the stars."""

    prefix: str
    middle: tuple[str, ...]
    suffix: str

    def matches(self, agent_id: str) -> bool:
        prefix, suffix = self.prefix, self.suffix
        if not (agent_id.startswith(prefix) and agent_id.endswith(suffix)):
            return False
        start, end = len(prefix), len(agent_id) - len(suffix)
        # The leftmost place of each piece is enough. A later place leaves less room for the rest.
        for piece in self.middle:
            found = agent_id.find(piece, start, end)
            if found < 0:
                return False
            start = found + len(piece)
        return start <= end


def _compile(pattern: str) -> _Wildcard:
    prefix, *middle, suffix = pattern.split("*")
    return _Wildcard(prefix, tuple(filter(None, middle)), suffix)


class AgentPatterns:
    """A list of patterns. Tells whether an agent id matches one of them.

    Exact ids cost one set look-up, for any number of ids. Each pattern with stars costs one pass over the id. Raises
    ValueError for a pattern that `pattern_problem` refuses.
    """

    __slots__ = ("_exact", "_prefixes", "_starred", "_wildcards", "patterns")

    def __init__(self, patterns: Iterable[str]) -> None:
        self.patterns = tuple(patterns)
        for pattern in self.patterns:
            problem = pattern_problem(pattern)
            if problem is not None:
                raise ValueError(problem)
        self._exact = frozenset(p for p in self.patterns if "*" not in p)
        # Nearly all patterns have the form `waf-*`. One call of startswith checks all of these.
        self._prefixes = tuple(p[:-1] for p in self.patterns if p.find("*") == len(p) - 1)
        self._starred = tuple((p, _compile(p)) for p in self.patterns if "*" in p)
        self._wildcards = tuple(_compile(p) for p in self.patterns if 0 <= p.find("*") < len(p) - 1)

    def __repr__(self) -> str:
        return f"AgentPatterns({list(self.patterns)!r})"

    def matches(self, agent_id: str) -> bool:
        """Return whether any pattern matches the whole of `agent_id`."""
        if agent_id in self._exact or agent_id.startswith(self._prefixes):
            return True
        for wildcard in self._wildcards:  # noqa: SIM110  (a generator for any() takes longer than the match)
            if wildcard.matches(agent_id):
                return True
        return False

    def closest_match(self, agent_id: str) -> str | None:
        """Return the pattern equal to the id, else the first pattern with a star that matches it, else None."""
        if agent_id in self._exact:
            return agent_id
        return next((pattern for pattern, compiled in self._starred if compiled.matches(agent_id)), None)

    def first_match(self, agent_id: str) -> str | None:
        """Return the first matching pattern, in the order given; None when no pattern matches."""
        for pattern in self.patterns:
            if pattern == agent_id or ("*" in pattern and _compile(pattern).matches(agent_id)):
                return pattern
        return None


def may_overlap(left: Sequence[str], right: Sequence[str]) -> bool:
    """Return whether an agent id can match both a pattern of `left` and a pattern of `right`."""
    return any(_overlap(a, b) for a in left for b in right)


def _overlap(a: str, b: str) -> bool:
    if "*" not in a:
        return a == b if "*" not in b else _compile(b).matches(a)
    if "*" not in b:
        return _compile(a).matches(b)
    # Both have a star. If their ends agree, both match: longer prefix + all the pieces + longer suffix.
    one, two = _compile(a), _compile(b)
    return (one.prefix.startswith(two.prefix) or two.prefix.startswith(one.prefix)) and (
        one.suffix.endswith(two.suffix) or two.suffix.endswith(one.suffix)
    )
