"""Listening sockets for agents: made with their mode before they listen, removed only if they are still ours."""

import contextlib
import fcntl
import grp
import os
import pwd
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from ipc.peers import borrowed
from ipc.rundir import UNIX_PATH_MAX
from ipc.status import ListenerRow
from supervisor.config.model import Config, TcpAddress

BACKLOG = 4096
"""Connections that wait for accept. The kernel takes net.core.somaxconn if that is less."""

KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_PROBES = 30, 10, 3
USER_TIMEOUT_MS = (KEEPALIVE_IDLE + KEEPALIVE_INTERVAL * KEEPALIVE_PROBES) * 1000
"""A peer that vanished is dead after a minute, with or without unacknowledged data: tcp(7). Linux's default is 2 h."""

SO_PASSRIGHTS = 83
"""Linux 6.16: off means that an agent's socket takes no descriptors. Not in the socket module of Python 3.13 yet."""


class ListenError(Exception):
    """A listening socket cannot be made; the message says which and what to do."""


class Listener:
    """One listening socket. *kind* is ``uds`` or ``tcp``."""

    def __init__(self, kind: str, sock: socket.socket, address: str, path: Path | None = None) -> None:
        self.kind = kind
        self.sock = sock
        self.address = address
        self._path = path
        self._inode = None if path is None else _inode(path)

    @property
    def row(self) -> ListenerRow:
        """What status says about it."""
        return ListenerRow(self.kind, self.address)

    def close(self) -> None:
        """Stop listening; a socket file goes, unless somebody else has put another one there."""
        self.sock.close()
        if self._path is not None and _inode(self._path) == self._inode:
            with contextlib.suppress(FileNotFoundError):
                self._path.unlink()


def open_all(config: Config, default_path: Path) -> list[Listener]:
    """All listeners of *config*; a Unix socket at *default_path* when it names none. ListenError: none is open then."""
    listeners: list[Listener] = []
    path = None if config.path is None else Path(config.path)
    if path is None and not config.tcp_addresses:
        path = default_path
    try:
        if path is not None:
            listeners.append(_open_uds(path, config))
        listeners.extend(_open_tcp(address) for address in config.tcp_addresses)
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def tune_tcp(fd: int) -> bool:
    """Set what every agent's TCP connection gets, and travels with it; False when its peer has reset it already."""
    sock = borrowed(fd, "tcp")
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
    except OSError:
        return False
    finally:
        sock.detach()
    return True


def _open_uds(path: Path, config: Config) -> Listener:
    if len(os.fsencode(path)) > UNIX_PATH_MAX:
        raise ListenError(f"{path}: the path of a Unix socket has at most {UNIX_PATH_MAX} bytes")
    try:
        with _folder_lock(path.parent):
            _clear_stale(path)
            return _bind_uds(path, config)
    except OSError as error:
        raise ListenError(f"{path}: cannot listen: {error.strerror}") from error


def _bind_uds(path: Path, config: Config) -> Listener:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        previous = os.umask(0o177)
        try:
            sock.bind(os.fspath(path))
        finally:
            os.umask(previous)
        # Nobody can connect before listen, so owner and mode are right from the first connection on.
        owner, group = _uid_of(config.socket_owner), _gid_of(config.socket_group)
        if (owner, group) != (-1, -1):
            os.chown(path, owner, group)
        path.chmod(config.socket_mode)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 0)
        sock.listen(BACKLOG)
        return Listener("uds", sock, str(path), path)
    except BaseException:
        sock.close()
        raise


def _open_tcp(address: TcpAddress) -> Listener:
    sock = socket.socket(address.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if address.family == socket.AF_INET6:
            # "[::]:9090" beside "0.0.0.0:9090" must work whatever net.ipv6.bindv6only says.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((address.host, address.port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise ListenError(f"{address}: cannot listen: {error.strerror}") from error
    return Listener("tcp", sock, str(TcpAddress(address.host, sock.getsockname()[1])))


def _clear_stale(path: Path) -> None:
    """Remove the socket of a dead process at *path*; ListenError when there is anything else."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ListenError(f"{path}: exists and is not a socket; remove it or choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except OSError:
            # A full backlog (EAGAIN), no permission, another kind of socket: somebody may well be there.
            pass
    raise ListenError(f"{path}: a running process listens there; stop it or choose another path")


@contextlib.contextmanager
def _folder_lock(folder: Path) -> Iterator[None]:
    """Keep two starting listeners from taking each other's new socket for a stale one."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        info = path.lstat()
    except OSError:
        return None
    return info.st_dev, info.st_ino


def _uid_of(owner: int | str | None) -> int:
    if not isinstance(owner, str):
        return -1 if owner is None else owner
    try:
        return pwd.getpwnam(owner).pw_uid
    except KeyError:
        raise ListenError(f"socket-owner: there is no user {owner!r}") from None


def _gid_of(group: int | str | None) -> int:
    if not isinstance(group, str):
        return -1 if group is None else group
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise ListenError(f"socket-group: there is no group {group!r}") from None
