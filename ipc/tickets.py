"""A ticket that lies in a connection: of several processes that hold copies of its descriptor, one serves it."""

import fcntl
import secrets
import socket
import struct

from ipc.peers import borrowed

_TIMEVAL = struct.Struct("ll")


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
