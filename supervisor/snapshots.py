"""What a shard's snapshot can tell and what it cannot, and what becomes of whom nobody has decided about.

Pure: `supervisor.census` asks, and does what follows. A snapshot is an answer from a while ago, over a pipe that the
handoff channel overtakes, and is overtaken by. It is believed only about what it can know: not about commits that were
on their way, nor about what its shard has let go of meanwhile.
"""

from collections.abc import Container
from enum import Enum
from typing import NamedTuple

from ipc.events import Snapshot

Held = tuple[int, str]
"""A connection: its number, and the id of its agent."""


class Inquiry:
    """A snapshot that is wanted of one shard. *request* is 0 until it could be asked for, at *asked_at*."""

    __slots__ = ("_believed", "_recalled", "asked_at", "request")

    def __init__(self) -> None:
        self.request = 0
        self.asked_at = 0.0
        self._believed: set[Held] = set()
        self._recalled: set[int] = set()

    def ask(self, request: int, believed: set[Held], now: float) -> None:
        """Note that it was asked for, and what was *believed* of the shard then: what came later it may lack."""
        self.request, self.asked_at = request, now
        self._believed, self._recalled = believed, set()

    def recall(self, number: int) -> None:
        """Note that the shard has let go of a connection, which may have come back before the snapshot is heard."""
        self._recalled.add(number)

    def compare(self, snapshot: Snapshot) -> tuple[set[Held], set[Held]]:
        """What was believed and what is held, of those connections about which this snapshot tells anything."""
        # A commit may be on its way: what the shard holds without one is not gone.
        believed = self._believed.difference(snapshot.prepared, snapshot.moving)
        held = set(snapshot.live)
        if self._recalled:
            believed = {one for one in believed if one[0] not in self._recalled}
            held = {one for one in held if one[0] not in self._recalled}
        return believed, held


class Found(NamedTuple):
    """A connection that *shard* holds, about which nobody has decided: who was to do that is gone.

    A *member* was on its way between two shards, its agent accepted; otherwise it is a newcomer without its commit.
    """

    shard: int
    number: int
    agent_id: str
    member: bool


def undecided(
    shard: int, snapshot: Snapshot, *, first_number: int, live: Container[int], moving: Container[int]
) -> set[Found]:
    """Those in *snapshot* whose handoff is none of this supervisor's, which began with *first_number*.

    *live* are the numbers of the shard's live slots, *moving* those on their way between shards now.
    """
    found = {Found(shard, number, agent_id, False) for number, agent_id in snapshot.prepared if number < first_number}
    for number, agent_id in snapshot.moving:
        # What was let go of, and has its slot here still, is in a message on the channel, which the bus has overtaken.
        is_coming = number in snapshot.let_go and number in live
        if not is_coming and number not in moving:
            found.add(Found(shard, number, agent_id, True))
    return found


class Verdict(Enum):
    """What the shard that holds a found connection is told."""

    WAIT = "nothing: it is on its way between shards by now, and will be told then"
    COMMIT = "to serve it: its commit is on the way, or was lost with a channel; one too many does no harm"
    ADOPT = "to serve it, in a slot that it has not had yet"
    REVOKE = "to close its copy: another shard serves it"
    REFUSE = "to turn it away: its agent has all the connections that it may have"


def verdict(found: Found, *, served_by: int | None, is_moving: bool, has_room: bool) -> Verdict:
    """Decide about a found connection, once all shards have told what they hold.

    *served_by* is the shard on which it has its slot, if it has one; *has_room* says whether its agent may have one
    more.
    """
    if is_moving:
        return Verdict.WAIT
    if served_by == found.shard:
        return Verdict.COMMIT
    if served_by is not None:
        return Verdict.REVOKE
    # A member was accepted, and keeps its place.
    return Verdict.ADOPT if found.member or has_room else Verdict.REFUSE
