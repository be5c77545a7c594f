"""Hand connections from the supervisor to a shard, as messages with descriptors. Only this module uses SCM_RIGHTS.

Each shard has one `AF_UNIX`/`SOCK_SEQPACKET` channel. The shard listens and the supervisor connects, so that the next
supervisor can reach living shards. A handoff has two steps, prepare and commit::

    supervisor                                   shard
      Prepare(batch, offers) + descriptors ──►   holds each one, reads and writes nothing
      ◄── Prepared(batch)
      Commit(numbers)                      ──►   pool, acceptance as first frame, begins to read

Listening sockets use the same channel. `Entrust` leaves copies of them with a shard, so that agents' connects wait
while there is no supervisor. The next supervisor gets them back with `TakeBack`.

A supervisor listens in the same way for its successor, see `messages.TakeOver`.

The supervisor keeps its own copy of a descriptor until the commit is sent. If a shard dies, hangs or is out of
descriptors, the supervisor revokes the offer and makes it to another shard. No connection is lost.

A connection moves to another shard through the supervisor, in the same two steps. The old shard holds it *as if it were
prepared there* until the supervisor decides which shard serves it::

    supervisor                                   shard that has it
      MoveOut(numbers, seconds)            ──►   sends them no new requests, waits until nothing is in flight
      ◄── Moving(offers) + descriptors           reads and writes nothing from here on
    Prepare, Prepared, Commit with another shard
      Revoke(numbers)                      ──►   moved: closes its copy     (or Commit: not moved, serves them again)

The shard that gets the Commit takes the ticket that lies in the connection. If the supervisor is lost in between, each
shard that holds the connection tries to take the ticket. Only the one that succeeds serves it (`ipc.tickets`).

The messages are defined in `ipc.messages`. A message that hands over descriptors carries as many as it names. Sequenced
packets keep a message and its descriptors together. A stream may merge the bytes of two messages around a descriptor.
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
"""The most messages that are received in one turn of the loop."""

ANCILLARY_SPACE = socket.CMSG_SPACE(MAX_BATCH * array.array("i").itemsize)

# Plain integers. The socket module has enum members instead, and each operation on one runs 1 µs of Python.
_SEND_FLAGS = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
_RECEIVE_FLAGS = int(socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
_TRUNCATED, _DESCRIPTORS_LOST = int(socket.MSG_TRUNC), int(socket.MSG_CTRUNC)

BACK_PRESSURE = frozenset({errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS})
"""A send that fails with one of these errors is tried again later.

ETOOMANYREFS means that this *user* has more descriptors in flight than RLIMIT_NOFILE (unix(7)). Root never gets it.
"""


class HandoffChannel:
    """One end of a handoff channel on the event loop.

    *on_message* gets each message with its descriptors and owns them from then on. *on_lost* is called once if the
    other end is gone or sends invalid messages. The channel is closed before that call.
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
        """Whether the channel is closed, by `close` or after a loss."""
        return self._socket.fileno() < 0

    def try_send(self, message: Message, descriptors: Sequence[int] = ()) -> bool:
        """Send *message* and its descriptors now. Returns False if they could not be sent.

        After a False use `when_writable`. If the other end is gone, the loop closes the channel and calls *on_lost*.
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
                # With these errors the socket stays writable, so waiting for writability would spin.
                self._retry = self._retry or self._loop.call_later(0.02, self._writable)
            return False
        return True

    def when_writable(self, callback: Callable[[], None]) -> None:
        """Call *callback* once, as soon as another send may succeed."""
        self._when_writable = callback
        if self._retry is None and not self.closed:
            self._loop.add_writer(self._socket.fileno(), self._writable)

    def close(self) -> None:
        """Close the channel. *on_lost* is not called."""
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
        # Messages that the other end sent before it died still count.
        if self._receive():
            self._loop.call_soon(self._lose_after_reading, reason)
        else:
            self._lose(reason)

    def take_the_rest(self) -> None:
        """Receive every message that has arrived. Call it before the channel is closed or replaced."""
        while self._receive():
            pass

    def _receive(self) -> bool:
        """Receive the waiting messages, up to the budget. Returns whether there may be more."""
        for _ in range(RECEIVE_BUDGET):
            if self.closed:
                return False
            try:
                size, ancillary, flags, _ = self._socket.recvmsg_into([self._buffer], ANCILLARY_SPACE, _RECEIVE_FLAGS)
            except BlockingIOError:
                return False
            except ConnectionResetError:
                # The other end died with unread messages. The kernel reports that once, before it delivers the messages
                # of the other end. These offers and commits must not be lost with the channel. libuv stops watching a
                # socket that had an error, so the loop must be asked to read the rest.
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
        """Return *message* if it is complete, or a form of it without its descriptors if they did not arrive.

        Returns None for a `Prepare` without descriptors, after declining it. Raises `ChannelError` for a message that
        cannot be used without its descriptors.
        """
        if flags & _TRUNCATED:
            raise ChannelError(f"handoff message of more than {MAX_MESSAGE} bytes")
        expected = descriptors_expected(message)
        if len(descriptors) == expected and not flags & _DESCRIPTORS_LOST:
            return message
        # A receiver at its descriptor limit gets the message, some or none of its descriptors, MSG_CTRUNC and no error.
        close_all(descriptors)
        descriptors.clear()
        # Keep none of the listening sockets rather than some. A kept socket that is no longer wanted would swallow
        # connects.
        if isinstance(message, Entrust):
            return Entrust([], message.orphan_timeout, adds=message.adds)
        if isinstance(message, Kept):
            return Kept([], more=message.more)
        if isinstance(message, Moving):
            return message  # It has no descriptors now, so the supervisor leaves the connections with their shard.
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
    """Close *descriptors* and ignore errors."""
    for fd in descriptors:
        with contextlib.suppress(OSError):
            os.close(fd)


def listen(path: Path) -> socket.socket:
    """Make a listening handoff socket at *path*; see `ipc.sockets.bind_private`."""
    sock = bind_private(path, socket.SOCK_SEQPACKET)
    sock.listen(8)
    return sock


def connect(path: Path) -> socket.socket:
    """Connect to the process that listens at *path*. Raises OSError if there is none."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    try:
        sock.connect(os.fspath(path))
    except BaseException:
        sock.close()
        raise
    return sock
