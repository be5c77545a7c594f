"""The messages between supervisor and shards on a handoff channel, as values and as bytes.

A message is one byte of version, then msgpack. `ipc.handoff` describes the order of the messages. It also sends the
descriptors that belong to some of them.
"""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import msgspec

from dialout import Capabilities, Dialect, HealthState
from ipc.peers import NOBODY, Owner

VERSION = b"\x02"

MAX_BATCH = 64
"""The most connections in one Prepare. The kernel accepts 253 (SCM_MAX_FD). 64 usually fit into `BATCH_BYTES`."""

BATCH_BYTES = 96 * 1024
"""The encoded size at which a batch is full. Socket buffers hold 208 KiB by default, including kernel overhead."""

MAX_MESSAGE = 512 * 1024
"""The size of the receive buffer. It holds a batch and the largest record (64 KiB registration, 48 KiB config)."""


Item = TypeVar("Item")


class ChannelError(Exception):
    """The other end of the channel speaks another version, or sends invalid messages."""


class ForeignVersion(ChannelError):
    """The other end of the channel speaks another version."""


class Established(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The state of a connection that moves. Times are seconds of CLOCK_MONOTONIC; *connected_at* is since 1970.

    *left_at* is the time at which its shard stopped serving it. A shard must take *ticket* before it serves the
    connection (`ipc.tickets`). No request id above *last_id* was written on it. *drains* says that its agent has asked
    for no further requests.
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

    *number* is the n of ``<agent_id>-conn-<n>``. It is never used twice. *residue* are received bytes that were not
    decoded yet. The shard's decoder gets them first. *unsent* are the first bytes that the shard writes, at commit and
    not before. They are the acceptance, or the bytes that the former shard of a moving connection could not write.
    *state* is None for a connection that does not come from a shard. *owner* is the rule and the peer of the
    connection. The next supervisor needs it for its counts.
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
        """The approximate number of bytes that it takes in a message."""
        return len(self.unsent) + len(self.metadata) + len(self.residue) + 256


class Hello(msgspec.Struct, array_like=True, frozen=True, tag=0):
    """The shard's first message on a new channel."""

    shard: int
    epoch: str
    pid: int


class Prepare(msgspec.Struct, array_like=True, frozen=True, tag=1):
    """Hold these connections. Their descriptors come with it, in the same order. The answer names *batch*."""

    batch: int
    offers: list[Offer]


class Commit(msgspec.Struct, array_like=True, frozen=True, tag=2):
    """Put these prepared connections into the pool."""

    numbers: list[int]


class Revoke(msgspec.Struct, array_like=True, frozen=True, tag=3):
    """Close your copies of these prepared connections without writing. They are served elsewhere."""

    numbers: list[int]


class Refuse(msgspec.Struct, array_like=True, frozen=True, tag=4):
    """Refuse these prepared connections, because their agents are at the limit. The shard knows their dialects."""

    numbers: list[int]


class Prepared(msgspec.Struct, array_like=True, frozen=True, tag=5):
    """The shard holds all connections of that Prepare."""

    batch: int


class Declined(msgspec.Struct, array_like=True, frozen=True, tag=6):
    """The shard cannot hold the connections of that Prepare and has no copy of any. *reason* is for the log."""

    batch: int
    reason: str


class MoveOut(msgspec.Struct, array_like=True, frozen=True, tag=7):
    """Move these connections out of the shard, each as soon as nothing is in flight on it.

    Connections that are still busy after *seconds* stay. With *force* their requests in flight fail and they move,
    unless they hold an incomplete large frame.
    """

    numbers: list[int]
    seconds: float
    force: bool


class Moving(msgspec.Struct, array_like=True, frozen=True, tag=8):
    """The shard no longer serves these connections. Their descriptors come with it.

    The shard holds its copies until a Commit or a Revoke.
    """

    offers: list[Offer]


class Staying(msgspec.Struct, array_like=True, frozen=True, tag=9):
    """These connections of a MoveOut do not move. They were busy for too long and stay in service, or they are gone."""

    numbers: list[int]


class KeptListener(msgspec.Struct, array_like=True, frozen=True):
    """A listening socket: its *kind* (``uds`` or ``tcp``) and address.

    *file* identifies the socket file of a Unix socket (device, inode, creation time in ns). With it the next supervisor
    can tell whether the path still leads to this socket. An *inherited* socket was passed by the process that started
    the supervisor. That process also removes the file.
    """

    kind: str
    address: str
    file: tuple[int, int, int] | None = None
    inherited: bool = False


class Entrust(msgspec.Struct, array_like=True, frozen=True, tag=10):
    """Keep copies of these listening sockets, and close all copies from before. The descriptors come with it.

    *orphan_timeout* is the number of seconds for which the shard runs without a supervisor. With *adds* the shard also
    keeps its former copies. This is for more sockets than fit into one message, see `entrusting`.
    """

    listeners: list[KeptListener]
    orphan_timeout: float
    adds: bool = False


class TakeBack(msgspec.Struct, array_like=True, frozen=True, tag=11):
    """Send copies of the listening sockets that you keep. The shard keeps its own copies."""


class Kept(msgspec.Struct, array_like=True, frozen=True, tag=12):
    """The listening sockets that the shard keeps. Their descriptors come with it, in the same order.

    *more* says that another Kept follows.
    """

    listeners: list[KeptListener]
    more: bool = False


class TakeOver(msgspec.Struct, array_like=True, frozen=True, tag=20):
    """Hand everything over to the next supervisor, the sender. It is the first message to a running supervisor.

    The old supervisor answers `HandingOver` or `NotNow`. Then it sends its sockets as `Unregistered` and `Kept`, and at
    last `Inheritance`. It keeps copies of everything until `Taken`. If `Taken` does not come, it continues to serve::

        new supervisor                               old supervisor
          TakeOver                             ──►   accepts no more, finishes the handoffs under way
          ◄── HandingOver
          ◄── Unregistered…, Kept… + descriptors
          ◄── Inheritance + the locks' descriptors   touches nothing from here on
          Taken                                ──►   ends
    """


class HandingOver(msgspec.Struct, array_like=True, frozen=True, tag=21):
    """The old supervisor accepts the `TakeOver`. The handover takes *seconds* at most."""

    seconds: float


class NotNow(msgspec.Struct, array_like=True, frozen=True, tag=22):
    """The old supervisor refuses the `TakeOver`. *reason* says why, and what to do instead."""

    reason: str


class Handshake(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A connection with an incomplete registration: its *received* bytes, and the *seconds* that it has left."""

    transport: str
    received: bytes
    seconds: float


class Unregistered(msgspec.Struct, array_like=True, frozen=True, tag=23):
    """Continue these handshakes. Their descriptors come with it, in the same order."""

    handshakes: list[Handshake]


class Further(msgspec.Struct, array_like=True, frozen=True, tag=26):
    """More received bytes of the last handshake before this. A large registration does not fit into one message."""

    received: bytes


class Inheritance(msgspec.Struct, array_like=True, frozen=True, tag=24):
    """Everything has been sent. The directories now belong to the new supervisor; their locks come with it.

    *drained* are the shards that take no connections. *locks* is the number of descriptors: first the runtime
    directory's, then the status directory's if there is one.
    """

    drained: list[int]
    locks: int = 1


class Taken(msgspec.Struct, array_like=True, frozen=True, tag=25):
    """The new supervisor serves. The old one must end."""


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
    """Encode one message for the channel."""
    return VERSION + _encoder.encode(message)


def decode(data: bytes | bytearray | memoryview) -> Message:
    """Decode the message in *data*. Raises `ChannelError` if it is not a known message."""
    if bytes(data[:1]) != VERSION:
        raise ForeignVersion(f"handoff message of version {bytes(data[:1]).hex()}, this is version {VERSION.hex()}")
    try:
        return _decoder.decode(data[1:])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ChannelError(f"handoff message cannot be read: {error}") from error


def entrusting(listeners: Mapping[KeptListener, int], orphan_timeout: float) -> list[tuple[Entrust, list[int]]]:
    """Build the messages that make a shard keep only *listeners*, with their descriptors. There is at least one."""
    return [
        (Entrust([listener for listener, _ in batch], orphan_timeout, adds=n > 0), [fd for _, fd in batch])
        for n, batch in enumerate(batches(list(listeners.items())))
    ]


def batches(items: Sequence[Item]) -> list[Sequence[Item]]:
    """Split *items* into parts that fit into one message each. Without items there is one empty part."""
    return [items[start : start + MAX_BATCH] for start in range(0, max(1, len(items)), MAX_BATCH)]


def descriptors_expected(message: Message) -> int:
    """The number of descriptors that come with *message*."""
    if isinstance(message, Prepare | Moving):
        return len(message.offers)
    if isinstance(message, Unregistered):
        return len(message.handshakes)
    if isinstance(message, Inheritance):
        return message.locks
    return len(message.listeners) if isinstance(message, Entrust | Kept) else 0
