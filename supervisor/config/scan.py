"""Finds the lines of KDL nodes, which the parser does not report, and refuses texts that cost the parser too much.

ckdl 1.0 reports neither the place of a syntax error nor that of a node. This scanner does not parse KDL. It follows
strings, comments, slashdash, braces and ends of nodes, of KDL 1 and 2 at once. From these it knows where each node
begins and ends. Its tree has the shape of the parser's tree. If the two trees differ, the parser's tree is used without
lines.

A word or number has at most 512 characters: a hexadecimal number of a million digits keeps ckdl busy for 458 s, one of
512 for under a millisecond.
"""

import re
from bisect import bisect_right

import msgspec

MAX_DEPTH = 64
MAX_NODES = 50_000
MAX_BARE_LENGTH = 512

_SPACE = r" \t\v\xa0\u1680\u2000-\u200a\u202f\u205f\u3000\ufeff"
_NEWLINE = r"\n\r\x85\f\u2028\u2029"
# Strings are matched one character at a time. No two alternatives match the same character, so the match never
# backtracks. Possessive quantifiers would express this. In Python 3.11.2, of Debian 12, they match nothing in groups.
_TOKEN = re.compile(
    rf"""
      (?P<space>[{_SPACE}]+)
    | (?P<newline>\r\n|[{_NEWLINE}])
    | (?P<comment>//[^{_NEWLINE}]*)
    | (?P<block>/\*)
    | (?P<slashdash>/-)
    | (?P<raw>(?:r(?P<hashes1>\#*)"|(?P<hashes2>\#+)"(?:"")?))
    | (?P<long>\"""(?:[^"\\]|\\.|"(?!""))*\""")
    | (?P<text>"(?!"")(?:[^"\\]|\\.)*")
    | (?P<quote>")
    | (?P<mark>[;{{}}()=\\])
    | (?P<bare>/|[^{_SPACE}{_NEWLINE}/\\(){{}};="]+)
    """,
    re.VERBOSE | re.DOTALL,
)
# In KDL 2 a backslash may escape the end of the line. Such a string is complete.
_LOOSE = re.compile(r"(?<![\\\r])\n|(?<!\\)\r\n")
_SEMICOLON_BEFORE = re.compile(rf"(?:\A|[{_NEWLINE}])[{_SPACE}]*;[;{_SPACE}]*\Z")
_COMMENT_MARK = re.compile(r"/\*|\*/")
KDL2_WORDS = {"#true", "#false", "#null", "#inf", "#-inf", "#nan"}
_KDL1_WORDS = {"true", "false", "null"}


class Mark(msgspec.Struct):
    """A node as the scanner found it: its offsets in the text and its children.

    `name` is None when it is written as a string. The scanner does not decode strings.
    """

    name: str | None
    start: int
    end: int = -1
    children: "list[Mark] | None" = None


class Checkpoint(msgspec.Struct, frozen=True):
    """An offset at which a valid text becomes a whole document when `depth` open blocks are closed."""

    end: int
    depth: int
    start: int


class Scan(msgspec.Struct):
    """The result of one pass over the text.

    `limit` is a reason not to parse at all. `broken` is a place where no parser can go on. Both are an offset and a
    message. `after_semicolon` holds the offsets of nodes behind a semicolon that begins their line; in other languages
    such a line is a comment. `loose_strings` holds the offsets of plain strings that run over the end of a line. KDL 1
    allows them, and a missing quote causes them.
    """

    nodes: list[Mark]
    checkpoints: list[Checkpoint]
    limit: tuple[int, str] | None = None
    broken: tuple[int, str] | None = None
    loose_strings: list[int] = []
    after_semicolon: list[int] = []
    kdl1: bool = False
    kdl2: bool = False


class Lines:
    """Turns offsets of a text into line numbers, which count from 1.

    A carriage return alone ends a line too. So do the other characters that end a line in KDL, except the form feed: no
    editor ends a line there.
    """

    __slots__ = ("_ends",)

    def __init__(self, text: str) -> None:
        self._ends = [found.end() - 1 for found in re.finditer("\r\n|[\n\r\x85\u2028\u2029]", text)]

    def at(self, offset: int) -> int:
        """Return the number of the line that the offset is in."""
        return bisect_right(self._ends, offset - 1) + 1


class _Stop(Exception):
    """Ends the scan early. The reason is in its result."""


class _Frame(msgspec.Struct):
    """An open block: the list for its nodes, the node that it belongs to, and the offset of its brace."""

    nodes: list[Mark]
    owner: Mark | None = None
    brace: int = -1


class _Scanner:
    """The state between two tokens."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.scan = Scan([], [])
        self.frames = [_Frame(self.scan.nodes)]
        self.node: Mark | None = None
        self.count = 0
        self.slashdash = False
        self.joined = False
        """Set after a backslash: the next newline does not end the node."""
        self.in_type = False

    def run(self) -> Scan:
        """Scan the text, up to its end or to the first place where a parser must fail."""
        offset, size = 0, len(self.text)
        try:
            while offset < size:
                found = _TOKEN.match(self.text, offset)
                assert found is not None, "the alternatives cover every character"
                kind = found.lastgroup or ""
                offset = self._skip(found, kind)
                if kind == "newline":
                    self._newline(found.start())
                elif kind == "slashdash":
                    self.slashdash = True
                elif kind == "comment":
                    self._comment(found.start(), offset)
                elif kind == "mark":
                    self._mark(found[0], found.start())
                elif kind not in ("space", "block"):
                    self._value(kind, found.start(), offset)
            self._finish(size)
            if len(self.frames) > 1:
                self.scan.broken = (self.frames[-1].brace, "this block is never closed")
        except _Stop:
            pass
        return self.scan

    def _stop_broken(self, offset: int, message: str) -> _Stop:
        self.scan.broken = (offset, message)
        return _Stop()

    def _stop_limit(self, offset: int, message: str) -> _Stop:
        self.scan.limit = (offset, message)
        return _Stop()

    def _skip(self, found: re.Match[str], kind: str) -> int:
        """Return the end of the token. Raw strings and block comments end beyond their match."""
        if kind == "quote":
            raise self._stop_broken(found.start(), "this string is never closed")
        if kind == "block":
            depth, offset = 1, found.end()
            while depth:
                mark = _COMMENT_MARK.search(self.text, offset)
                if mark is None:
                    raise self._stop_broken(found.start(), "this comment is never closed")
                depth += 1 if mark[0] == "/*" else -1
                offset = mark.end()
            return offset
        if kind == "raw":
            # `#""#` is the empty string, `#"""` the beginning of a raw string of several lines.
            quotes = '"""' if found[0].endswith('"""') else '"'
            closing = quotes + "#" * len(found["hashes1"] or found["hashes2"] or "")
            end = self.text.find(closing, found.end())
            if end < 0:
                raise self._stop_broken(found.start(), "this string is never closed")
            return end + len(closing)
        return found.end()

    def _value(self, kind: str, start: int, end: int) -> None:
        """Take a name, an argument, or a part of a property or a type."""
        self.joined = False
        if kind == "bare":
            if end - start > MAX_BARE_LENGTH:
                raise self._stop_limit(start, f"a word or number of more than {MAX_BARE_LENGTH} characters")
            word = self.text[start:end]
            self.scan.kdl1 |= word in _KDL1_WORDS
            self.scan.kdl2 |= word in KDL2_WORDS
        elif kind == "text" and _LOOSE.search(self.text, start, end):
            self.scan.loose_strings.append(start)
        if self.in_type:
            return
        if self.node is None:
            self.count += 1
            if self.count > MAX_NODES:
                raise self._stop_limit(start, f"there are more than {MAX_NODES:,} nodes")
            self.node = Mark(self.text[start:end] if kind == "bare" else None, start)
            if _SEMICOLON_BEFORE.search(self.text, max(0, start - 200), start):
                self.scan.after_semicolon.append(start)
            if not self.slashdash:
                self.frames[-1].nodes.append(self.node)
        self.slashdash = False

    def _comment(self, start: int, end: int) -> None:
        """Refuse a comment that ends earlier for KDL than for an editor.

        The text after its end would be in effect, and would look like a comment.
        """
        ends = self.text[end : end + 1]
        if ends in ("", "\n") or self.text.startswith("\r\n", end):
            return
        # A file of an old Macintosh has carriage returns only. No program takes it for one line.
        if ends == "\r" and "\n" not in self.text:
            return
        message = f"the comment ends at U+{ord(ends):04X}, where an editor goes on with it; end each line with LF"
        raise self._stop_limit(start, message)

    def _newline(self, offset: int) -> None:
        # A newline after a slashdash inside a node is only space in front of the part that is commented out.
        if not self.joined and not (self.slashdash and self.node is not None):
            self._finish(offset)
        self.joined = False

    def _mark(self, mark: str, offset: int) -> None:
        self.joined = mark == "\\"
        self.in_type = mark == "("
        if mark == ";":
            self._finish(offset)
        elif mark == "{":
            self._open(offset)
        elif mark == "}":
            self._close(offset)

    def _open(self, offset: int) -> None:
        if self.node is None:
            raise self._stop_broken(offset, "a block needs a name in front of it")
        if len(self.frames) > MAX_DEPTH:
            raise self._stop_limit(offset, f"blocks are nested more than {MAX_DEPTH} deep")
        children: list[Mark] = []
        if not self.slashdash:
            self.node.children = children
        self.frames.append(_Frame(children, self.node, offset))
        self.scan.checkpoints.append(Checkpoint(offset + 1, len(self.frames) - 1, self.node.start))
        self.node, self.slashdash = None, False

    def _close(self, offset: int) -> None:
        self._finish(offset)
        if len(self.frames) == 1:
            raise self._stop_broken(offset, "this brace closes nothing")
        self.node = self.frames.pop().owner

    def _finish(self, offset: int) -> None:
        """End the current node at a newline, a semicolon, a brace or the end of the text."""
        if self.node is not None:
            self.node.end = offset
            self.scan.checkpoints.append(Checkpoint(offset, len(self.frames) - 1, self.node.start))
            self.node, self.slashdash = None, False
        self.in_type = False


def scan(text: str) -> Scan:
    """Find the nodes of a KDL text, valid or not, in time linear in its length."""
    return _Scanner(text).run()


class Word(msgspec.Struct, frozen=True):
    """A word, a string or a mark of a node, as it is spelled. `kind` is bare, text, long, raw or mark."""

    kind: str
    text: str


def words(text: str) -> list[Word]:
    """Split the text of one node into words, strings and marks, without its comments. It need not be valid KDL."""
    found = []
    offset = 0
    while offset < len(text):
        token = _TOKEN.match(text, offset)
        assert token is not None, "the alternatives cover every character"
        kind, end = token.lastgroup or "", token.end()
        if kind in ("hashes1", "hashes2", "raw"):
            closing = '"' + "#" * len(token["hashes1"] or token["hashes2"] or "")
            close = text.find(closing, end)
            kind, end = "raw", len(text) if close < 0 else close + len(closing)
        if kind in ("bare", "text", "long", "raw", "mark"):
            found.append(Word(kind, text[offset:end]))
        offset = end
    return found
