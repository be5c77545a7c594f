"""The messages between supervisor and shards on the bus.

Shards are DEALERs with the identity ``shard-<i>/<epoch>``; the supervisor is the ROUTER. Each event carries a sequence
number of its shard, one higher than the last. A gap means that an event was lost (a full queue, a supervisor that was
down). The supervisor then asks for a `Snapshot` and never guesses. Counts are exact because the ledger uses only these
messages.
"""

from enum import StrEnum

import msgspec

from ipc.peers import Owner, owner
from ipc.status import RequestLatency, ShardReport


class CloseCode(StrEnum):
    """The reason why an agent's connection ended: the stable value of ``code`` in logs, events and ``why``."""

    CLOSED_BY_AGENT = "closed_by_agent"
    """The agent closed its stream in good order."""

    RESET_BY_AGENT = "reset_by_agent"
    """The agent closed with unread bytes, perhaps a ping, so its kernel sent a reset (RFC 1122, 4.2.2.13)."""

    CONNECTION_LOST = "connection_lost"
    """The kernel gave up the connection: keepalive, ``TCP_USER_TIMEOUT``, no route."""

    BAD_FRAME = "bad_frame"
    """The agent's bytes are not valid frames, or a frame was too late or too large.

    It is also the code for frames that answer no request and cost too much time.
    """

    NOT_READING = "not_reading"
    """More bytes wait for the agent than a connection may hold."""

    PING_TIMEOUT = "ping_timeout"
    KICKED = "kicked"
    SHARD_DRAINED = "shard_drained"
    SHARD_STOPPED = "shard_stopped"
    SHARD_DIED = "shard_died"
    """The supervisor reports it, because the shard could not."""

    LOST_SIGHT = "lost_sight"
    """The supervisor reports it. A snapshot lacks the connection, and the event with the reason was lost."""


class Gone(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A connection that is gone: its number, its agent, the reason, and its age in seconds.

    *detail* is a text for people. It is empty if *code* is sufficient. A code of a newer version is kept unchanged.
    """

    number: int
    agent_id: str
    code: str = CloseCode.LOST_SIGHT
    seconds: float = 0.0
    detail: str = ""


class Closed(msgspec.Struct, array_like=True, frozen=True, tag=1):
    """These connections are gone. Their descriptors are closed."""

    sequence: int
    connections: list[Gone]


class Heartbeat(msgspec.Struct, array_like=True, frozen=True, tag=2):
    """The shard's loop runs. The supervisor compares the numbers in the report with its ledger."""

    sequence: int
    report: ShardReport
    latency: RequestLatency = msgspec.field(default_factory=RequestLatency)


class Snapshot(msgspec.Struct, array_like=True, frozen=True, tag=3):
    """All connections that the shard holds, in answer to request *request*, as pairs of number and agent id.

    *prepared* are new connections without a commit yet. *moving* are connections on their way from one shard to
    another; this shard is either of the two. *let_go* are the numbers of the moving connections that leave this shard.
    *owned* lists the numbers of the connections for each rule and peer.
    """

    sequence: int
    request: int
    live: list[tuple[int, str]]
    prepared: list[tuple[int, str]]
    moving: list[tuple[int, str]]
    let_go: list[int] = []
    owned: list[tuple[str, str, list[int]]] = []

    def owners(self) -> dict[int, Owner]:
        """The owner of each connection, by number. It is empty if the shard has an older version."""
        return {number: owner(rule, peer) for rule, peer, numbers in self.owned for number in numbers}


class Probed(msgspec.Struct, array_like=True, frozen=True, tag=4):
    """The probe *probe* is done. The dead connections that it found were reported as `Closed` before this."""

    sequence: int
    probe: int


class DirectoryRequest(msgspec.Struct, array_like=True, frozen=True, tag=5):
    """The shard has no directory, or an incomplete one. The supervisor must send a full one."""

    sequence: int


class AgentsPage(msgspec.Struct, array_like=True, frozen=True, tag=6):
    """The answer to `ListAgents`: id, connections, in flight and healthy of each agent, sorted by id."""

    sequence: int
    request: int
    agents: list[tuple[str, int, int, bool]]


Event = Closed | Heartbeat | Snapshot | Probed | DirectoryRequest | AgentsPage


class Probe(msgspec.Struct, array_like=True, frozen=True, tag=10):
    """Check the connections of *agent_id*, report the dead ones, then answer `Probed`.

    With an empty *agent_id*, report the connections of all agents that the kernel knows to be dead.
    """

    probe: int
    agent_id: str


class SnapshotRequest(msgspec.Struct, array_like=True, frozen=True, tag=11):
    """Answer with a `Snapshot`."""

    request: int


class Stop(msgspec.Struct, array_like=True, frozen=True, tag=12):
    """Close all connections and end. Requests of proxies that are in flight get *seconds* to finish."""

    seconds: float = 0.0


class FullDirectory(msgspec.Struct, array_like=True, frozen=True, tag=13):
    """Agent id → shard → number of live connections, as of the published change *at*."""

    at: int
    counts: dict[str, dict[int, int]]


class PushConfig(msgspec.Struct, array_like=True, frozen=True, tag=14):
    """Send these agents their changed configuration, a JSON object, over each connection that can take it."""

    config: bytes
    agent_ids: list[str]


class ListAgents(msgspec.Struct, array_like=True, frozen=True, tag=15):
    """List at most *limit* agents with an id above *after*. The answer names *request*."""

    request: int
    after: str
    limit: int


class Kick(msgspec.Struct, array_like=True, frozen=True, tag=20):
    """Close these connections, each as soon as nothing is in flight on it, after *seconds* at the latest."""

    numbers: list[int]
    seconds: float = 0.0


class SetLogLevel(msgspec.Struct, array_like=True, frozen=True, tag=21):
    """Log only messages of this level or above from now on."""

    level: str


Command = Probe | SnapshotRequest | Stop | FullDirectory | PushConfig | ListAgents | Kick | SetLogLevel


class Counts(msgspec.Struct, array_like=True, frozen=True):
    """The counts of agents that have changed, published by the supervisor. An agent that is gone has no counts.

    Published messages may be lost, so they are numbered. Without changes the supervisor sends an empty message now and
    then, so that a loss is noticed.
    """

    sequence: int
    counts: dict[str, dict[int, int]]


_event_decoder: msgspec.msgpack.Decoder[Event] = msgspec.msgpack.Decoder(Event)
_command_decoder: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)

_counts_decoder = msgspec.msgpack.Decoder(Counts)

encode = msgspec.msgpack.Encoder().encode


def decode_event(data: bytes) -> Event:
    """Decode the event in *data*. Raises msgspec.MsgspecError if it is not an event."""
    try:
        return _event_decoder.decode(data)
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(str(error)) from error


def decode_command(data: bytes) -> Command:
    """Decode the command in *data*. Raises msgspec.MsgspecError if it is not a command."""
    try:
        return _command_decoder.decode(data)
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(str(error)) from error


def decode_counts(data: bytes) -> Counts:
    """Decode the published counts in *data*. Raises msgspec.MsgspecError if it does not hold counts."""
    try:
        return _counts_decoder.decode(data)
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(str(error)) from error


def identity(shard: int, epoch: str) -> str:
    """The name of a shard on the bus. Each process of the shard has a new one."""
    return f"shard-{shard}/{epoch}"


def parse_identity(name: bytes) -> tuple[int, str] | None:
    """Read shard number and epoch out of an identity. Returns None if *name* is not an identity."""
    role, _, epoch = name.decode("ascii", "replace").partition("/")
    kind, _, number = role.partition("-")
    return (int(number), epoch) if kind == "shard" and number.isdecimal() and epoch else None
