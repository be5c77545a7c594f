"""What supervisor and shards tell each other over the bus.

Shards are DEALERs with the identity ``shard-<i>/<epoch>``, the supervisor is the ROUTER. An event carries the shard's
sequence number, one higher for each: a hole means that something was lost (a full queue, a supervisor that was away),
and is mended with a `Snapshot`, never guessed. Counts are exact because the ledger believes only these.
"""

from enum import StrEnum

import msgspec

from ipc.peers import Owner, owner
from ipc.status import RequestLatency, ShardReport


class CloseCode(StrEnum):
    """Why an agent's connection ended: the stable value of ``code`` in logs, events and ``why``."""

    CLOSED_BY_AGENT = "closed_by_agent"
    """The agent ended its stream, in good order."""

    RESET_BY_AGENT = "reset_by_agent"
    """The agent ended with something unread, a ping perhaps: its kernel says so with a reset (RFC 1122, 4.2.2.13)."""

    CONNECTION_LOST = "connection_lost"
    """The kernel gave up on it: keepalive, ``TCP_USER_TIMEOUT``, no route."""

    BAD_FRAME = "bad_frame"
    """What the agent sent cannot be cut into frames, was not complete in time, or cost much and answered nothing."""

    NOT_READING = "not_reading"
    """More waits for the agent than a connection may hold."""

    PING_TIMEOUT = "ping_timeout"
    KICKED = "kicked"
    SHARD_DRAINED = "shard_drained"
    SHARD_STOPPED = "shard_stopped"
    SHARD_DIED = "shard_died"
    """Said by the supervisor: the shard could not."""

    LOST_SIGHT = "lost_sight"
    """Said by the supervisor: a snapshot lacks it, and the message that told why was lost."""


class Gone(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A connection that is gone: its number, its agent, why, after how many seconds.

    *detail* is for people, and empty where *code* says all. A code of a newer version is taken as it is.
    """

    number: int
    agent_id: str
    code: str = CloseCode.LOST_SIGHT
    seconds: float = 0.0
    detail: str = ""


class Closed(msgspec.Struct, array_like=True, frozen=True, tag=1):
    """These connections are gone; their descriptors are closed."""

    sequence: int
    connections: list[Gone]


class Heartbeat(msgspec.Struct, array_like=True, frozen=True, tag=2):
    """The shard's loop runs. The numbers in its report let the supervisor notice that its ledger is wrong."""

    sequence: int
    report: ShardReport
    latency: RequestLatency = msgspec.field(default_factory=RequestLatency)


class Snapshot(msgspec.Struct, array_like=True, frozen=True, tag=3):
    """All that the shard holds, in answer to request *request*. Pairs of number and agent id.

    *prepared* are newcomers without their commit, *moving* members on their way to another shard, or from one.
    Of the latter the shard has sent the descriptors: those are the numbers in *let_go*. *owned* says whose they all
    are: for each rule and peer the numbers of their connections.
    """

    sequence: int
    request: int
    live: list[tuple[int, str]]
    prepared: list[tuple[int, str]]
    moving: list[tuple[int, str]]
    let_go: list[int] = []
    owned: list[tuple[str, str, list[int]]] = []

    def owners(self) -> dict[int, Owner]:
        """Whose each connection is, by number; a shard of an older version does not tell."""
        return {number: owner(rule, peer) for rule, peer, numbers in self.owned for number in numbers}


class Probed(msgspec.Struct, array_like=True, frozen=True, tag=4):
    """The probe *probe* is done; what it found gone was reported as `Closed` before this."""

    sequence: int
    probe: int


class DirectoryRequest(msgspec.Struct, array_like=True, frozen=True, tag=5):
    """The shard has no directory, or one with a hole: send a full one."""

    sequence: int


class AgentsPage(msgspec.Struct, array_like=True, frozen=True, tag=6):
    """The answer to `ListAgents`: id, connections, in flight, healthy, by id."""

    sequence: int
    request: int
    agents: list[tuple[str, int, int, bool]]


Event = Closed | Heartbeat | Snapshot | Probed | DirectoryRequest | AgentsPage


class Probe(msgspec.Struct, array_like=True, frozen=True, tag=10):
    """Look at the connections of *agent_id* and report those that are gone, then answer `Probed`.

    Without an agent: report those of all agents that the kernel says are gone.
    """

    probe: int
    agent_id: str


class SnapshotRequest(msgspec.Struct, array_like=True, frozen=True, tag=11):
    """Tell all that you hold."""

    request: int


class Stop(msgspec.Struct, array_like=True, frozen=True, tag=12):
    """Close all connections and end; *seconds* for what proxies have in flight, which no new request joins."""

    seconds: float = 0.0


class FullDirectory(msgspec.Struct, array_like=True, frozen=True, tag=13):
    """Agent id → shard → live connections, as it was at the published change *at*."""

    at: int
    counts: dict[str, dict[int, int]]


class PushConfig(msgspec.Struct, array_like=True, frozen=True, tag=14):
    """Bring these agents their changed configuration, a JSON object, over each connection that can take it."""

    config: bytes
    agent_ids: list[str]


class ListAgents(msgspec.Struct, array_like=True, frozen=True, tag=15):
    """Tell at most *limit* agents with an id above *after*, in answer to request *request*."""

    request: int
    after: str
    limit: int


class Kick(msgspec.Struct, array_like=True, frozen=True, tag=20):
    """Close these connections, each as soon as nothing is in flight on it, after *seconds* at the latest."""

    numbers: list[int]
    seconds: float = 0.0


class SetLogLevel(msgspec.Struct, array_like=True, frozen=True, tag=21):
    """Log what is of this level or above from now on."""

    level: str


Command = Probe | SnapshotRequest | Stop | FullDirectory | PushConfig | ListAgents | Kick | SetLogLevel


class Counts(msgspec.Struct, array_like=True, frozen=True):
    """What the supervisor publishes: the counts of agents that have changed, none for one that is gone.

    Published messages may be lost, so each has the number after the one before it; without changes an empty one goes
    out now and then, so that a loss is noticed.
    """

    sequence: int
    counts: dict[str, dict[int, int]]


_event_decoder: msgspec.msgpack.Decoder[Event] = msgspec.msgpack.Decoder(Event)
_command_decoder: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)

_counts_decoder = msgspec.msgpack.Decoder(Counts)

encode = msgspec.msgpack.Encoder().encode


def decode_event(data: bytes) -> Event:
    """The event in *data*; msgspec.MsgspecError when it is none."""
    try:
        return _event_decoder.decode(data)
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(str(error)) from error


def decode_command(data: bytes) -> Command:
    """The command in *data*; msgspec.MsgspecError when it is none."""
    try:
        return _command_decoder.decode(data)
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(str(error)) from error


def decode_counts(data: bytes) -> Counts:
    """The published counts in *data*; msgspec.MsgspecError when it is none."""
    try:
        return _counts_decoder.decode(data)
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(str(error)) from error


def identity(shard: int, epoch: str) -> str:
    """A shard's name on the bus, new for each life of its process."""
    return f"shard-{shard}/{epoch}"


def parse_identity(name: bytes) -> tuple[int, str] | None:
    """Shard number and epoch in an identity; None when it is none."""
    role, _, epoch = name.decode("ascii", "replace").partition("/")
    kind, _, number = role.partition("-")
    return (int(number), epoch) if kind == "shard" and number.isdecimal() and epoch else None
