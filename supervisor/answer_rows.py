"""The shapes of answers about agents. Apart from what makes them: a command line imports no more than it reads."""

import msgspec

from supervisor.history_rows import Story


class SlotRow(msgspec.Struct, frozen=True):
    """A slot of an agent; *shard* is None while none has been chosen, *live* when the agent was accepted."""

    connection_id: str
    shard: int | None
    live: bool


class Why(msgspec.Struct, kw_only=True):
    """What the supervisor knows about one agent.

    *objection* is why no registration of it can succeed at all, *similar* another id that is known and looks like this
    one, *story* what is remembered.
    """

    agent_id: str
    limit: int
    slots: list[SlotRow]
    objection: str | None
    similar: str | None
    story: Story | None
    uptime_s: float


class Kicked(msgspec.Struct, kw_only=True):
    """The connections that are being closed, and shards that could not be told to close some."""

    agent_id: str
    connection_ids: list[str]
    shards_silent: list[int]
