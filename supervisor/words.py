"""Format texts, times and numbers for people, the same way in all outputs. Pure."""

import time
from datetime import datetime

_LONGEST_TEXT = 128

LONGEST_CONNECTION_ID = 160
"""An agent's id of 128 characters, ``-conn-`` and a number of up to 19 digits are 153."""

_DAY = 86_400.0


def safe(text: str, limit: int = _LONGEST_TEXT) -> str:
    """*text* with everything escaped that is not printable ASCII, at most *limit* characters of it."""
    if len(text) <= limit and text.isascii() and text.isprintable():
        return text
    # This is rare. The module imports structlog, which takes as much time as the rest of a command.
    from ipc.logs import printable

    return printable(text, limit)


def moment(at: float, now: float, *, milliseconds: bool = False) -> str:
    """A time of the epoch for people, in the zone of the logs, which is UTC: ``08:53:01Z``.

    A time that is a day or more from *now* has its date: ``2026-11-21 08:53:01Z``. ``?`` stands for a number that is no
    time.
    """
    form = "%H:%M:%S" if abs(now - at) < _DAY else "%Y-%m-%d %H:%M:%S"
    try:
        # In whole milliseconds: 0.25 of a second may be 0.2499999 after a subtraction.
        whole, thousandths = divmod(int(at * 1000) if milliseconds else int(at) * 1000, 1000)
        text = time.strftime(form, time.gmtime(whole))
    except (OverflowError, ValueError, OSError):
        return "?"
    return f"{text}.{thousandths:03}Z" if milliseconds else f"{text}Z"


def moment_of(text: str, now: float) -> str:
    """`moment` for a time in RFC 3339; another text as it is, made safe."""
    try:
        return moment(datetime.fromisoformat(text).timestamp(), now)
    except (ValueError, OverflowError):
        return safe(text)


def duration(seconds: float) -> str:
    """A time for people, in its two largest units: ``42 s``, ``5 m 07 s``, ``3 h 20 m``, ``12 d 4 h``."""
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
    """A number of bytes for people: ``812 B``, ``34.1 MiB``."""
    if number < 1024:
        return f"{number:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        number /= 1024
        if number < 1024:
            return f"{number:.1f} {unit}"
    return f"{number / 1024:.1f} TiB"


def count(noun: str, number: int) -> str:
    """A number and its noun: ``1 shard``, ``2 shards``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
