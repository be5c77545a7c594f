"""How ready this host is for agents. Pure.

"ready" means all that there should be, "degraded" that agents are taken by fewer shards than wanted or that something
is not on disk as it should be, "not ready" that none would be taken now.
"""

from collections.abc import Collection, Sequence

import msgspec

from ipc.schema import SCHEMA
from ipc.status import ListenerRow, ShardRow

READY, DEGRADED, NOT_READY = "ready", "degraded", "not ready"


class ShardCount(msgspec.Struct):
    """Shards that take connections, of those that there should be."""

    ready: int
    wanted: int


class Readiness(msgspec.Struct, kw_only=True):
    """The answer of ``/readyz``: *reasons* say what is missing, and are empty when nothing is."""

    schema: int = SCHEMA
    status: str
    shards: ShardCount
    listeners: list[ListenerRow]
    reasons: list[str]


def grade(
    *,
    state: str,
    wanted: int,
    rows: Sequence[ShardRow],
    takers: Collection[int],
    listeners: Sequence[ListenerRow],
    out_of_descriptors: bool = False,
    problems: Sequence[str] = (),
) -> Readiness:
    """Grade a host: *state* is the supervisor's, *takers* are the shards that are given connections.

    *problems* are what is not on disk as it should be: agents are served, and something that they or the next processes
    need is missing.
    """
    reasons: list[str] = []
    if state != "running":
        reasons.append(f"the supervisor is {state}")
    if not listeners:
        reasons.append("no listener is open")
    if out_of_descriptors:
        reasons.append("out of descriptors: new agents are refused; raise the open files limit")
    if not takers:
        reasons.append("no shard takes connections")
    ready = len(takers)
    is_open = not reasons
    missing = [f"shard {row.id} takes no connections: it is {_condition(row)}" for row in rows if row.id not in takers]
    if len(rows) < wanted:
        missing.append(f"{wanted - len(rows)} of {wanted} shards are not there")
    # While a spare shard stands in for another one, nothing is missing.
    if ready < wanted:
        reasons += missing
    reasons += problems
    status = NOT_READY if not is_open else READY if ready >= wanted and not problems else DEGRADED
    return Readiness(status=status, shards=ShardCount(ready, wanted), listeners=list(listeners), reasons=reasons)


def _condition(row: ShardRow) -> str:
    return row.state.value if row.state.value != "running" else "running, and its channel is not there yet"
