"""A ticket in a connection. Among processes with copies of its descriptor, only the one that takes it serves.

The ticket works without a supervisor.
"""

import fcntl
import secrets
import socket
import struct

from ipc.peers import borrowed

_TIMEVAL = struct.Struct("ll")


def leave_ticket(fd: int, transport: str) -> int:
    """Put a new ticket into the connection before its descriptor goes to another process, and return the ticket.

    Only one process can take the ticket. It serves the connection from then on. So two shards with copies of the
    descriptor never both serve it, and never both leave it to the other.

    All copies share the socket and its receive timeout (SO_RCVTIMEO, socket(7)). A non-blocking socket does not use
    that timeout, so it holds the ticket, in seconds. Unlike an owner of the file (F_SETOWN) it stays when the process
    that wrote it ends.
    """
    ticket = 1 + secrets.randbits(40)
    _write_ticket(fd, transport, ticket)
    return ticket


def take_ticket(fd: int, transport: str, ticket: int) -> bool:
    """Take the ticket out of the connection. Returns False if another process has taken it.

    A record lock on the socket (F_SETLK, fcntl(2)) makes reading and clearing one step. One process at a time can have
    this lock, and the kernel releases it when the process ends. A process that finds the lock held is too late.
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
