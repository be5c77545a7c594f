"""Tokens: digests, files, and the table that checks them."""

import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.pretty import pretty_repr

from supervisor.config.errors import ConfigError
from supervisor.config.model import Config, ReverseConnectionConfig, Token
from supervisor.config.tokens import (
    TokenTable,
    hash_token,
    load_tokens,
    new_token,
    parse_digest,
    read_token_file,
)

HEX = hashlib.sha256(b"swordfish").hexdigest()


def problems_of(path: Path) -> list[tuple[int | None, str]]:
    with pytest.raises(ConfigError) as caught:
        read_token_file(path)
    assert {p.file for p in caught.value.problems} == {str(path)}
    return [(p.line, p.message) for p in caught.value.problems]


def write(folder: Path, text: str) -> Path:
    path = folder / "tokens"
    path.write_text(text, "utf-8")
    path.chmod(0o640)
    return path


def test_hash_token_is_the_sha256_of_the_utf8_form() -> None:
    assert hash_token("swordfish").hex() == HEX
    assert hash_token("Schlüssel") == hashlib.sha256("Schlüssel".encode()).digest()


def test_hash_token_does_not_raise_when_given_a_lone_surrogate() -> None:
    assert len(hash_token("\ud800")) == 32


def test_new_token_is_long_and_never_the_same() -> None:
    tokens = {new_token() for _ in range(100)}

    assert len(tokens) == 100
    assert {len(t) for t in tokens} == {43}


def test_token_shows_no_digest_when_printed() -> None:
    token = Token(("waf-*",), hash_token("swordfish"))
    config = Config(tokens=(token,))

    for text in (repr(token), str(token), repr(config), pretty_repr(config)):
        assert "waf-*" in text
        assert HEX not in text
        assert repr(token.digest)[2:12] not in text


def test_token_file_is_read_when_it_has_both_spellings_comments_and_blank_lines(tmp_path: Path) -> None:
    upper, digest = HEX.upper(), hash_token("swordfish")
    path = write(tmp_path, f"# all WAFs\n\nwaf-*,auth-*  sha256:{HEX}\r\n  \tlog-1\tsha256={upper}\n  # end")

    assert read_token_file(path) == (Token(("waf-*", "auth-*"), digest), Token(("log-1",), digest))
    assert read_token_file(write(tmp_path, "")) == ()


def test_token_file_says_how_many_connections_a_token_may_let_in(tmp_path: Path) -> None:
    digest = hash_token("swordfish")
    path = write(tmp_path, f"a sha256:{HEX} max-connections:7\nb sha256={HEX}  max-connections=10000000\n")
    assert read_token_file(path) == (Token(("a",), digest, 7), Token(("b",), digest, 10_000_000))

    bad = ("0", "-1", "10000001", "x", "7 8", "")
    lines = problems_of(write(tmp_path, "".join(f"a sha256:{HEX} max-connections:{text}\n" for text in bad)))
    assert [line for line, _ in lines] == list(range(1, len(bad) + 1))


def test_rule_is_the_patterns_of_the_token_that_is_presented() -> None:
    tokens = [
        Token(("waf-*",), hash_token("one"), 5),
        Token(("waf-*",), hash_token("two")),
        Token(("geo", "auth"), hash_token("two")),
        Token(tuple(f"agent-{n}" for n in range(100)), hash_token("many")),
    ]
    table = TokenTable(tokens)
    assert table.rule_for("waf-1", "one") == table.rule_for("waf-1", "two") == "waf-*"
    assert table.rule_for("geo", "two") == table.rule_for("auth", "two") == "auth,geo"
    assert table.rule_for("geo", "one") is None
    assert table.rule_for("geo", None) is None
    assert len(table.rule_for("agent-7", "many") or "") < 60


def test_token_file_reports_every_bad_line_with_its_number(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        f"waf-* sha256:{HEX}\nwaf-*\n\nwaf-* sha256:{HEX[:-1]}\nwaf-*,,x sha256:{HEX}\n"
        f"wäf sha256:{HEX}\nwaf-* {HEX}\nwaf-* sha256:{hash_token('').hex()}\nwaf-* sha256:{HEX} extra\n",
    )
    found = problems_of(path)

    assert [line for line, _ in found] == [2, 4, 5, 6, 7, 8, 9]
    assert "63 characters" in found[1][1]
    assert "empty" in found[2][1]
    assert "empty token" in found[5][1]


def test_token_file_error_never_repeats_what_may_be_the_token_itself(tmp_path: Path) -> None:
    path = write(tmp_path, "waf-* swordfish\nwaf-* sha256:swordfish\nswordfish!\n")
    with pytest.raises(ConfigError) as caught:
        read_token_file(path)

    assert "swordfish" not in str(caught.value)
    assert str(caught.value).startswith(f"{path}:1: token: expected patterns and a SHA-256; a line is PATTERN")


def test_token_file_is_refused_when_everybody_may_write_it(tmp_path: Path) -> None:
    path = write(tmp_path, f"waf-* sha256:{HEX}\n")
    path.chmod(0o642)

    [(line, message)] = problems_of(path)
    assert line is None
    assert "everybody may write" in message


def test_token_file_is_refused_when_it_is_no_readable_text_file(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    big = write(tmp_path, "#" * (1024 * 1024 + 1))
    assert "larger than 1048576 bytes" in problems_of(big)[0][1]
    assert "No such file" in problems_of(tmp_path / "absent")[0][1]
    assert "is a directory" in problems_of(tmp_path)[0][1]
    assert "not a regular file" in problems_of(fifo)[0][1]
    binary = tmp_path / "binary"
    binary.write_bytes(b"# one\n# \xff\n")
    assert problems_of(binary) == [(2, "is not UTF-8")]


def test_load_tokens_joins_inline_tokens_and_files(tmp_path: Path) -> None:
    inline = Token(("a",), hash_token("one"))
    path = write(tmp_path, f"b sha256:{HEX}\n")

    assert load_tokens(Config(tokens=(inline,), token_files=(str(path),))) == (
        inline,
        Token(("b",), hash_token("swordfish")),
    )
    assert load_tokens(Config()) == ()


def test_load_tokens_refuses_an_empty_file_when_tokens_are_required(tmp_path: Path) -> None:
    path = write(tmp_path, "# none yet\n")
    files = (str(path),)
    assert load_tokens(Config(token_files=files)) == ()
    with pytest.raises(ConfigError, match=r"no token in .*tokens"):
        load_tokens(Config(token_files=files, limits=ReverseConnectionConfig(require_auth=True)))


def test_load_tokens_reports_every_file_that_cannot_be_used(tmp_path: Path) -> None:
    files = (str(tmp_path / "one"), str(tmp_path / "two"))
    with pytest.raises(ConfigError) as caught:
        load_tokens(Config(token_files=files, limits=ReverseConnectionConfig(require_auth=True)))
    assert [p.file for p in caught.value.problems] == list(files)


@pytest.mark.parametrize("text", ["", "0" * 63, "0" * 65, "g" * 64, "0x" + "0" * 62, HEX + "\n", "\u0660" * 64])
def test_parse_digest_refuses_what_is_not_64_hex_digits(text: str) -> None:
    with pytest.raises(ValueError, match="64 hex digits"):
        parse_digest(text)


@pytest.mark.parametrize("token", [None, ""])
def test_table_refuses_a_missing_or_empty_token_even_when_the_hash_of_nothing_is_configured(token: str | None) -> None:
    assert not TokenTable([Token(("*",), hash_token(""))]).check("waf-1", token)
    assert not TokenTable([]).check("waf-1", token)


def test_table_refuses_a_wrong_token_whatever_the_agent_is_called() -> None:
    """A miss is compared with a dummy, whose pattern is as good as any other if that is forgotten."""
    [pattern] = TokenTable([])._dummy.patterns.patterns
    assert not TokenTable([]).check(pattern.replace("*", "1"), "wrong")


def test_table_accepts_old_and_new_token_while_they_are_rotated() -> None:
    table = TokenTable([Token(("waf-*",), hash_token("old")), Token(("waf-*",), hash_token("new"))])

    assert len(table) == 2
    assert table.check("waf-1", "old")
    assert table.check("waf-1", "new")
    assert not table.check("waf-1", "older")


def test_table_joins_patterns_when_one_digest_stands_in_several_lines() -> None:
    digest = hash_token("one")
    table = TokenTable([Token(("waf-*",), digest), Token(("auth-1", "waf-*"), digest)])

    assert len(table) == 1
    assert table.check("waf-1", "one")
    assert table.check("auth-1", "one")
    assert not table.check("auth-2", "one")


names = st.sampled_from(["waf-1", "waf-2", "auth-1", "x"])
secrets_ = st.sampled_from(["", "one", "two", "three", "four"])
globs = st.sampled_from(["waf-*", "waf-1", "auth-1", "*", "*-1", "y"])
pairs = st.lists(st.tuples(st.lists(globs, min_size=1, max_size=3), secrets_), max_size=5)


@given(pairs, names, st.none() | secrets_)
def test_table_agrees_with_a_plain_search_through_all_tokens(
    configured: list[tuple[list[str], str]], agent_id: str, token: str | None
) -> None:
    import fnmatch

    table = TokenTable(Token(tuple(p), hash_token(t)) for p, t in configured)
    expected = any(token and token == t and any(fnmatch.fnmatchcase(agent_id, p) for p in ps) for ps, t in configured)
    assert table.check(agent_id, token) is bool(expected)


def test_table_takes_the_same_steps_whether_the_agent_is_known_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each check hashes once, compares once and matches patterns once, whatever the outcome."""
    import hmac

    from supervisor.config import patterns

    table = TokenTable([Token(("waf-*",), hash_token("one"))])
    steps: list[str] = []
    compare, matches = hmac.compare_digest, patterns.AgentPatterns.matches

    def counted_compare(a: bytes, b: bytes) -> bool:
        steps.append(f"compare {len(a)} {len(b)}")
        return compare(a, b)

    def counted_matches(self: patterns.AgentPatterns, agent_id: str) -> bool:
        steps.append("match")
        return matches(self, agent_id)

    monkeypatch.setattr(hmac, "compare_digest", counted_compare)
    monkeypatch.setattr(patterns.AgentPatterns, "matches", counted_matches)
    seen = set()
    for agent_id, token in [("waf-1", "one"), ("waf-1", "bad"), ("nobody", "bad"), ("nobody", "one"), ("waf-1", None)]:
        steps.clear()
        table.check(agent_id, token)
        seen.add(tuple(steps))

    assert seen == {("compare 32 32", "match")}
