"""Events as rows of a table, and as JSON."""

from typing import Any

from ipc.schema import SCHEMA
from supervisor.cli.output import Cell, Column
from supervisor.history_rows import NO_SHARD, Event
from supervisor.history_words import what
from supervisor.merge import rfc3339
from supervisor.words import moment, safe

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
    """Return an event as ``--json`` prints it. A missing field is null."""
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


def event_cells(event: Event, now: float) -> list[Cell]:
    """Return an event as a row of a table. *now* is in seconds of the epoch; older days get their date."""
    number = f"conn-{event.number}" if event.number else "-"
    return [
        Cell(moment(event.at, now, milliseconds=True)),
        Cell(safe(event.kind), "red" if event.code in ("died", "silent", "shard_died") else _COLOURS.get(event.kind)),
        Cell(safe(event.agent_id) or "-"),
        Cell(number),
        Cell("-" if event.shard == NO_SHARD else str(event.shard)),
        Cell(what(event)),
    ]
