"""Writes to standard error without ever waiting for its reader, for every kind of file.

Setting O_NONBLOCK on the inherited descriptor is wrong: it applies to all processes that share the pipe or the
terminal. Asking the kernel first (poll(2)) is not enough. Another process may fill the shared pipe in between, and then
the write blocks. So each kind of file gets a write that cannot block:

=====================  ================================================================================================
regular file           write(2): the disk may be slow, and no reader can stop it
socket                 send(2) with MSG_DONTWAIT
pipe                   pwritev2(2) with RWF_NOWAIT; pipes know it since Linux 6.4
terminal, older pipe   write(2) on an open file description of our own, opened through ``/proc/self/fd``
any other              write(2) after poll(2): a pipe of another user, on an old kernel or without /proc
=====================  ================================================================================================
"""

import errno
import os
import select
import socket
import stat
import weakref
from collections.abc import Callable
from typing import Protocol

CHUNK = select.PIPE_BUF
"""Bytes of one write. A pipe takes a write of this size whole or not at all (pipe(7))."""

_NOT_KNOWN = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.ESPIPE})
"""Errors of pwritev2 for a flag or an offset that the kernel or this kind of file does not support."""


class Writer(Protocol):
    """Writes some of *data*, and returns the number of bytes. Where it would wait: returns 0, or BlockingIOError."""

    def __call__(self, data: bytes | bytearray, /) -> int:
        """Write as many bytes as the file takes now."""


def writer_for(fd: int) -> tuple[Writer, int]:
    """A writer to *fd* that never waits for a reader, and its largest write. Raises OSError for a closed descriptor."""
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode):
        return (lambda data: os.write(fd, data)), 1 << 20
    if stat.S_ISSOCK(mode):
        return _SocketWriter(fd), CHUNK
    return _PipeWriter(fd), CHUNK


class _SocketWriter:
    def __init__(self, fd: int) -> None:
        # The socket owns a copy of the descriptor, and closes it at its end. The journal gives a socket to a service.
        self._socket = socket.socket(fileno=os.dup(fd))
        weakref.finalize(self, self._socket.close)

    def __call__(self, data: bytes | bytearray, /) -> int:
        return self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


class _PipeWriter:
    """Begins with RWF_NOWAIT. Changes to the next best way when the kernel does not support it for this file."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._write: Callable[[bytes | bytearray], int] = self._without_waiting

    def __call__(self, data: bytes | bytearray, /) -> int:
        return self._write(data)

    def _without_waiting(self, data: bytes | bytearray) -> int:
        try:
            # Offset -1 is the current position. A pipe has no other one.
            return os.pwritev(self._fd, [data], -1, os.RWF_NOWAIT)
        except OSError as error:
            if error.errno not in _NOT_KNOWN:
                raise
        self._write = self._next_best()
        return self._write(data)

    def _next_best(self) -> Callable[[bytes | bytearray], int]:
        try:
            own = os.open(f"/proc/self/fd/{self._fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError:
            poll = select.poll()
            poll.register(self._fd, select.POLLOUT)
            return lambda data: os.write(self._fd, data) if poll.poll(0) else 0
        weakref.finalize(self, os.close, own)
        return lambda data: os.write(own, data)
