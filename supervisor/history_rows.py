"""The records of the history: events, refusals, the story of an agent, and pages of events."""

import msgspec

NO_SHARD = -1


class Event(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One event.

    *n* is its number in the sequence. *at* is in seconds since 1970. *kind* is one word: ``registered``, ``refused``,
    ``closed``, ``moved`` or ``adopted`` for an agent's connection, ``shard`` or ``supervisor`` for a process of ours.
    *number* is the connection's number, 0 without one. *code* is an error code, a close code, or one word for the event
    of a process. *seconds* is how long the registration took or the connection lasted.
    """

    n: int
    at: float
    kind: str
    agent_id: str = ""
    number: int = 0
    shard: int = NO_SHARD
    code: str = ""
    text: str = ""
    seconds: float = 0.0
    peer: str = ""


class Refusals(msgspec.Struct, array_like=True, gc=False):
    """All refusals of one agent for one reason: their number, and the times of the first and the last.

    *text* and *peer* are those of the last one.
    """

    code: str
    times: int
    first_at: float
    last_at: float
    text: str
    peer: str


class Story(msgspec.Struct, frozen=True, kw_only=True):
    """The remembered events and refusals of one agent, oldest first."""

    agent_id: str
    events: list[Event]
    refusals: list[Refusals]


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """Events after a number, oldest first.

    *next* is the number to pass for the next page. *lost* is the number of events in between that are forgotten.
    *began* is the number before the first event of this history. A reader that passes less has followed an earlier
    history, and cannot know how many of its events it missed.
    """

    events: list[Event]
    next: int
    lost: int
    began: int
