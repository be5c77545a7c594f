"""What the history tells: events, refusals, the story of an agent, and pages of what happened."""

import msgspec

NO_SHARD = -1


class Event(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One thing that happened.

    *n* is its place in the sequence, *at* seconds since 1970. *kind* is one word: ``registered``, ``refused``,
    ``closed``, ``moved``, ``adopted`` of an agent (*number* is its connection's, 0 for none), ``shard`` and
    ``supervisor`` of ours. *code* is an error code or a close code, *seconds* how long it took or lasted.
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
    """All refusals of one agent for one reason: how many, the first, and the last."""

    code: str
    times: int
    first_at: float
    last_at: float
    text: str
    peer: str


class Story(msgspec.Struct, frozen=True, kw_only=True):
    """What is remembered of one agent, oldest first."""

    agent_id: str
    events: list[Event]
    refusals: list[Refusals]


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """Events after a number, oldest first.

    *next* is what to ask for next. *lost* events came in between and are gone; *began* is the first number of this
    history: whoever asks for less has followed another one, of which it cannot know how much it missed.
    """

    events: list[Event]
    next: int
    lost: int
    began: int
