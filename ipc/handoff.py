"""Handing connections from the supervisor to a shard: messages and descriptors. No other module knows SCM_RIGHTS.

One `AF_UNIX`/`SOCK_SEQPACKET` channel for each shard. The shard listens, the supervisor connects, so that the next
supervisor can reach living shards. A handoff is prepare, then commit::

    supervisor                                   shard
      Prepare(batch, offers) + descriptors ──►   holds each one, reads and writes nothing
      ◄── Prepared(batch)
      Commit(numbers)                      ──►   pool, acceptance as first frame, begins to read

Listening sockets go the same way: `Entrust` leaves copies with a shard, so that agents' connects wait while there is no
supervisor, and the next one gets them with `TakeBack`.

A supervisor listens in the same way for the one that is to take its place, see `TakeOver`.

The supervisor keeps its own copy of a descriptor until its commit has left, so that a shard which dies, hangs or has
no descriptor to spare costs no agent its connection: `Revoke` the offer, make it to another shard.

A connection moves to another shard by way of the supervisor, through the same two steps. The shard that has it goes on
holding it, *as if it were prepared there*, until the supervisor says who serves it::

    supervisor                                   shard that has it
      MoveOut(numbers, seconds)            ──►   chooses them no more, waits until nothing is in flight
      ◄── Moving(offers) + descriptors           reads and writes nothing from here on
    Prepare, Prepared, Commit with another shard
      Revoke(numbers)                      ──►   moved: closes its copy     (or Commit: they stay, serve them on)

Who gets the Commit takes the ticket that lies in the connection. When the supervisor is lost in between, the shard that
has the connection takes the ticket if it is still there, and goes on (`take_ticket`).

Each message is one byte of version and msgpack; one that hands descriptors over carries as many as it names. Sequenced
packets keep the two together, where a stream may merge the bytes of two messages around a descriptor.
"""

import array
import asyncio
import contextlib
import errno
import fcntl
import os
import secrets
import socket
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from dialout import Capabilities, Dialect, HealthState
from ipc.peers import borrowed

VERSION = b"\x02"

MAX_BATCH = 64
"""Connections in one Prepare. The kernel takes 253 (SCM_MAX_FD); 64 keep a message below `BATCH_BYTES` as a rule."""

BATCH_BYTES = 96 * 1024
"""Encoded size at which a batch is closed. Socket buffers hold 208 KiB by default, bookkeeping included."""

MAX_MESSAGE = 512 * 1024
"""Size of the receive buffer: one batch and the largest single record (64 KiB of registration, 48 KiB of config)."""

RECEIVE_BUDGET = 64
"""Messages taken in one turn of the loop."""

ANCILLARY_SPACE = socket.CMSG_SPACE(MAX_BATCH * array.array("i").itemsize)

# Plain integers: the socket module's are enum members, and each operation on one runs 1 µs of Python.
_SEND_FLAGS = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
_RECEIVE_FLAGS = int(socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
_TRUNCATED, _DESCRIPTORS_LOST = int(socket.MSG_TRUNC), int(socket.MSG_CTRUNC)

_TIMEVAL = struct.Struct("ll")

BACK_PRESSURE = frozenset({errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS})
"""A send that fails with one of these is tried again later.

ETOOMANYREFS says that more descriptors of this *user* are in flight than RLIMIT_NOFILE (unix(7)); root never sees it.
"""


class Established(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What a connection that moves has behind it; times are seconds of CLOCK_MONOTONIC, *connected_at* since 1970.

    *left_at* is when its shard stopped serving it; *ticket* is what whoever goes on with it must take (`take_ticket`).
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


class Offer(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One connection on its way into a pool.

    *number* is the n of ``<agent_id>-conn-<n>``, never used twice. *residue* are bytes that the agent sent and nobody
    has taken for a frame yet: the first that the shard's decoder gets. *unsent* are the first bytes that the shard
    writes, at commit and not a moment earlier: the acceptance, the whole frame that makes an agent a member, or what
    the shard that had the connection could not write any more. *state* is None for a newcomer.
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

    *orphan_timeout* is how many seconds the shard goes on without a supervisor.
    """

    listeners: list[KeptListener]
    orphan_timeout: float


class TakeBack(msgspec.Struct, array_like=True, frozen=True, tag=11):
    """Send the listening sockets that you keep. The shard keeps them all the same."""


class Kept(msgspec.Struct, array_like=True, frozen=True, tag=12):
    """The listening sockets that the shard keeps; the descriptors come with it, in the same order."""

    listeners: list[KeptListener]


class TakeOver(msgspec.Struct, array_like=True, frozen=True, tag=20):
    """Hand everything over to me, the next supervisor: the first message to one that runs.

    It answers `HandingOver` or `NotNow`. Then come what it holds: `Unregistered`, `Kept`, and at last `Inheritance`. It
    keeps copies of everything until `Taken`, and goes on when that does not come::

        new supervisor                               old supervisor
          TakeOver                             ──►   accepts no more, finishes the handoffs under way
          ◄── HandingOver
          ◄── Unregistered…, Kept + descriptors
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
        raise ChannelError(f"handoff message of version {bytes(data[:1]).hex()}, this is version {VERSION.hex()}")
    try:
        return _decoder.decode(data[1:])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ChannelError(f"handoff message cannot be read: {error}") from error


class ChannelError(Exception):
    """The other end of the channel speaks another version, or garbage."""


class HandoffChannel:
    """One end of a handoff channel on the event loop.

    *on_message* gets each message with its descriptors, which it owns from then on. *on_lost* is called once when the
    other end is gone or makes no sense; the channel is closed then.
    """

    def __init__(
        self,
        sock: socket.socket,
        on_message: Callable[[Message, list[int]], None],
        on_lost: Callable[[str], None],
    ) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MAX_MESSAGE)
        self._socket = sock
        self._on_message = on_message
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self.unreadable = False
        """Whether the other end speaks another version, or garbage."""
        self._buffer = bytearray(MAX_MESSAGE)
        self._when_writable: Callable[[], None] | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._loop.add_reader(sock.fileno(), self._receive)

    @property
    def closed(self) -> bool:
        """Whether the channel is closed, by either side."""
        return self._socket.fileno() < 0

    def try_send(self, message: Message, descriptors: Sequence[int] = ()) -> bool:
        """Send *message* now; False when the other end is full. What was sent has left, descriptors included.

        A False asks for `when_writable`. When the other end is gone the channel closes, and *on_lost* is called
        from the loop.
        """
        if self.closed:
            return False
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        try:
            self._socket.sendmsg([encode(message)], ancillary, _SEND_FLAGS)
        except OSError as error:
            if error.errno not in BACK_PRESSURE:
                self._loop.call_soon(self._lose_after_reading, f"cannot send: {error.strerror}")
            elif error.errno != errno.EAGAIN:
                # The socket is writable all the time then, so writability would spin.
                self._retry = self._retry or self._loop.call_later(0.02, self._writable)
            return False
        return True

    def when_writable(self, callback: Callable[[], None]) -> None:
        """Call *callback* once, as soon as another send is worth trying."""
        self._when_writable = callback
        if self._retry is None and not self.closed:
            self._loop.add_writer(self._socket.fileno(), self._writable)

    def close(self) -> None:
        """Close the channel; *on_lost* is not called."""
        if self.closed:
            return
        self._when_writable = None
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        self._loop.remove_reader(self._socket.fileno())
        self._loop.remove_writer(self._socket.fileno())
        self._socket.close()

    def _writable(self) -> None:
        self._retry = None
        if self.closed:
            return
        self._loop.remove_writer(self._socket.fileno())
        callback, self._when_writable = self._when_writable, None
        if callback is not None:
            callback()

    def _lose(self, reason: str) -> None:
        if not self.closed:
            self.close()
            self._on_lost(reason)

    def _lose_after_reading(self, reason: str) -> None:
        # What the other end sent before it died still counts.
        if self._receive():
            self._loop.call_soon(self._lose_after_reading, reason)
        else:
            self._lose(reason)

    def take_the_rest(self) -> None:
        """Take every message that has arrived, before the channel is closed for another one."""
        while self._receive():
            pass

    def _receive(self) -> bool:
        """Take what is there, up to the budget; whether there may be more."""
        for _ in range(RECEIVE_BUDGET):
            if self.closed:
                return False
            try:
                size, ancillary, flags, _ = self._socket.recvmsg_into([self._buffer], ANCILLARY_SPACE, _RECEIVE_FLAGS)
            except BlockingIOError:
                return False
            except ConnectionResetError:
                # The other end died with messages unread. The kernel says so once, and before it gives out what the
                # other end had sent: offers and commits that would be lost with the channel. libuv watches no socket
                # any more that had an error, so the rest is not left to the reader.
                self._loop.call_soon(self._lose_after_reading, "closed by the other end")
                continue
            except OSError as error:
                self._lose(f"cannot receive: {error.strerror}")
                return False
            descriptors = _descriptors_in(ancillary)
            if size == 0:
                # An empty message looks the same, and descriptors may come with it.
                close_all(descriptors)
                self._lose("closed by the other end")
                return False
            try:
                message = self._checked(decode(memoryview(self._buffer)[:size]), descriptors, flags)
            except ChannelError as error:
                close_all(descriptors)
                self.unreadable = True
                self._lose(str(error))
                return False
            if message is not None:
                self._on_message(message, descriptors)
        return True

    def _checked(self, message: Message, descriptors: list[int], flags: int) -> Message | None:
        """*message* when all of it arrived; None when its descriptors did not, which has been answered then."""
        if flags & _TRUNCATED:
            raise ChannelError(f"handoff message of more than {MAX_MESSAGE} bytes")
        expected = _descriptors_expected(message)
        if len(descriptors) == expected and not flags & _DESCRIPTORS_LOST:
            return message
        # A receiver at its descriptor limit gets the message, some or none of the descriptors, MSG_CTRUNC and no error.
        close_all(descriptors)
        descriptors.clear()
        # Nothing is better kept than a part of it: what is kept and not wanted any more would swallow connects.
        if isinstance(message, Entrust):
            return Entrust([], message.orphan_timeout)
        if isinstance(message, Kept):
            return Kept([])
        if isinstance(message, Moving):
            return message  # Without any descriptor: whoever gets it sends the connections back.
        if isinstance(message, Unregistered | Inheritance):
            raise ChannelError("out of descriptors")
        if not isinstance(message, Prepare):
            raise ChannelError("descriptors came with a message that has none")
        self.try_send(Declined(message.batch, "out of descriptors"))
        return None


def _descriptors_expected(message: Message) -> int:
    if isinstance(message, Prepare | Moving):
        return len(message.offers)
    if isinstance(message, Unregistered):
        return len(message.handshakes)
    if isinstance(message, Inheritance):
        return message.locks
    return len(message.listeners) if isinstance(message, Entrust | Kept) else 0


def _descriptors_in(ancillary: Sequence[tuple[int, int, bytes]]) -> list[int]:
    descriptors = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
    return descriptors.tolist()


def leave_ticket(fd: int, transport: str) -> int:
    """Put a new ticket into the connection, whose descriptor goes to another process, and return it.

    Whoever takes the ticket serves the connection from then on, and there is one: so two shards that hold copies of a
    descriptor, and have no supervisor that could tell them, never serve it both, and never both leave it to the other.
    Copies share the socket, and with it its receive timeout (SO_RCVTIMEO, socket(7)), which means nothing for a
    non-blocking one. That is where the ticket lies, in seconds; unlike an owner of the file (F_SETOWN) it stays when
    the process ends that put it there.
    """
    ticket = 1 + secrets.randbits(40)
    _write_ticket(fd, transport, ticket)
    return ticket


def take_ticket(fd: int, transport: str, ticket: int) -> bool:
    """Take the ticket out of the connection; False when another process has taken it.

    Looking and taking is one step: a record lock on the socket (F_SETLK, fcntl(2)) belongs to one process at a time,
    and to none once that has ended. Who finds it taken is too late by that.
    """
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    try:
        sock = borrowed(fd, transport)
        try:
            found, _ = _TIMEVAL.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEVAL.size))
        finally:
            sock.detach()
        if found != ticket:
            return False
        _write_ticket(fd, transport, 0)
        return True
    finally:
        fcntl.lockf(fd, fcntl.LOCK_UN)


def _write_ticket(fd: int, transport: str, ticket: int) -> None:
    sock = borrowed(fd, transport)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEVAL.pack(ticket, 0))
    finally:
        sock.detach()


def close_all(descriptors: Sequence[int]) -> None:
    """Close *descriptors*, whatever state they are in."""
    for fd in descriptors:
        with contextlib.suppress(OSError):
            os.close(fd)


def listen(path: Path) -> socket.socket:
    """A listening handoff socket at *path*, mode 0600, in place of a dead predecessor's.

    Only for the one process that has the right to the path: a shard that its supervisor started, or the supervisor that
    has the runtime directory's lock.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    try:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        previous = os.umask(0o177)
        try:
            sock.bind(os.fspath(path))
        finally:
            os.umask(previous)
        sock.listen(8)
    except BaseException:
        sock.close()
        raise
    return sock


def connect(path: Path) -> socket.socket:
    """A socket connected to the process that listens at *path*; OSError when none does."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    try:
        sock.connect(os.fspath(path))
    except BaseException:
        sock.close()
        raise
    return sock
