"""Who is at the other end of a descriptor.

Asked of the kernel when somebody wants to know, and not for every connection that is accepted: the answer is there as
long as the descriptor is open, and asking takes 2 µs.
"""

import socket
import struct
from socket import SocketType

_UCRED = struct.Struct("iII")


def borrowed(fd: int, transport: str) -> SocketType:
    """A socket object for *fd*; `detach` it, or it closes the descriptor."""
    family = socket.AF_UNIX if transport == "uds" else -1
    return SocketType(family, socket.SOCK_STREAM, 0, fd)


def credentials(fd: int) -> tuple[int, int]:
    """Pid and uid of a Unix socket's peer as it connected (SO_PEERCRED, unix(7)); OSError when it is none."""
    sock = borrowed(fd, "uds")
    try:
        pid, uid, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    finally:
        sock.detach()
    return pid, uid


def address(fd: int) -> tuple[str, int]:
    """Host and port of a TCP peer; OSError when it has gone."""
    sock = borrowed(fd, "tcp")
    try:
        host, port = sock.getpeername()[:2]
    finally:
        sock.detach()
    return host, port


def describe(fd: int, transport: str) -> str:
    """The peer for people: ``uid 1000 pid 4711``, ``192.0.2.1:50000`` or ``[2001:db8::1]:50000``; empty when gone."""
    try:
        if transport == "uds":
            pid, uid = credentials(fd)
            return f"uid {uid} pid {pid}"
        host, port = address(fd)
    except OSError:
        return ""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
