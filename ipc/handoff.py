"""Handing connections from the supervisor to a shard: messages and descriptors. No other module knows SCM_RIGHTS.

One `AF_UNIX`/`SOCK_SEQPACKET` channel for each shard. The shard listens, the supervisor connects, so that the next
supervisor can reach living shards. A handoff is prepare, then commit::

    supervisor                                   shard
      Prepare(batch, offers) + descriptors ──►   holds each one, reads and writes nothing
      ◄── Prepared(batch)
      Commit(numbers)                      ──►   pool, acceptance as first frame, begins to read

Listening sockets go the same way: `Entrust` leaves copies with a shard, so that agents' connects wait while there is no
supervisor, and the next one gets them with `TakeBack`.

A supervisor listens in the same way for the one that is to take its place, see `messages.TakeOver`.

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
has the connection takes the ticket if it is still there, and goes on (`ipc.tickets`).

The messages themselves are in `ipc.messages`. One that hands descriptors over carries as many as it names. Sequenced
packets keep the two together, where a stream may merge the bytes of two messages around a descriptor.
"""

import array
import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

from ipc.messages import (
    MAX_BATCH,
    MAX_MESSAGE,
    ChannelError,
    Declined,
    Entrust,
    ForeignVersion,
    Inheritance,
    Kept,
    Message,
    Moving,
    Prepare,
    Unregistered,
    decode,
    descriptors_expected,
    encode,
)
from ipc.sockets import bind_private

RECEIVE_BUDGET = 64
"""Messages taken in one turn of the loop."""

ANCILLARY_SPACE = socket.CMSG_SPACE(MAX_BATCH * array.array("i").itemsize)

# Plain integers: the socket module's are enum members, and each operation on one runs 1 µs of Python.
_SEND_FLAGS = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
_RECEIVE_FLAGS = int(socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
_TRUNCATED, _DESCRIPTORS_LOST = int(socket.MSG_TRUNC), int(socket.MSG_CTRUNC)

BACK_PRESSURE = frozenset({errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS})
"""A send that fails with one of these is tried again later.

ETOOMANYREFS says that more descriptors of this *user* are in flight than RLIMIT_NOFILE (unix(7)); root never sees it.
"""


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
        self.is_foreign = False
        """Whether the other end speaks another version."""
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
                self.unreadable, self.is_foreign = True, isinstance(error, ForeignVersion)
                self._lose(str(error))
                return False
            if message is not None:
                self._on_message(message, descriptors)
        return True

    def _checked(self, message: Message, descriptors: list[int], flags: int) -> Message | None:
        """*message* when all of it arrived; None when its descriptors did not, which has been answered then."""
        if flags & _TRUNCATED:
            raise ChannelError(f"handoff message of more than {MAX_MESSAGE} bytes")
        expected = descriptors_expected(message)
        if len(descriptors) == expected and not flags & _DESCRIPTORS_LOST:
            return message
        # A receiver at its descriptor limit gets the message, some or none of the descriptors, MSG_CTRUNC and no error.
        close_all(descriptors)
        descriptors.clear()
        # Nothing is better kept than a part of it: what is kept and not wanted any more would swallow connects.
        if isinstance(message, Entrust):
            return Entrust([], message.orphan_timeout, adds=message.adds)
        if isinstance(message, Kept):
            return Kept([], more=message.more)
        if isinstance(message, Moving):
            return message  # Without any descriptor: whoever gets it sends the connections back.
        if isinstance(message, Unregistered | Inheritance):
            raise ChannelError("out of descriptors")
        if not isinstance(message, Prepare):
            raise ChannelError("descriptors came with a message that has none")
        self.try_send(Declined(message.batch, "out of descriptors"))
        return None


def _descriptors_in(ancillary: Sequence[tuple[int, int, bytes]]) -> list[int]:
    descriptors = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
    return descriptors.tolist()


def close_all(descriptors: Sequence[int]) -> None:
    """Close *descriptors*, whatever state they are in."""
    for fd in descriptors:
        with contextlib.suppress(OSError):
            os.close(fd)


def listen(path: Path) -> socket.socket:
    """A listening handoff socket at *path*; see `ipc.sockets.bind_private`."""
    sock = bind_private(path, socket.SOCK_SEQPACKET)
    sock.listen(8)
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
