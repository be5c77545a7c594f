"""The last events of the history, for the page."""

import msgspec

from supervisor.history import History
from supervisor.history_rows import NO_SHARD
from supervisor.history_words import what

SHOWN = 14


class Happened(msgspec.Struct, kw_only=True, frozen=True):
    """One event. *at* is in seconds since 1970. *who* is an agent, a shard, the supervisor or unknown."""

    n: int
    at: float
    who: str
    kind: str
    code: str
    text: str


def happened(history: History) -> list[Happened]:
    """The last events, the newest first, in the words of ``shardgate events``."""
    events = []
    for event in reversed(history.since(None, SHOWN).events):
        shard = "" if event.shard == NO_SHARD else f"shard {event.shard}"
        if event.agent_id:
            who = event.agent_id
        elif event.kind == "refused":
            who = "unknown"
        else:
            who = shard or "supervisor"
        kind, text = event.kind, what(event)
        if kind in ("shard", "supervisor"):
            kind, text = event.code, event.text.removeprefix(event.code).lstrip(" :,")
        elif event.agent_id and shard:
            text = f"{text}, {shard}" if text else shard
        events.append(Happened(n=event.n, at=round(event.at, 3), who=who, kind=kind, code=event.code, text=text))
    return events
