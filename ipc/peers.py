"""Who is at the other end of a descriptor.

Asked of the kernel when somebody wants to know, and not for every connection that is accepted: the answer is there as
long as the descriptor is open, and asking takes 0.6 µs.
"""

import ipaddress
import socket
import struct
from functools import lru_cache
from socket import SocketType
from typing import NamedTuple

_UCRED = struct.Struct("iII")
_unpack_ucred = _UCRED.unpack
# Plain numbers: the names in `socket` are enumerations, whose conversion takes longer than the system call.
_UNIX, _STREAM = int(socket.AF_UNIX), int(socket.SOCK_STREAM)
_SOCKET, _PEERCRED = socket.SOL_SOCKET, socket.SO_PEERCRED


class Owner(NamedTuple):
    """Whose a connection is: the *rule* that let its agent in, and the *peer* that it comes from, as `key_of` has it.

    Both are empty where nobody has told them.
    """

    rule: str
    peer: str


NOBODY = Owner("", "")


@lru_cache(maxsize=4096)
def owner(rule: str, peer: str) -> Owner:
    """The owner of this rule and peer: one object for many connections, 100 bytes of which would be three texts."""
    return Owner(rule, peer)


@lru_cache(maxsize=4096)
def key_of(host: str) -> str:
    """What the connections of a TCP peer are counted by: an IPv4 address, or the /64 of an IPv6 one.

    A host has a /64 to itself as a rule (RFC 7421), and may use any address in it. An IPv4 address that a socket for
    both families shows as ``::ffff:192.0.2.1`` is an IPv4 address.
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    prefix = ipaddress.IPv6Address(int(address) >> 64 << 64)
    scope = "" if address.scope_id is None else f"%{address.scope_id}"
    return f"{prefix}{scope}/64"


@lru_cache(maxsize=4096)
def key_of_uid(uid: int) -> str:
    """What the connections of a Unix socket's peer are counted by."""
    return f"uid {uid}"


def borrowed(fd: int, transport: str) -> SocketType:
    """A socket object for *fd*; `detach` it, or it closes the descriptor."""
    return SocketType(_UNIX if transport == "uds" else -1, _STREAM, 0, fd)


def credentials(fd: int) -> tuple[int, int]:
    """Pid and uid of a Unix socket's peer as it connected (SO_PEERCRED, unix(7)); OSError when it is none."""
    sock = SocketType(_UNIX, _STREAM, 0, fd)
    try:
        pid, uid, _ = _unpack_ucred(sock.getsockopt(_SOCKET, _PEERCRED, _UCRED.size))
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
