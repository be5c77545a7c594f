"""Events for people, and for programs."""

import datetime as dt
from typing import Any

from ipc.schema import SCHEMA
from supervisor.cli.output import Cell, Column, duration, safe
from supervisor.history_rows import NO_SHARD, Event
from supervisor.merge import rfc3339

COLUMNS = (
    Column("TIME"),
    Column("EVENT"),
    Column("AGENT"),
    Column("CONNECTION", gives_way=3),
    Column("SHARD", numeric=True, gives_way=2),
    Column("WHAT", shortest=20),
)

_COLOURS = {"refused": "yellow", "registered": "green"}


def event_row(event: Event) -> dict[str, Any]:
    """An event as ``--json`` prints it: what it has not is null."""
    return {
        "schema": SCHEMA,
        "n": event.n,
        "at": rfc3339(event.at),
        "kind": event.kind,
        "agent_id": event.agent_id or None,
        "connection_id": f"{event.agent_id}-conn-{event.number}" if event.number else None,
        "shard": None if event.shard == NO_SHARD else event.shard,
        "code": event.code or None,
        "reason": event.text or None,
        "duration_s": round(event.seconds, 3),
        "peer": event.peer or None,
    }


def event_cells(event: Event) -> list[Cell]:
    """An event as a row of a table."""
    number = f"conn-{event.number}" if event.number else "-"
    return [
        Cell(local_time(event.at)),
        Cell(safe(event.kind), "red" if event.code in ("died", "silent", "shard_died") else _COLOURS.get(event.kind)),
        Cell(safe(event.agent_id) or "-"),
        Cell(number),
        Cell("-" if event.shard == NO_SHARD else str(event.shard)),
        Cell(what(event)),
    ]


def what(event: Event) -> str:
    """What an event says beside its kind."""
    text = safe(event.text, 200)
    if event.kind == "registered":
        return f"after {1000 * event.seconds:.0f} ms"
    if event.kind == "closed":
        after = f", after {duration(event.seconds)}" if event.seconds else ""
        more = "" if _says_the_same(text, event.code) else f": {text}"
        return f"{safe(event.code)}{after}{more}"
    return with_code(event.code, event.text) + (f" (from {safe(event.peer)})" if event.peer else "")


def with_code(code: str, text: str) -> str:
    """A text behind its code, where it does not begin with the same words."""
    if text and _says_the_same(text, code):
        return safe(text, 200)
    return ": ".join(filter(None, (safe(code), safe(text, 200))))


def _says_the_same(text: str, code: str) -> bool:
    """Whether a text says nothing, or begins with the words of its code."""
    return not text or text.lower().startswith(code.replace("_", " "))


def local_time(seconds: float) -> str:
    """A time of the epoch for people: of this time zone, with its day."""
    return dt.datetime.fromtimestamp(seconds).astimezone().strftime("%m-%d %H:%M:%S.%f")[:-3]
