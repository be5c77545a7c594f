"""The readiness of this host for agents. Pure.

- "ready": at least as many shards as wanted take agents, and no file or socket is missing on disk.
- "degraded": fewer shards than wanted take agents, or a file or socket is missing on disk.
- "not ready": no agent would be accepted now.
"""

from collections.abc import Collection, Sequence

import msgspec

from ipc.schema import SCHEMA
from ipc.status import ListenerRow, ShardRow

READY, DEGRADED, NOT_READY = "ready", "degraded", "not ready"


class ShardCount(msgspec.Struct):
    """The number of shards that take connections, and the wanted number."""

    ready: int
    wanted: int


class Readiness(msgspec.Struct, kw_only=True):
    """The answer of ``/readyz``. *reasons* is empty when the host is ready."""

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
    """Grade a host. *state* is the state of the supervisor. *takers* are the shards that take connections.

    *problems* are texts about missing files and sockets. Agents are still served, but new agents or later processes
    need them.
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
