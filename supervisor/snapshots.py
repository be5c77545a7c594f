"""Compare a shard's snapshot with the ledger, and decide about connections that an earlier supervisor left undecided.

Pure: `supervisor.census` asks for the snapshots and acts on the results. A snapshot describes the past. Messages on the
handoff channel may overtake it on the bus, or be overtaken by it. So a snapshot proves nothing about a commit that was
on its way, nor about a connection that the shard has let go of meanwhile.
"""

from collections.abc import Container
from enum import Enum
from typing import NamedTuple

from ipc.events import Snapshot

Held = tuple[int, str]
"""A connection: its number, and the id of its agent."""


class Inquiry:
    """A snapshot that the supervisor wants of one shard.

    *request* is the number of the request that was sent, 0 before that. *asked_at* is the time of sending.
    """

    __slots__ = ("_believed", "_recalled", "asked_at", "request")

    def __init__(self) -> None:
        self.request = 0
        self.asked_at = 0.0
        self._believed: set[Held] = set()
        self._recalled: set[int] = set()

    def ask(self, request: int, believed: set[Held], now: float) -> None:
        """Note that the request was sent, and the connections that the ledger *believed* to be on the shard then.

        The snapshot may lack connections that became live later.
        """
        self.request, self.asked_at = request, now
        self._believed, self._recalled = believed, set()

    def recall(self, number: int) -> None:
        """Note that the shard has let go of a connection. It may be back before the snapshot arrives."""
        self._recalled.add(number)

    def compare(self, snapshot: Snapshot) -> tuple[set[Held], set[Held]]:
        """The believed and the held connections, without those about which this snapshot proves nothing."""
        # A commit may be on its way: a connection that the shard holds uncommitted is not gone.
        believed = self._believed.difference(snapshot.prepared, snapshot.moving)
        held = set(snapshot.live)
        if self._recalled:
            believed = {one for one in believed if one[0] not in self._recalled}
            held = {one for one in held if one[0] not in self._recalled}
        return believed, held


class Found(NamedTuple):
    """A connection that *shard* holds, and that an earlier supervisor left without a decision.

    A *member* was on its way between two shards, and its agent is accepted. Any other found connection is prepared and
    waits for its commit.
    """

    shard: int
    number: int
    agent_id: str
    member: bool


def undecided(
    shard: int, snapshot: Snapshot, *, first_number: int, live: Container[int], moving: Container[int]
) -> set[Found]:
    """The connections in *snapshot* whose handoff this supervisor did not begin. Its numbers begin at *first_number*.

    *live* are the numbers of the shard's live slots. *moving* are the numbers on their way between shards now.
    """
    found = {Found(shard, number, agent_id, False) for number, agent_id in snapshot.prepared if number < first_number}
    for number, agent_id in snapshot.moving:
        # The shard has let go of it and its slot is still live: the bus has overtaken the message on the channel.
        is_coming = number in snapshot.let_go and number in live
        if not is_coming and number not in moving:
            found.add(Found(shard, number, agent_id, True))
    return found


class Verdict(Enum):
    """The order for the shard that holds a found connection."""

    WAIT = "nothing: it is on its way between shards by now, and will be told then"
    COMMIT = "to serve it: its commit is on the way, or was lost with a channel; one too many does no harm"
    ADOPT = "to serve it, in a slot that it has not had yet"
    REVOKE = "to close its copy: another shard serves it"
    REFUSE = "to turn it away: its agent has all the connections that it may have"


def verdict(found: Found, *, served_by: int | None, is_moving: bool, has_room: bool) -> Verdict:
    """Decide about a found connection. All shards must have sent their snapshots before.

    *served_by* is the shard of its slot, None without one. *has_room* says whether its agent may have one more slot.
    """
    if is_moving:
        return Verdict.WAIT
    if served_by == found.shard:
        return Verdict.COMMIT
    if served_by is not None:
        return Verdict.REVOKE
    # A member was accepted before, so the limit does not apply to it.
    return Verdict.ADOPT if found.member or has_room else Verdict.REFUSE
