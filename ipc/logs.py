"""Log lines of all our processes, in one form.

To a terminal as text, otherwise as one JSON object a line, on standard error; each with its syslog priority in front
(``<6>``, sd-daemon(3)) where that is the journal's. Text that came from an agent goes through `printable` first: it may
hold escape sequences.

Two ways to log. `get_logger` is structlog, for what happens now and then: 20 µs a line. A `Line` is for what happens
with every connection: its text is mostly written beforehand, and lines of `GATHER_SECONDS` leave in one write.
"""

import asyncio
import atexit
import functools
import json
import os
import sys
import time
from typing import Any, ClassVar

import msgspec
import structlog

from ipc.log_levels import LEVEL_NAMES, LEVELS
from ipc.log_output import LogOutput, StandardError

_INFO = LEVELS["info"]

_PRIORITIES = {"debug": "<7>", "info": "<6>", "warning": "<4>", "error": "<3>", "critical": "<2>"}
"""Of syslog(3), as the journal takes them at the beginning of a line."""

MOST_REPEATS = 10
"""Lines of one kind about the same thing in a second; what comes above that is summed up in one line."""

MOST_LINES = 300
"""Lines of one kind in a second, whatever they are about: a disk must not fill up with what strangers do.

A line has 200 to 400 bytes: agents with made-up ids make each process write 100 kB a second at most, not 8 MB.
"""


class _State:
    """What `configure` has set up, for this process."""

    level = LEVELS["info"]
    output: LogOutput | None = None
    # What stands around a `Line`, and whether as JSON.
    process = ""
    prefix = ""
    as_json = True


def configure(process: str, level: str = "info", form: str = "auto") -> None:
    """Set up logging for this process; *form* is ``auto``, ``text`` or ``json``."""
    as_text = form == "text" or (form == "auto" and sys.stderr.isatty())
    output = LogOutput(sys.stderr, _dropped)
    if _State.output is None:
        atexit.register(flush)
    _State.output, _State.process, _State.as_json = output, process, not as_text
    _State.prefix = _PRIORITIES["info"] if _is_journals() else ""
    set_level(level)
    ending: list[Any]
    if as_text:
        # The first parameter is the padding of the event; it has another name in structlog 26.
        has_colours = sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        ending = [structlog.dev.ConsoleRenderer(0, colors=has_colours)]
    else:
        ending = [
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(serializer=_to_json),
        ]
    if _State.prefix:
        ending.append(_PriorityRenderer(ending.pop()))
    structlog.configure(
        processors=[
            _drop_unwanted,
            _Bound(),
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _name_process(process),
            *ending,
        ],
        # Every level: which ones are wanted may change while we run.
        wrapper_class=structlog.make_filtering_bound_logger(0),
        logger_factory=lambda *_: _Writer(output),
        cache_logger_on_first_use=True,
    )


def set_level(level: str) -> None:
    """Log what is of *level* or above from now on; ValueError when it is none of `LEVEL_NAMES`."""
    if level not in LEVEL_NAMES:
        raise ValueError(f"{level!r} is no level; levels are {', '.join(LEVEL_NAMES)}")
    _State.level = LEVELS[level]


def change_level(level: str) -> None:
    """`set_level` in a running process, with a line that says so where it changes anything.

    The line is written under the old level or the new one, whichever lets more through: a log is to tell why it falls
    silent.
    """
    before = level_name()
    if level == before:
        return
    if LEVELS.get(level, 0) < LEVELS[before]:
        set_level(level)
    get_logger().info("log level set", log_level=level, before=before)
    set_level(level)


def level_name() -> str:
    """The least level that is logged."""
    return next(name for name, number in LEVELS.items() if number == _State.level)


def get_logger() -> Any:
    """The logger; structlog gives it its methods at run time, hence the type."""
    return structlog.get_logger()


def take_standard_error() -> None:
    """Have everything that is written to ``sys.stderr`` go the way of log lines, for a process of our own."""
    if _State.output is not None and not isinstance(sys.stderr, StandardError):
        sys.stderr = StandardError(sys.stderr, _State.output)


def say(text: str) -> None:
    """Write *text* for a person among the log lines; like them it waits for no reader."""
    if _State.output is not None:
        _State.output.write(text)


def flush() -> None:
    """Write what has gathered, as far as the reader takes it; for the end of a process."""
    if _State.output is not None:
        _State.output.flush()


def log_loop_errors(loop: asyncio.AbstractEventLoop) -> None:
    """Have exceptions that reach the event loop logged like everything else."""

    def handle(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        get_logger().error(context["message"], exc_info=context.get("exception"))

    loop.set_exception_handler(handle)


def printable(text: str, limit: int = 128) -> str:
    """*text* with everything but printable ASCII escaped; of more than *limit* characters the first, and ``...``."""
    shortened = text[:limit]
    escaped = shortened.encode("ascii", "backslashreplace").decode("ascii")
    clean = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in escaped)
    return clean if len(text) <= limit else f"{clean}..."


class Repeats:
    """Which lines of one second to write: so many about each thing, and so many in all."""

    __slots__ = ("_counts", "_left_out", "_most", "_most_in_all", "_written")

    def __init__(self, most: int = MOST_REPEATS, most_in_all: int = MOST_LINES) -> None:
        self._most, self._most_in_all = most, most_in_all
        self._counts: dict[str, int] = {}
        self._left_out: dict[str, int] = {}
        self._written = 0

    def allows(self, about: str) -> bool:
        """Whether to write one more line about this; it counts as left out if not."""
        if self._written >= self._most_in_all:
            # Names that were not seen before share one entry: there may be any number of them.
            name = about if about in self._counts else "others"
            self._left_out[name] = self._left_out.get(name, 0) + 1
            return False
        written = self._counts.get(about, 0)
        if written >= self._most:
            self._left_out[about] = self._left_out.get(about, 0) + 1
            return False
        self._counts[about] = written + 1
        self._written += 1
        return True

    def next_second(self) -> dict[str, int]:
        """Begin anew; how many lines were left out about what, most first."""
        left_out = dict(sorted(self._left_out.items(), key=lambda item: -item[1]))
        self._counts.clear()
        self._left_out.clear()
        self._written = 0
        return left_out


class Line:
    """A kind of log line, of level info, that is written for every connection.

    *names* are fields whose values are words of ours or of a checked syntax (an agent id), and need no escaping;
    *numbers* follow, times in seconds among them; *texts* come last, and may hold anything. `write` takes their values
    in that order, once `allows` has said yes. Lines about the same thing are limited by `Repeats`; *summary* is the
    event of the line that says what was left out.

    Two calls, because most of what a line costs are its values, and under load most lines are left out: 0.2 µs for such
    a one, 1.2 µs for one that is written.
    """

    SUMMARY_NAMES: ClassVar = 10

    def __init__(
        self,
        event: str,
        summary: str,
        *,
        names: tuple[str, ...],
        numbers: tuple[str, ...] = (),
        texts: tuple[str, ...] = (),
    ) -> None:
        self._event, self._summary = event, summary
        self._fields = (*names, *numbers, *texts)
        self._texts = range(len(self._fields) - len(texts), len(self._fields))
        parts = [f'"{name}":"%s"' for name in names] + [f'"{name}":{_number(name)}' for name in numbers]
        parts += [f'"{name}":%s' for name in texts]
        prefix, process = _State.prefix, _State.process
        end = f'"event":"{event}","level":"info","timestamp":"%s","process":"{process}"'
        self._template = f"{prefix}{{{','.join(parts)},{end}}}"
        self._as_json = _State.as_json
        if not self._as_json:
            parts = [f"{name}=%s" for name in names] + [f"{name}={_number(name)}" for name in numbers]
            parts += [f"{name}=%s" for name in texts]
            self._template = f"{prefix}%s [info     ] {event} {' '.join(parts)} process={process}"
        self._repeats = Repeats()
        self._timer: asyncio.TimerHandle | None = None
        self._millisecond = -1
        self._stamp = ""

    def allows(self, about: str) -> bool:
        """Whether to write a line now: of this level, and of which there were not too many *about* the same."""
        if _State.level > _INFO:
            return False
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(1.0, self._sum_up)
        return self._repeats.allows(about)

    def write(self, now: float, *values: Any) -> None:
        """Write the line; *now* is seconds since 1970."""
        output = _State.output
        if output is None:
            # Embedded in a program that has set up structlog in its own way, or not at all.
            get_logger().info(self._event, **dict(zip(self._fields, values, strict=True)))
            return
        millisecond = int(now * 1000)
        if millisecond != self._millisecond:
            self._millisecond = millisecond
            self._stamp = _timestamp(millisecond)
        fields = [*values, self._stamp]
        for place in self._texts:
            fields[place] = _quoted(fields[place])
        if not self._as_json:
            fields.insert(0, fields.pop())
        output.put(self._template % tuple(fields))

    def close(self) -> None:
        """Sum up what was left out, and stop the clock."""
        if self._timer is not None:
            self._timer.cancel()
            self._sum_up()

    def _sum_up(self) -> None:
        self._timer = None
        left_out = self._repeats.next_second()
        if left_out:
            most = dict(list(left_out.items())[: self.SUMMARY_NAMES])
            get_logger().info(self._summary, n=sum(left_out.values()), most=most)


class _Writer:
    """What structlog hands its finished lines to."""

    def __init__(self, output: LogOutput) -> None:
        self._output = output

    def msg(self, message: str) -> None:
        self._output.write(message)

    debug = info = warning = error = critical = log = msg


class _PriorityRenderer:
    """A renderer, with the priority in front of each line that it makes."""

    def __init__(self, renderer: Any) -> None:
        self._renderer = renderer

    def __call__(self, logger: Any, method: str, event: dict[str, Any]) -> str:
        priority = _PRIORITIES.get(method, "<6>")
        text = str(self._renderer(logger, method, event))
        return priority + text.replace("\n", f"\n{priority}")


def _is_journals() -> bool:
    """Whether standard error is the stream that systemd gave us: ``$JOURNAL_STREAM`` names it, systemd.exec(5).

    Only then: who redirects it elsewhere inherits the variable all the same.
    """
    named = os.environ.get("JOURNAL_STREAM", "")
    try:
        status = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return named == f"{status.st_dev}:{status.st_ino}"


class _Bound:
    """Lets `MOST_LINES` lines of each event through in a second, and sums up what is above that.

    Most events are rare by what they are. Some are as frequent as strangers want, and which ones is not always seen.
    """

    def __init__(self) -> None:
        self._repeats = Repeats(most=MOST_LINES, most_in_all=10 * MOST_LINES)
        self._begun = -1.0
        self._timer: asyncio.TimerHandle | None = None

    def __call__(self, _logger: Any, _method: str, event: Any) -> Any:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return event  # No stranger is served by this process, or not yet.
        now = time.monotonic()
        if now - self._begun >= 1.0:
            self._sum_up()
        if not self._repeats.allows(event["event"]):
            if self._timer is None:
                self._timer = loop.call_later(1.0, self._sum_up)
            raise structlog.DropEvent
        return event

    def _sum_up(self) -> None:
        self._begun = time.monotonic()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        left_out = self._repeats.next_second()
        if left_out:
            most = dict(list(left_out.items())[: Line.SUMMARY_NAMES])
            get_logger().warning("more log lines of one kind", n=sum(left_out.values()), most=most)


def _drop_unwanted(_logger: Any, method: str, event: Any) -> Any:
    if LEVELS.get(method, 50) < _State.level:
        raise structlog.DropEvent
    return event


@functools.lru_cache(maxsize=256)
def _quoted(text: str) -> str:
    encoded = msgspec.json.encode(text)
    return encoded.decode() if encoded.isascii() else json.dumps(text)


def _number(name: str) -> str:
    # %.6g would do for both, and takes three times as long.
    return "%.3f" if name.endswith("_s") else "%d"


def _timestamp(millisecond: int) -> str:
    second, rest = divmod(millisecond, 1000)
    return f"{_date_and_time(second)}.{rest:03d}Z"


@functools.lru_cache(maxsize=2)
def _date_and_time(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


def _dropped(number: int) -> str:
    """The line that stands for *number* lines which nobody read, in the form of the others."""
    prefix = _PRIORITIES["error"] if _State.prefix else ""
    stamp, event = _timestamp(int(time.time() * 1000)), "log lines dropped: nobody read them"
    if _State.as_json:
        end = f'"level":"error","timestamp":"{stamp}","process":"{_State.process}"'
        return f'{prefix}{{"n":{number},"event":"{event}",{end}}}'
    return f"{prefix}{stamp} [error    ] {event} n={number} process={_State.process}"


def _to_json(event: dict[str, Any], **_: Any) -> str:
    """In ASCII: U+009B begins an escape sequence, as ESC does."""
    try:
        encoded = msgspec.json.encode(event, enc_hook=str)
        if encoded.isascii():
            return encoded.decode()
    except UnicodeEncodeError:
        # The name of a file that is not UTF-8 holds surrogates (PEP 383).
        pass
    return json.dumps(event, default=str)


def _name_process(process: str) -> Any:
    def add(_logger: Any, _method: str, event: dict[str, Any]) -> dict[str, Any]:
        event["process"] = process
        return event

    return add
