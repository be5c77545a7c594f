"""Log lines: one form, one line each, and nothing in them that a terminal obeys."""

import asyncio
import json
import os
import pty
import socket
import string
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from support.product import environment

from ipc import logs
from ipc.log_levels import LEVEL_NAMES
from ipc.log_output import MOST_WAITING, LogOutput
from ipc.logs import configure, get_logger, printable

PRINTABLE = frozenset(string.ascii_letters + string.digits + string.punctuation + " ")

# Surrogates too: os.fsdecode makes them of bytes that are not UTF-8.
texts = st.text(st.characters(), max_size=200)


@given(texts, st.integers(0, 150))
def test_printable_text_is_ascii_without_control_characters_and_bounded(text: str, limit: int) -> None:
    result = printable(text, limit)
    shown = result.removesuffix("...") if len(text) > limit else result
    assert set(shown) <= PRINTABLE
    assert result.endswith("...") or len(text) <= limit
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
        ("x" * 129, "x" * 128 + "..."),
    ],
)
def test_printable_escapes_what_is_not(text: str, shown: str) -> None:
    assert printable(text) == shown


# ---- lines


@pytest.fixture(autouse=True)
def restore() -> Iterator[None]:
    """Leave logging as it was."""
    before = structlog.get_config()
    ours = {name: value for name, value in vars(logs._State).items() if not name.startswith("__")}
    yield
    structlog.configure(**before)
    for name, value in ours.items():
        setattr(logs._State, name, value)


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
        assert line.isascii()
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


def log_of_child(stderr: int, **variables: str) -> "subprocess.CompletedProcess[bytes]":
    # A warning is an error there too: it would be the first line of every log.
    command = [sys.executable, "-P", "-W", "error", "-c", LOGGING]
    env = environment() | {"TERM": "xterm"} | variables
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=stderr, env=env, timeout=120, check=True)


def test_a_process_logs_json_to_a_pipe_and_text_to_a_terminal_and_nothing_to_its_output() -> None:
    done = log_of_child(subprocess.PIPE)
    assert json.loads(done.stderr)["shard"] == 3
    assert done.stdout == b""

    ours, theirs = pty.openpty()
    try:
        done = log_of_child(theirs)
        on_terminal = os.read(ours, 10_000)
        log_of_child(theirs, NO_COLOR="1")
        without_colour = os.read(ours, 10_000)
    finally:
        os.close(ours)
        os.close(theirs)
    assert b"running" in on_terminal
    assert b"{" not in on_terminal
    assert b"\x1b[" in on_terminal
    assert b"running" in without_colour
    assert b"\x1b" not in without_colour
    assert done.stdout == b""


# ---- lines that are many


def a_line() -> logs.Line:
    return logs.Line("closed", "more closed", names=("agent_id",), numbers=("shard", "duration_s"), texts=("reason",))


def put(line: logs.Line, now: float, about: str, *values: object) -> None:
    if line.allows(about):
        line.write(now, *values)


def test_a_frequent_line_has_the_form_of_all_others(capsys: pytest.CaptureFixture[str]) -> None:
    async def log() -> None:
        configure("shard-1", form="json")
        line = a_line()
        put(line, 1_700_000_000.25, "waf", "waf", 3, 1.5, 'a "quoted"\n\x1b \x9b1m reason')
        put(line, 1_700_000_000.25, "waf", "waf", 3, 1.5, "")
        line.close()
        logs.flush()

    asyncio.run(log())
    written = capsys.readouterr().err
    assert written.isascii(), "U+009B begins an escape sequence, as ESC does"
    [entry, empty] = map(json.loads, written.splitlines())
    assert entry == {
        "agent_id": "waf", "shard": 3, "duration_s": 1.5, "reason": 'a "quoted"\n\x1b \x9b1m reason', "event": "closed",
        "level": "info", "timestamp": "2023-11-14T22:13:20.250Z", "process": "shard-1",
    }  # fmt: skip
    assert empty["reason"] == ""


def test_a_frequent_line_is_text_where_lines_are(capsys: pytest.CaptureFixture[str]) -> None:
    async def log() -> None:
        configure("shard-1", form="text")
        line = a_line()
        put(line, 1_700_000_000.25, "waf", "waf", 3, 1.5, "\x1b[1m")
        line.close()
        logs.flush()

    asyncio.run(log())
    assert capsys.readouterr().err == (
        '2023-11-14T22:13:20.250Z [info     ] closed agent_id=waf shard=3 duration_s=1.500 reason="\\u001b[1m"'
        " process=shard-1\n"
    )


def test_frequent_lines_leave_together_and_in_the_order_of_all_lines(capsys: pytest.CaptureFixture[str]) -> None:
    async def log() -> None:
        configure("shard-1", form="json")
        line = a_line()
        for n in range(3):
            put(line, 1.0, str(n), str(n), n, 0, "")
        assert capsys.readouterr().err == "", "they wait for others"
        get_logger().warning("in between")
        put(line, 1.0, "last", "last", 9, 0, "")
        await asyncio.sleep(0.1)
        line.close()

    asyncio.run(log())
    written = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line.get("shard", line["event"]) for line in written] == [0, 1, 2, "in between", 9]


def test_frequent_lines_keep_to_the_level(capsys: pytest.CaptureFixture[str]) -> None:
    async def log() -> None:
        configure("shard-1", form="json")
        line = a_line()
        logs.set_level("warning")
        put(line, 1.0, "waf", "waf", 0, 0, "")
        get_logger().info("no")
        logs.set_level("info")
        put(line, 1.0, "waf", "waf", 1, 0, "")
        line.close()
        logs.flush()

    asyncio.run(log())
    assert [json.loads(line)["shard"] for line in capsys.readouterr().err.splitlines()] == [1]
    with pytest.raises(ValueError, match="loud"):
        logs.set_level("loud")


def test_repeats_are_summed_up_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    async def log() -> None:
        configure("shard-1", form="json")
        line = a_line()
        for n in range(logs.MOST_REPEATS + 5):
            put(line, 1.0, "flapping", "flapping", n, 0, "")
        put(line, 1.0, "quiet", "quiet", 0, 0, "")
        line.close()

    asyncio.run(log())
    written = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [entry["event"] for entry in written] == ["closed"] * (logs.MOST_REPEATS + 1) + ["more closed"]
    assert (written[-1]["n"], written[-1]["most"]) == (5, {"flapping": 5})


@given(st.lists(st.sampled_from("abcdef"), max_size=200))
def test_repeats_write_or_count_every_line_and_no_more_than_they_may(about: list[str]) -> None:
    repeats = logs.Repeats(most=3, most_in_all=10)
    written = [name for name in about if repeats.allows(name)]
    left_out = repeats.next_second()
    assert len(written) + sum(left_out.values()) == len(about)
    assert len(written) <= 10
    assert all(written.count(name) <= 3 for name in written)
    assert repeats.next_second() == {}
    assert repeats.allows("a")


def test_a_reader_that_stops_loses_lines_and_learns_how_many() -> None:
    ours, theirs = os.pipe()
    try:
        with os.fdopen(theirs, "w") as stream:
            output = LogOutput(stream, "dropped {}".format)
            for n in range(3 * MOST_WAITING // 1000):
                output.write(f"{n:>1000}")
            read = bytearray()
            os.set_blocking(ours, False)
            while True:
                output.flush()
                try:
                    read += os.read(ours, 1 << 20)
                except BlockingIOError:
                    break
            output.write("the end")
            read += os.read(ours, 1 << 20)
    finally:
        os.close(ours)
    lines = read.decode().splitlines()
    [dropped] = [int(line.split()[1]) for line in lines if line.startswith("dropped")]
    assert lines[-1] == "the end"
    assert len(lines) - 2 + dropped == 3 * MOST_WAITING // 1000
    assert [int(line) for line in lines[:-2]] == list(range(len(lines) - 2)), "those that came are whole and in order"


@pytest.mark.parametrize("form", ["json", "text"])
def test_the_line_about_lines_that_were_dropped_has_the_form_of_the_others(
    monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    ours, theirs = os.pipe()
    try:
        with os.fdopen(theirs, "w") as stream, monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", stream)
            configure("shard-1", form=form)
            for _ in range(2 * MOST_WAITING // 1000):
                get_logger().info("x" * 1000)
            read = os.read(ours, MOST_WAITING)
            while b"dropped" not in read:
                get_logger().info("more")
                read += os.read(ours, MOST_WAITING)
    finally:
        os.close(ours)
    [line] = [line for line in read.decode().splitlines() if "dropped" in line]
    if form == "json":
        entry = json.loads(line)
        assert datetime.fromisoformat(entry.pop("timestamp")).utcoffset() is not None
        assert entry.pop("n") > 0
        assert entry == {"event": "log lines dropped: nobody read them", "level": "error", "process": "shard-1"}
    else:
        stamp, text = line.split(" ", 1)
        assert datetime.fromisoformat(stamp).utcoffset() is not None
        assert text.startswith("[error    ] log lines dropped: nobody read them n=")
        assert text.endswith(" process=shard-1")


def test_a_pipe_that_somebody_made_non_blocking_loses_nothing() -> None:
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    try:
        with os.fdopen(theirs, "w") as stream:
            output = LogOutput(stream, str)
            for n in range(200):
                output.write(f"{n:>1000}")
            read = bytearray()
            while read.count(b"\n") < 200:
                read += os.read(ours, 1 << 20)
                output.flush()
    finally:
        os.close(ours)
    assert [int(line) for line in read.decode().splitlines()] == list(range(200))


def test_a_socket_whose_reader_stops_gets_all_that_fits_and_the_rest_later() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, os.fdopen(os.dup(theirs.fileno()), "w") as stream:
        output = LogOutput(stream, str)
        for n in range(900):
            output.write(f"{n:>1000}")
        read = bytearray()
        while read.count(b"\n") < 900:
            read += ours.recv(1 << 20)
            output.flush()
    assert [int(line) for line in read.decode().splitlines()] == list(range(900))


def test_lines_of_one_kind_are_bounded_whatever_they_are_about(capsys: pytest.CaptureFixture[str]) -> None:
    async def log() -> None:
        configure("supervisor", form="json")
        line = a_line()
        for n in range(5 * logs.MOST_LINES):
            put(line, 1.0, f"made-up-{n}", "waf", n, 0, "")
        line.close()

    asyncio.run(log())
    written = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [entry["event"] for entry in written] == ["closed"] * logs.MOST_LINES + ["more closed"]
    assert (written[-1]["n"], written[-1]["most"]) == (4 * logs.MOST_LINES, {"others": 4 * logs.MOST_LINES})
    assert logs.MOST_LINES < 1000


def test_a_kind_that_strangers_can_repeat_leaves_the_others_their_lines(capsys: pytest.CaptureFixture[str]) -> None:
    many = 3 * logs.MOST_LINES

    async def log() -> None:
        configure("supervisor", form="json")
        for n in range(many):
            get_logger().warning("something about a stranger", peer=f"192.0.2.{n}")
        get_logger().error("something else")
        # Nothing more is logged: the second that was too full sums itself up.
        await until(lambda: "more log lines" in str(told))

    told: list[str] = []

    async def until(condition: Callable[[], bool]) -> None:
        deadline = asyncio.get_running_loop().time() + 10
        while not condition() and asyncio.get_running_loop().time() < deadline:
            told.extend(capsys.readouterr().err.splitlines())
            await asyncio.sleep(0.02)

    asyncio.run(log())
    written = [json.loads(line) for line in told]
    about_strangers = [entry for entry in written if entry["event"] == "something about a stranger"]
    left_out = sum(entry["n"] for entry in written if entry["event"] == "more log lines of one kind")
    assert logs.MOST_LINES <= len(about_strangers) < many
    assert len(about_strangers) + left_out == many
    assert "something else" in [entry["event"] for entry in written]
