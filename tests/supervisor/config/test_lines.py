"""Where a line of a token file ends: the same for who reads it and for who writes it."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from supervisor.config.errors import ConfigError
from supervisor.config.files import MAX_FILE_BYTES
from supervisor.config.lines import is_odd, join_lines, objection, split_lines
from supervisor.config.token_file import edit_token_file, tokens_with_lines
from supervisor.config.tokens import read_token_file

GOOD, OLD, NEW = (f"sha256:{digits * 32}" for digits in ("8d", "11", "22"))
LINE_ENDS = ["\r", "\v", "\f", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"]
"""What `str.splitlines`, an editor or a terminal takes for the end of a line, and we do not."""


def outcome(path: Path) -> list[tuple[str, ...]] | int | None:
    """The patterns of each token that a start would read, or the line for which it refuses the file."""
    try:
        return [token.patterns for token in read_token_file(path)]
    except ConfigError as error:
        return error.problems[0].line


def write(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
    path.chmod(0o600)


@pytest.mark.parametrize("end", [*LINE_ENDS, "\0", "\x1b", "\x7f", "\u202e"], ids=ascii)
def test_no_edit_brings_a_comment_to_life(end: str, tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    text = f"waf-* {GOOD}\n# old, revoked:{end}* {OLD}\n"
    write(path, text)
    assert outcome(path) == 2, "what programs show differently is refused, with its line"

    with pytest.raises(ConfigError) as caught:
        edit_token_file(str(path), lambda lines: [*lines, f"x {NEW}"])
    assert [problem.line for problem in caught.value.problems] == [2]
    assert f"U+{ord(end):04X}" in str(caught.value)
    with path.open(newline="", encoding="utf-8") as file:
        assert file.read() == text
    assert [patterns for _, token in tokens_with_lines(str(path)) for patterns in token.patterns] == ["waf-*"]


pieces = st.sampled_from(
    [*LINE_ENDS, "\n", "\r\n", "# ", "a ", f"* {OLD}", f"waf-*\t{GOOD}", "\t", "\xa0", "\u200e", "\0"]
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(pieces | st.text(max_size=3), max_size=12).map("".join))
def test_an_edit_adds_what_it_adds_and_nothing_else_whatever_the_file_holds(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tokens"
    write(path, text)
    before = outcome(path)
    try:
        edit_token_file(str(path), lambda lines: [*lines, f"x {NEW}"])
    except ConfigError:
        assert outcome(path) == before
        assert not isinstance(before, list), "a file that a start reads can be edited"
    else:
        after = outcome(path)
        assert after == (before if not isinstance(before, list) else [*before, ("x",)])
    assert [entry.name for entry in tmp_path.iterdir()] == ["tokens"]


@given(st.text(st.characters(codec="utf-8")))
def test_lines_that_are_put_together_are_the_lines_that_were_split(text: str) -> None:
    lines = split_lines(text)
    assert all("\n" not in line for line in lines)
    assert split_lines(join_lines(lines)) == lines or all(line.endswith("\r") for line in lines[:-1])
    assert [objection(line) is None for line in lines] == [
        not any(is_odd(character) for character in line.removesuffix("\r")) for line in lines
    ]


def test_a_file_with_crlf_keeps_it_in_new_lines_too(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    write(path, f"# a\r\n* {GOOD}\r\n")
    assert edit_token_file(str(path), lambda lines: [*lines, f"x {NEW}"]) == []
    assert path.read_bytes() == f"# a\r\n* {GOOD}\r\nx {NEW}\r\n".encode()


def test_an_edit_makes_no_file_that_a_start_would_refuse(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    write(path, f"* {GOOD}\n")
    size = len(f"x {NEW}\n")
    for change in (
        lambda lines: [*lines, f"x {NEW}\v"],
        lambda lines: [*lines, "x swordfish"],
        lambda lines: [*lines, f"# a\n* {OLD} x"],
        lambda lines: [*lines, *[f"x {NEW}"] * (MAX_FILE_BYTES // size)],
    ):
        with pytest.raises(ConfigError) as caught:
            edit_token_file(str(path), change)
        assert "nothing was changed" in str(caught.value)
        assert "swordfish" not in str(caught.value)
        assert path.read_text() == f"* {GOOD}\n"
    room = (MAX_FILE_BYTES - path.stat().st_size) // size
    edit_token_file(str(path), lambda lines: [*lines, *[f"x {NEW}"] * room])
    assert len(read_token_file(path)) == room + 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["tokens"]


def test_an_edit_tells_which_lines_were_wrong_before_it(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    write(path, f"broken\n* {GOOD}\n")
    [left] = edit_token_file(str(path), lambda lines: [lines[1], f"x {NEW}", lines[0]])
    assert (left.file, left.line) == (str(path), 3)
