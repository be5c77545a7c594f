"""What has happened lately, for the page."""

import msgspec

from supervisor.merge import Status


class Happened(msgspec.Struct, kw_only=True):
    """One event: *at* is the time of day, *shard* is None for what concerns the whole host."""

    at: str
    shard: int | None
    text: str


def happened(status: Status) -> list[Happened]:
    """The newest event of each shard, the newest first."""
    events = []
    for row in status.shards:
        if row.last_event:
            at, _, text = row.last_event.partition(" ")
            events.append(Happened(at=at, shard=row.id, text=text))
    return sorted(events, key=lambda event: event.at, reverse=True)
