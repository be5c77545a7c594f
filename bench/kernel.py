"""Which process holds which end of a connection, as the kernel tells: nothing here believes what a process says.

A connection's *end* is named by the agent's side of it: ``u`` and the inode of its Unix socket, ``t`` and its TCP port.
"""

import os
import socket
import struct
from pathlib import Path

__all__ = ["descriptors", "ends_by_process"]

LOOKS = 4
"""The kernel tells of its sockets in pieces, and skips some when others close in between."""

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_DUMP = 0x300 | 1  # NLM_F_DUMP | NLM_F_REQUEST
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_UDIAG_SHOW_PEER = 4
_UNIX_DIAG_PEER = 2
_HEADER = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBHIIIII")
_MESSAGE = struct.Struct("=BBBBIII")
_ATTRIBUTE = struct.Struct("=HH")


def descriptors(pid: int) -> dict[int, str]:
    """The open descriptors of a process of ours, each with what it is; none when the process has ended."""
    found: dict[int, str] = {}
    try:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            try:
                found[int(entry.name)] = str(entry.readlink())
            except (FileNotFoundError, PermissionError):
                continue
    except (FileNotFoundError, PermissionError, ProcessLookupError):
        # One that has ended and was not waited for yet is nobody's but root's.
        return {}
    return found


def ends_by_process(pids: list[int]) -> dict[int, list[str]]:
    """For each process, the agents' ends of all connected sockets that it holds, Unix ones and TCP ones."""
    peers = _tcp_peers()
    for _ in range(LOOKS):
        peers |= _unix_peers()
    found = {}
    for pid in pids:
        inodes = [int(target[8:-1]) for target in descriptors(pid).values() if target.startswith("socket:[")]
        found[pid] = [peers[inode] for inode in inodes if inode in peers]
    return found


def _unix_peers() -> dict[int, str]:
    """Inode → the other end, for all connected Unix sockets (sock_diag(7))."""
    peers: dict[int, str] = {}
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as sock:
        request = _REQUEST.pack(socket.AF_UNIX, 0, 0, 0xFFFFFFFF, 0, _UDIAG_SHOW_PEER, 0, 0)
        sock.sendall(_HEADER.pack(_HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, _DUMP, 1, 0) + request)
        while True:
            data = sock.recv(1 << 20)
            position = 0
            while position < len(data):
                length, kind, _, _, _ = _HEADER.unpack_from(data, position)
                if kind in (_NLMSG_DONE, _NLMSG_ERROR):
                    return peers
                _, _, _, _, inode, _, _ = _MESSAGE.unpack_from(data, position + _HEADER.size)
                at, end = position + _HEADER.size + _MESSAGE.size, position + length
                while at < end:
                    size, attribute = _ATTRIBUTE.unpack_from(data, at)
                    if attribute == _UNIX_DIAG_PEER:
                        peers[inode] = f"u{struct.unpack_from('=I', data, at + 4)[0]}"
                    at += (size + 3) & ~3
                position += (length + 3) & ~3


def _tcp_peers() -> dict[int, str]:
    """Inode → the other end, for all TCP sockets that are open (proc(5))."""
    peers = {}
    for name in ("tcp", "tcp6"):
        table = Path(f"/proc/{os.getpid()}/net/{name}")
        for line in table.read_text().splitlines()[1:]:
            words = line.split()
            port = int(words[2].rpartition(":")[2], 16)
            if port:
                peers[int(words[9])] = f"t{port}"
    return peers
