"""Log lines: one form, one line each, and nothing in them that a terminal obeys."""

import json
import os
import pty
import string
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from support.product import environment

from ipc.log_levels import LEVEL_NAMES
from ipc.logs import configure, get_logger, printable

PRINTABLE = frozenset(string.ascii_letters + string.digits + string.punctuation + " ")

# Surrogates too: os.fsdecode makes them of bytes that are not UTF-8.
texts = st.text(st.characters(), max_size=200)


@given(texts, st.integers(0, 150))
def test_printable_text_is_ascii_without_control_characters_and_bounded(text: str, limit: int) -> None:
    result = printable(text, limit)
    shown = result.removesuffix("…")
    assert set(shown) <= PRINTABLE
    assert result.endswith("…") == (len(text) > limit)
    # The longest escape of one character is that of U+10FFFF.
    assert len(shown) <= len(r"\U0010ffff") * limit


@given(st.text(sorted(PRINTABLE), max_size=128))
def test_printable_keeps_what_is_harmless(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("a\nb\r\tc\0", r"a\x0ab\x0d\x09c\x00"),
        ("\x7f\x80\x9b1m", r"\x7f\x80\x9b1m"),
        ("zwölf", r"zw\xf6lf"),
        ("\u202e\u2028", r"\u202e\u2028"),
        ("\U0001f600", r"\U0001f600"),
        ("\udcff", r"\udcff"),
        ("x" * 129, "x" * 128 + "…"),
    ],
)
def test_printable_escapes_what_is_not(text: str, shown: str) -> None:
    assert printable(text) == shown


# ---- lines


@pytest.fixture(autouse=True)
def restore() -> Iterator[None]:
    """Leave logging as it was."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


RESERVED = {"event", "level", "process", "timestamp", "exc_info", "stack_info", "self", "method_name"}
"""Names that structlog or we give a meaning."""


def test_each_json_line_is_one_object_with_what_was_logged(capsys: pytest.CaptureFixture[str]) -> None:
    configure("shard-3", form="json")
    log = get_logger()

    @given(texts, st.dictionaries(texts, st.none() | st.booleans() | texts | st.integers(-(2**60), 2**60), max_size=3))
    def logs_anything(event: str, fields: dict[str, Any]) -> None:
        kept = {key: value for key, value in fields.items() if key not in RESERVED}
        log.warning(event, **kept)
        [line, rest] = capsys.readouterr().err.split("\n")
        assert rest == ""
        line.encode("utf-8")
        entry = json.loads(line)
        assert datetime.fromisoformat(entry.pop("timestamp")).utcoffset() is not None
        assert entry == {"event": event, "level": "warning", "process": "shard-3", **kept}

    logs_anything()


def test_values_of_other_types_and_tracebacks_stay_within_their_json_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure("supervisor", form="json")
    log = get_logger()
    log.info("values", raw=b"\xff", error=ValueError("a\nb"), path=os.fsdecode(b"/tmp/\xff"), nested={"x": [1, {2}]})
    try:
        int("the reason")
    except ValueError:
        log.exception("failed")
    values, failed = map(json.loads, capsys.readouterr().err.splitlines())
    assert values["error"] == "a\nb"
    assert os.fsencode(values["path"]) == b"/tmp/\xff"
    assert (failed["level"], failed["event"]) == ("error", "failed")
    assert failed["exception"].startswith("Traceback")
    assert failed["exception"].endswith("'the reason'")


def test_text_lines_have_no_colors_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    configure("supervisor", form="text")
    get_logger().error("shard ended", shard=3, how="killed by SIGKILL")
    [line] = capsys.readouterr().err.splitlines()
    stamp, text = line.split(" ", 1)
    assert datetime.fromisoformat(stamp).utcoffset() is not None
    assert text.split() == ["[error", "]", "shard", "ended", "how='killed", "by", "SIGKILL'", "process=supervisor",
                            "shard=3"]  # fmt: skip


@pytest.mark.parametrize("level", LEVEL_NAMES)
def test_lines_below_the_level_are_not_written(capsys: pytest.CaptureFixture[str], level: str) -> None:
    configure("supervisor", level, "json")
    log = get_logger()
    for name in LEVEL_NAMES:
        getattr(log, name)(name)
    written = [json.loads(line)["level"] for line in capsys.readouterr().err.splitlines()]
    assert tuple(written) == LEVEL_NAMES[LEVEL_NAMES.index(level) :]
    assert LEVEL_NAMES == ("debug", "info", "warning", "error")


LOGGING = """
from ipc.logs import configure, get_logger

configure("supervisor")
get_logger().info("running", shard=3)
"""


def log_of_child(stderr: int) -> "subprocess.CompletedProcess[bytes]":
    # A warning is an error there too: it would be the first line of every log.
    command = [sys.executable, "-P", "-W", "error", "-c", LOGGING]
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=stderr, env=environment(), timeout=30, check=True)


def test_a_process_logs_json_to_a_pipe_and_text_to_a_terminal_and_nothing_to_its_output() -> None:
    done = log_of_child(subprocess.PIPE)
    assert json.loads(done.stderr)["shard"] == 3
    assert done.stdout == b""

    ours, theirs = pty.openpty()
    try:
        done = log_of_child(theirs)
        on_terminal = os.read(ours, 10_000)
    finally:
        os.close(ours)
        os.close(theirs)
    assert b"running" in on_terminal
    assert b"{" not in on_terminal
    assert done.stdout == b""
