"""Log lines of all processes of shardgate, in one form, on standard error.

A terminal gets text; any other output gets one JSON object per line. Each line begins with its syslog priority
(``<6>``, sd-daemon(3)) when standard error is a stream of the journal. Text from an agent goes through `printable`
first, because it may hold escape sequences.

There are two ways to log. `get_logger` returns a structlog logger, for rare events: 20 µs per line. A `Line` is for
events of every connection. Most of its text is formatted beforehand, and the lines of `GATHER_SECONDS` leave in one
write.
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
"""Priorities of syslog(3), in the journal's form for the beginning of a line."""

MOST_REPEATS = 10
"""Lines of one kind about the same thing per second. One line sums up the rest."""

MOST_LINES = 300
"""Lines of one kind per second, about all things together. Unknown peers must not be able to fill up a disk.

A line has 200 to 400 bytes. So agents with made-up ids cause at most 100 kB per second in each process, not 8 MB.
"""


class _State:
    """The settings of this process, made by `configure`."""

    level = LEVELS["info"]
    output: LogOutput | None = None
    # The fixed parts of a `Line`, and whether its form is JSON.
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
        # All levels: the wanted level may change at run time.
        wrapper_class=structlog.make_filtering_bound_logger(0),
        logger_factory=lambda *_: _Writer(output),
        cache_logger_on_first_use=True,
    )


def set_level(level: str) -> None:
    """Log lines of *level* or above from now on. Raises ValueError for a level that is not in `LEVEL_NAMES`."""
    if level not in LEVEL_NAMES:
        raise ValueError(f"{level!r} is no level; levels are {', '.join(LEVEL_NAMES)}")
    _State.level = LEVELS[level]


def change_level(level: str) -> None:
    """Set the level of a running process, and log the change.

    The line is logged under the lower of the old and the new level. So the log shows why it falls silent.
    """
    before = level_name()
    if level == before:
        return
    if LEVELS.get(level, 0) < LEVELS[before]:
        set_level(level)
    get_logger().info("log level set", log_level=level, before=before)
    set_level(level)


def level_name() -> str:
    """The name of the lowest level that is logged."""
    return next(name for name, number in LEVELS.items() if number == _State.level)


def get_logger() -> Any:
    """Return the structlog logger. The type is Any, because structlog makes its methods at run time."""
    return structlog.get_logger()


def take_standard_error() -> None:
    """Route all output to ``sys.stderr`` through the log output. Only for processes of shardgate itself."""
    if _State.output is not None and not isinstance(sys.stderr, StandardError):
        sys.stderr = StandardError(sys.stderr, _State.output)


def say(text: str) -> None:
    """Write plain *text* for an operator between the log lines. Never waits for a reader."""
    if _State.output is not None:
        _State.output.write(text)


def flush() -> None:
    """Write the gathered lines, as far as the reader takes them. For the end of a process."""
    if _State.output is not None:
        _State.output.flush()


def log_loop_errors(loop: asyncio.AbstractEventLoop) -> None:
    """Log the exceptions that reach the event loop."""

    def handle(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        get_logger().error(context["message"], exc_info=context.get("exception"))

    loop.set_exception_handler(handle)


def printable(text: str, limit: int = 128) -> str:
    """Escape all characters of *text* but printable ASCII. Cut it after *limit* characters, and add ``...``."""
    shortened = text[:limit]
    escaped = shortened.encode("ascii", "backslashreplace").decode("ascii")
    clean = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in escaped)
    return clean if len(text) <= limit else f"{clean}..."


class Repeats:
    """Limits the lines of one second: *most* about each thing, and *most_in_all* together."""

    __slots__ = ("_counts", "_left_out", "_most", "_most_in_all", "_written")

    def __init__(self, most: int = MOST_REPEATS, most_in_all: int = MOST_LINES) -> None:
        self._most, self._most_in_all = most, most_in_all
        self._counts: dict[str, int] = {}
        self._left_out: dict[str, int] = {}
        self._written = 0

    def allows(self, about: str) -> bool:
        """Whether to write one more line about *about*. If not, the line counts as left out."""
        if self._written >= self._most_in_all:
            # New names share one entry, because their number has no bound.
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
        """Begin a new second. Returns the number of lines left out about each thing, the largest first."""
        left_out = dict(sorted(self._left_out.items(), key=lambda item: -item[1]))
        self._counts.clear()
        self._left_out.clear()
        self._written = 0
        return left_out


class Line:
    """A kind of log line, of level info, that is written for every connection.

    *names* are fields with values that need no escaping: fixed words, or text of a checked syntax (an agent id).
    *numbers* follow; a name that ends in ``_s`` is a time in seconds. *texts* come last, and may hold any text. `write`
    takes the values in that order, and may be called only after `allows` returned True. `Repeats` limits the lines
    about the same thing. *summary* is the event of the line that counts the lines left out.

    There are two calls because the values are most of the cost of a line. Under load most lines are left out. A line
    costs 0.2 µs when it is left out, and 1.2 µs when it is written.
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
        """Whether to write a line now. False when the level is above info, or lines *about* this are too many."""
        if _State.level > _INFO:
            return False
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(1.0, self._sum_up)
        return self._repeats.allows(about)

    def write(self, now: float, *values: Any) -> None:
        """Write the line. *now* is in seconds since 1970."""
        output = _State.output
        if output is None:
            # The pool is part of another program, which sets up structlog in its own way, or not at all.
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
        """Log the lines left out, and stop the timer."""
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
    """Takes the finished lines from structlog."""

    def __init__(self, output: LogOutput) -> None:
        self._output = output

    def msg(self, message: str) -> None:
        self._output.write(message)

    debug = info = warning = error = critical = log = msg


class _PriorityRenderer:
    """Puts the priority in front of each line of another renderer."""

    def __init__(self, renderer: Any) -> None:
        self._renderer = renderer

    def __call__(self, logger: Any, method: str, event: dict[str, Any]) -> str:
        priority = _PRIORITIES.get(method, "<6>")
        text = str(self._renderer(logger, method, event))
        return priority + text.replace("\n", f"\n{priority}")


def _is_journals() -> bool:
    """Whether standard error is a stream from systemd to the journal. ``$JOURNAL_STREAM`` names it, systemd.exec(5).

    The variable alone is no proof: a process with redirected standard error inherits it too.
    """
    named = os.environ.get("JOURNAL_STREAM", "")
    try:
        status = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return named == f"{status.st_dev}:{status.st_ino}"


class _Bound:
    """Passes `MOST_LINES` lines per second of each event, ten times as many in all, and sums up the rest.

    Most events are rare by nature. Unknown peers decide how often some of them happen. The code does not always show
    which ones.
    """

    def __init__(self) -> None:
        self._repeats = Repeats(most=MOST_LINES, most_in_all=10 * MOST_LINES)
        self._begun = -1.0
        self._timer: asyncio.TimerHandle | None = None

    def __call__(self, _logger: Any, _method: str, event: Any) -> Any:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return event  # This process does not serve peers, or not yet.
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
    # %.6g would fit both, but takes three times as long.
    return "%.3f" if name.endswith("_s") else "%d"


def _timestamp(millisecond: int) -> str:
    second, rest = divmod(millisecond, 1000)
    return f"{_date_and_time(second)}.{rest:03d}Z"


@functools.lru_cache(maxsize=2)
def _date_and_time(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


def _dropped(number: int) -> str:
    """The line that stands for *number* dropped lines, in the same form as the other lines."""
    prefix = _PRIORITIES["error"] if _State.prefix else ""
    stamp, event = _timestamp(int(time.time() * 1000)), "log lines dropped: nobody read them"
    if _State.as_json:
        end = f'"level":"error","timestamp":"{stamp}","process":"{_State.process}"'
        return f'{prefix}{{"n":{number},"event":"{event}",{end}}}'
    return f"{prefix}{stamp} [error    ] {event} n={number} process={_State.process}"


def _to_json(event: dict[str, Any], **_: Any) -> str:
    """Encode *event* in ASCII: U+009B begins an escape sequence, as ESC does."""
    try:
        encoded = msgspec.json.encode(event, enc_hook=str)
        if encoded.isascii():
            return encoded.decode()
    except UnicodeEncodeError:
        # A file name that is not UTF-8 holds surrogates (PEP 383).
        pass
    return json.dumps(event, default=str)


def _name_process(process: str) -> Any:
    def add(_logger: Any, _method: str, event: dict[str, Any]) -> dict[str, Any]:
        event["process"] = process
        return event

    return add
