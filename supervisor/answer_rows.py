"""The types of the answers about agents.

They are apart from `supervisor.answers`, so that a command imports only the types that it reads.
"""

import msgspec

from supervisor.history_rows import Story


class SlotRow(msgspec.Struct, frozen=True):
    """A slot of an agent. *shard* is None while none has been chosen. *live* is true once the agent was accepted."""

    connection_id: str
    shard: int | None
    live: bool


class Why(msgspec.Struct, kw_only=True):
    """The supervisor's knowledge of one agent.

    *objection* is why no registration of it can succeed at all. *similar* is a known id that looks like this one.
    *story* is its history. Each is None without one.
    """

    agent_id: str
    limit: int
    slots: list[SlotRow]
    objection: str | None
    similar: str | None
    story: Story | None
    uptime_s: float


class Kicked(msgspec.Struct, kw_only=True):
    """The connections that are being closed, and the shards that could not be told to close theirs."""

    agent_id: str
    connection_ids: list[str]
    shards_silent: list[int]
