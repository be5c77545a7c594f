"""Everything that the admin endpoint shows, as one value of one moment."""

import msgspec

from ipc.histogram import Histogram
from supervisor.admin.readiness import Readiness
from supervisor.merge import Status
from supervisor.totals import ShardTotals


class ShardFigures(msgspec.Struct, kw_only=True):
    """What a shard has counted, over all lives of its number, and what had to be repaired."""

    totals: ShardTotals
    gaps: dict[str, int] = {}


class Figures(msgspec.Struct, kw_only=True):
    """All figures. *status* is the object that ``shardgate status --json`` prints.

    *shards* has an entry also for a number that no shard has any more. *started_at* is the start of each process, by
    its name, in seconds of the epoch.
    """

    status: Status
    readiness: Readiness
    shards: dict[int, ShardFigures]
    slots_live: int
    slots_reserved: int
    agents: int
    not_agents: int
    handshake_seconds: Histogram
    handoff_seconds: Histogram
    registration_seconds: Histogram
    move_seconds: Histogram
    loaded_at: float
    reloads: dict[str, int]
    started_at: dict[str, float]


def process_name(shard: int | None) -> str:
    """What a process is called in metrics; None is the supervisor."""
    return "supervisor" if shard is None else f"shard-{shard}"
