"""Socket activation: listening sockets that the parent process passes, as systemd does (sd_listen_fds(3)).

The shards keep copies of these sockets too. So the next supervisor has them even when it is started by hand. Therefore
systemd's descriptor store (FDSTORE, sd_notify(3)) is not used. It would only help after a crash of all processes, when
no shard is left, and would need its own code to register, compare and remove sockets. A socket unit covers that case:
systemd keeps the sockets open that it has opened.
"""

import os
import socket
from collections.abc import MutableMapping

from ipc.logs import get_logger, printable
from ipc.messages import KeptListener
from supervisor.config.model import TcpAddress
from supervisor.listeners import ListenError, identity

FIRST_DESCRIPTOR = 3
"""The first passed descriptor: SD_LISTEN_FDS_START."""


def take_passed(environment: MutableMapping[str, str] = os.environ) -> dict[KeptListener, int]:
    """The listening sockets that were passed to this process, with their descriptors. The caller owns them.

    The variables are removed from *environment*, and the descriptors are closed on exec, so no child uses them. Sockets
    for another process (``LISTEN_PID``) are left alone. Raises `ListenError` when agents cannot be accepted on a passed
    descriptor: ignoring it would leave its address unserved.
    """
    pid, count, names = (environment.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    if pid != str(os.getpid()) or not count:
        return {}
    if not count.isdecimal() or not 0 <= int(count) <= 1024:
        raise ListenError(f"LISTEN_FDS={printable(count)} is no number of sockets; it is set by what starts shardgate")
    named = names.split(":") if names else ["unknown"] * int(count)
    if len(named) != int(count):
        raise ListenError(f"LISTEN_FDNAMES has {len(named)} names for {count} sockets")
    passed: dict[KeptListener, int] = {}
    for fd, name in enumerate(map(printable, named), FIRST_DESCRIPTOR):
        listener = _checked(fd, f"descriptor {fd} ({name})")
        if listener in passed:
            raise ListenError(f"descriptor {fd} ({name}): {listener.address} was passed twice; once is enough")
        passed[listener] = fd
        get_logger().info("socket passed", name=name, address=listener.address)
    return passed


def _checked(fd: int, what: str) -> KeptListener:
    """The listening socket at *fd*, checked. *what* names the descriptor in an error."""
    try:
        os.set_inheritable(fd, False)
        # The socket object closes its descriptor, so it gets a duplicate.
        sock = socket.socket(fileno=os.dup(fd))
    except OSError as error:
        raise ListenError(f"{what} is no socket ({error.strerror}); pass listening stream sockets") from error
    with sock:
        if sock.family not in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6):
            raise ListenError(f"{what} is of address family {sock.family}; pass Unix or TCP sockets (ListenStream=)")
        if sock.type != socket.SOCK_STREAM:
            raise ListenError(f"{what} is no stream socket; use ListenStream=")
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise ListenError(f"{what} does not listen; use ListenStream= with Accept=no")
        address = sock.getsockname()
    if not isinstance(address, str | bytes):
        return KeptListener("tcp", str(TcpAddress(*address[:2])), inherited=True)
    if isinstance(address, bytes):  # An abstract one: no file.
        return KeptListener("uds", printable(f"@{address[1:].decode('utf-8', 'replace')}"), inherited=True)
    return KeptListener("uds", address, identity(address), inherited=True)
