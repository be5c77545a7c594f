"""What supervisor and shards say to each other over a handoff channel: records as values, and as bytes.

One byte of version, then msgpack. The order in which messages follow each other is told in `ipc.handoff`, which sends
them, and the descriptors that go with some of them.
"""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import msgspec

from dialout import Capabilities, Dialect, HealthState
from ipc.peers import NOBODY, Owner

VERSION = b"\x02"

MAX_BATCH = 64
"""Connections in one Prepare. The kernel takes 253 (SCM_MAX_FD); 64 keep a message below `BATCH_BYTES` as a rule."""

BATCH_BYTES = 96 * 1024
"""Encoded size at which a batch is closed. Socket buffers hold 208 KiB by default, bookkeeping included."""

MAX_MESSAGE = 512 * 1024
"""Size of the receive buffer: one batch and the largest single record (64 KiB of registration, 48 KiB of config)."""


Item = TypeVar("Item")


class ChannelError(Exception):
    """The other end of the channel speaks another version, or garbage."""


class ForeignVersion(ChannelError):
    """The other end of the channel speaks another version."""


class Established(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What a connection that moves has behind it; times are seconds of CLOCK_MONOTONIC, *connected_at* since 1970.

    *left_at* is when its shard stopped serving it; *ticket* is what whoever goes on with it must take (`ipc.tickets`).
    No request id above *last_id* was written on it. *drains* says that its agent has asked for no further requests.
    """

    left_at: float
    ticket: int
    connected_at: float
    frames: int
    frames_ignored: int
    errors: int
    health: HealthState | None
    paused: bool
    pinged_at: float
    ping_mark: int
    answers_pings: bool
    last_id: int = 0
    drains: bool = False


class Offer(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One connection on its way into a pool.

    *number* is the n of ``<agent_id>-conn-<n>``, never used twice. *residue* are bytes that the agent sent and nobody
    has taken for a frame yet: the first that the shard's decoder gets. *unsent* are the first bytes that the shard
    writes, at commit and not a moment earlier: the acceptance, the whole frame that makes an agent a member, or what
    the shard that had the connection could not write any more. *state* is None for a newcomer. *owner* is whose
    connection it is, for the counts of the supervisor after this one.
    """

    number: int
    agent_id: str
    dialect: Dialect
    capabilities: Capabilities
    transport: str
    metadata: bytes
    residue: bytes
    unsent: bytes
    state: Established | None = None
    owner: Owner = NOBODY

    @property
    def weight(self) -> int:
        """About how many bytes it takes in a message."""
        return len(self.unsent) + len(self.metadata) + len(self.residue) + 256


class Hello(msgspec.Struct, array_like=True, frozen=True, tag=0):
    """The shard's first message on a new channel."""

    shard: int
    epoch: str
    pid: int


class Prepare(msgspec.Struct, array_like=True, frozen=True, tag=1):
    """Hold these connections; the descriptors come with it, in the same order. *batch* is for the answer."""

    batch: int
    offers: list[Offer]


class Commit(msgspec.Struct, array_like=True, frozen=True, tag=2):
    """Put these prepared connections into the pool."""

    numbers: list[int]


class Revoke(msgspec.Struct, array_like=True, frozen=True, tag=3):
    """Close your copies of these prepared connections untouched: somebody else serves them."""

    numbers: list[int]


class Refuse(msgspec.Struct, array_like=True, frozen=True, tag=4):
    """Turn these prepared connections away: their agents are at the limit. The shard knows each one's dialect."""

    numbers: list[int]


class Prepared(msgspec.Struct, array_like=True, frozen=True, tag=5):
    """The shard holds all connections of that Prepare."""

    batch: int


class Declined(msgspec.Struct, array_like=True, frozen=True, tag=6):
    """The shard cannot hold the connections of that Prepare and has no copy of any; *reason* is for the log."""

    batch: int
    reason: str


class MoveOut(msgspec.Struct, array_like=True, frozen=True, tag=7):
    """Let these connections go, each as soon as nothing is in flight on it.

    After *seconds* those that are still busy stay, or, with *force*, go as they are: what is in flight on them fails.
    """

    numbers: list[int]
    seconds: float
    force: bool


class Moving(msgspec.Struct, array_like=True, frozen=True, tag=8):
    """The shard lets these connections go; the descriptors come with it. It holds them until a Commit or a Revoke."""

    offers: list[Offer]


class Staying(msgspec.Struct, array_like=True, frozen=True, tag=9):
    """These connections of a MoveOut do not move: they were busy for too long and are served on, or are gone."""

    numbers: list[int]


class KeptListener(msgspec.Struct, array_like=True, frozen=True):
    """What a listening socket is: its *kind* (``uds`` or ``tcp``) and address.

    *file* says which socket file of a Unix socket it was (device, inode, time of its making in ns): whoever gets the
    socket back can tell whether the path still leads to it. *inherited* is a socket of whoever started the supervisor,
    who also removes its file.
    """

    kind: str
    address: str
    file: tuple[int, int, int] | None = None
    inherited: bool = False


class Entrust(msgspec.Struct, array_like=True, frozen=True, tag=10):
    """Keep copies of these listening sockets, and close all that you kept before; the descriptors come with it.

    *orphan_timeout* is how many seconds the shard goes on without a supervisor. With *adds* the shard keeps what it
    kept before, too: there are more sockets than go into one message, see `entrusting`.
    """

    listeners: list[KeptListener]
    orphan_timeout: float
    adds: bool = False


class TakeBack(msgspec.Struct, array_like=True, frozen=True, tag=11):
    """Send the listening sockets that you keep. The shard keeps them all the same."""


class Kept(msgspec.Struct, array_like=True, frozen=True, tag=12):
    """The listening sockets that the shard keeps; the descriptors come with it, in the same order.

    *more* says that another Kept follows.
    """

    listeners: list[KeptListener]
    more: bool = False


class TakeOver(msgspec.Struct, array_like=True, frozen=True, tag=20):
    """Hand everything over to me, the next supervisor: the first message to one that runs.

    It answers `HandingOver` or `NotNow`. Then come what it holds: `Unregistered`, `Kept`, and at last `Inheritance`. It
    keeps copies of everything until `Taken`, and goes on when that does not come::

        new supervisor                               old supervisor
          TakeOver                             ──►   accepts no more, finishes the handoffs under way
          ◄── HandingOver
          ◄── Unregistered…, Kept… + descriptors
          ◄── Inheritance + the locks' descriptors   touches nothing from here on
          Taken                                ──►   ends
    """


class HandingOver(msgspec.Struct, array_like=True, frozen=True, tag=21):
    """Yes; it takes *seconds* at most."""

    seconds: float


class NotNow(msgspec.Struct, array_like=True, frozen=True, tag=22):
    """No; *reason* says why, and what to do instead."""

    reason: str


class Handshake(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A connection whose registration is not complete: what it has sent, and the *seconds* that it has left."""

    transport: str
    received: bytes
    seconds: float


class Unregistered(msgspec.Struct, array_like=True, frozen=True, tag=23):
    """Go on with these handshakes; the descriptors come with it, in the same order."""

    handshakes: list[Handshake]


class Further(msgspec.Struct, array_like=True, frozen=True, tag=26):
    """More of what the last handshake before this has sent: a message holds no registration of any size."""

    received: bytes


class Inheritance(msgspec.Struct, array_like=True, frozen=True, tag=24):
    """All has been sent, and the directories are yours: their locks come with it. *drained* shards take nobody.

    There are as many *locks*: the runtime directory's, then the status directory's where there is one.
    """

    drained: list[int]
    locks: int = 1


class Taken(msgspec.Struct, array_like=True, frozen=True, tag=25):
    """The new supervisor serves; the old one ends."""


Message = (
    Hello
    | Prepare
    | Commit
    | Revoke
    | Refuse
    | Prepared
    | Declined
    | MoveOut
    | Moving
    | Staying
    | Entrust
    | TakeBack
    | Kept
    | TakeOver
    | HandingOver
    | NotNow
    | Unregistered
    | Further
    | Inheritance
    | Taken
)

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    """One message as it goes over the channel."""
    return VERSION + _encoder.encode(message)


def decode(data: bytes | bytearray | memoryview) -> Message:
    """The message in *data*; `ChannelError` when it is none of ours."""
    if bytes(data[:1]) != VERSION:
        raise ForeignVersion(f"handoff message of version {bytes(data[:1]).hex()}, this is version {VERSION.hex()}")
    try:
        return _decoder.decode(data[1:])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ChannelError(f"handoff message cannot be read: {error}") from error


def entrusting(listeners: Mapping[KeptListener, int], orphan_timeout: float) -> list[tuple[Entrust, list[int]]]:
    """The messages that have a shard keep *listeners* and no others, with their descriptors; one at least."""
    return [
        (Entrust([listener for listener, _ in batch], orphan_timeout, adds=n > 0), [fd for _, fd in batch])
        for n, batch in enumerate(batches(list(listeners.items())))
    ]


def batches(items: Sequence[Item]) -> list[Sequence[Item]]:
    """*items* in parts that go into one message each; one empty part when there are none."""
    return [items[start : start + MAX_BATCH] for start in range(0, max(1, len(items)), MAX_BATCH)]


def descriptors_expected(message: Message) -> int:
    """How many descriptors come with *message*."""
    if isinstance(message, Prepare | Moving):
        return len(message.offers)
    if isinstance(message, Unregistered):
        return len(message.handshakes)
    if isinstance(message, Inheritance):
        return message.locks
    return len(message.listeners) if isinstance(message, Entrust | Kept) else 0
