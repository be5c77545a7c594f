"""Format texts, times and numbers for people, the same way in all outputs. Pure."""

import time
from datetime import datetime

_LONGEST_TEXT = 128

LONGEST_CONNECTION_ID = 160
"""At least 153: an agent's id of 128 characters, ``-conn-``, and a number of up to 19 digits."""

_DAY = 86_400.0


def safe(text: str, limit: int = _LONGEST_TEXT) -> str:
    """Return *text* with all characters escaped that are not printable ASCII. It is cut to *limit* characters."""
    if len(text) <= limit and text.isascii() and text.isprintable():
        return text
    # This is rare. The module imports structlog, which takes as much time as the rest of a command.
    from ipc.logs import printable

    return printable(text, limit)


def moment(at: float, now: float, *, milliseconds: bool = False) -> str:
    """Format seconds of the epoch for people, in UTC as in the logs: ``08:53:01Z``.

    A time that is a day or more from *now* gets its date: ``2026-11-21 08:53:01Z``. A number that is no time gives
    ``?``.
    """
    form = "%H:%M:%S" if abs(now - at) < _DAY else "%Y-%m-%d %H:%M:%S"
    try:
        # Whole milliseconds are used: 0.25 s may be 0.2499999 s after a subtraction.
        whole, thousandths = divmod(int(at * 1000) if milliseconds else int(at) * 1000, 1000)
        text = time.strftime(form, time.gmtime(whole))
    except (OverflowError, ValueError, OSError):
        return "?"
    return f"{text}.{thousandths:03}Z" if milliseconds else f"{text}Z"


def moment_of(text: str, now: float) -> str:
    """Format a time in RFC 3339 with `moment`. Any other text is returned through `safe`."""
    try:
        return moment(datetime.fromisoformat(text).timestamp(), now)
    except (ValueError, OverflowError):
        return safe(text)


def duration(seconds: float) -> str:
    """Format a duration for people, in its two largest units: ``42 s``, ``5 m 07 s``, ``3 h 20 m``, ``12 d 4 h``."""
    if 0 < seconds < 1:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    minutes, s = divmod(whole, 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    if days:
        return f"{days} d {h} h"
    if hours:
        return f"{h} h {m:02} m"
    return f"{m} m {s:02} s" if minutes else f"{s} s"


def size(number: float) -> str:
    """Format a number of bytes for people: ``812 B``, ``34.1 MiB``."""
    if number < 1024:
        return f"{number:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        number /= 1024
        if number < 1024:
            return f"{number:.1f} {unit}"
    return f"{number / 1024:.1f} TiB"


def count(noun: str, number: int) -> str:
    """Format a number with its noun: ``1 shard``, ``2 shards``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
