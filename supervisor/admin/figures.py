"""All values that the admin endpoint shows, taken at one moment."""

import msgspec

from ipc.histogram import Histogram
from supervisor.admin.readiness import Readiness
from supervisor.merge import Status
from supervisor.totals import ShardTotals


class ShardFigures(msgspec.Struct, kw_only=True):
    """The totals of a shard number over all its processes, and the gaps in bus messages that were repaired."""

    totals: ShardTotals
    gaps: dict[str, int] = {}


class Figures(msgspec.Struct, kw_only=True):
    """All figures. *status* is the object that ``shardgate status --json`` prints.

    *shards* also has an entry for each number without a shard any more. *started_at* has the start time of each
    process, by its name, in seconds since 1970.
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
    """The name of a process in metrics. None is the supervisor."""
    return "supervisor" if shard is None else f"shard-{shard}"
