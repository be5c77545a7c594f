"""The fuzzer finds what it is for, and every reader is among those that it tries."""

import subprocess
import sys

import msgspec
import pytest

from bench.children import ROOT
from bench.fuzz import READERS, Finding, Reader, fuzz, judge
from bench.fuzz_texts import FIELDS, Recipe
from dialout import Dialect, codec_for

FLOATS = Recipe(FIELDS[2], ("audit", "custom"), "array", b"1e308", 9000)
WITHOUT_A_LOOK = Reader("msgspec", msgspec.json.decode, (msgspec.DecodeError,))


def test_recipe_is_what_it_says() -> None:
    text = Recipe(FIELDS[2], ("audit", "custom"), "array", b"1", 3, deep=2).text()
    assert text == b"{" + FIELDS[2] + b',"audit":{"custom":[[[1,1,1]]]}}'
    assert Recipe(b"", ("audit", "x"), "array", b"1", 2, repeated=True).text() == b'{"audit":{"x":1,"x":1}}'
    assert Recipe(b"", (), "object", b"1", 2, distinct=True).text() == b'{"0":1,"1":1}'


def test_what_takes_too_long_is_found() -> None:
    with pytest.raises(Finding, match=r"^msgspec: .* ms for"):
        judge(WITHOUT_A_LOOK, FLOATS.text())


def test_what_holds_too_much_is_found() -> None:
    with pytest.raises(Finding, match="bytes of memory"):
        judge(Reader("large", lambda text: bytes(100 * len(text))), bytes(10_000))


def test_error_that_is_no_refusal_is_found() -> None:
    with pytest.raises(Finding, match="raised"):
        judge(Reader("strict", msgspec.json.decode), b"{")


def test_a_reader_without_a_look_at_its_texts_is_found_by_chance() -> None:
    with pytest.raises(Finding, match="msgspec"):
        fuzz(60, [WITHOUT_A_LOOK] * 8)


@pytest.mark.parametrize("dialect", Dialect)
def test_what_an_agent_may_send_is_read_without_great_cost(dialect: Dialect) -> None:
    judge(Reader("decode", lambda text: codec_for(dialect).decode(0x20, text)), FLOATS.text())


def test_command_tries_every_reader() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.fuzz", "--seconds", "3"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=55,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"on {len(READERS)} readers" in done.stdout
