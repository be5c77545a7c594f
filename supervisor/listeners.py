"""Listening sockets for agents. A socket file gets its mode before listen, and is removed only while it is ours."""

import contextlib
import ipaddress
import os
import socket
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from ipc import flocks
from ipc.capacity import UNIX_PATH_MAX
from ipc.handoff import close_all
from ipc.logs import get_logger
from ipc.messages import KeptListener
from ipc.peers import borrowed
from ipc.status import ListenerRow
from supervisor.config.model import Config, TcpAddress
from supervisor.config.paths import Objection
from supervisor.places import WHAT_TO_DO, bind_tcp, folder_objection, group_id, socket_objection, user_id

BACKLOG = 4096
"""Length of the queue of connections that wait for accept. The kernel uses net.core.somaxconn if that is less."""

LOCK_WAIT = 0.5
"""Seconds to wait for the lock of a socket's folder. A process that starts at the same time holds it briefly."""

KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_PROBES = 30, 10, 3
USER_TIMEOUT_MS = (KEEPALIVE_IDLE + KEEPALIVE_INTERVAL * KEEPALIVE_PROBES) * 1000
"""A vanished peer is detected after a minute, with or without unacknowledged data: tcp(7). Linux's default is 2 h."""

SO_PASSRIGHTS = 83
"""Option of Linux 6.16. 0 makes an agent's socket take no descriptors. Python 3.13's socket module does not have it."""


Address = Path | TcpAddress | KeptListener
"""An address to listen at: a path or a TCP address to open, or an inherited socket."""


class ListenError(Exception):
    """A listening socket cannot be made. The message says which one, and what to do."""


class Listener:
    """One listening socket. *kind* is ``uds`` or ``tcp``. The file of an *inherited* socket is never removed.

    *config* has the owner and the mode with which a Unix socket was opened.
    """

    def __init__(
        self,
        kind: str,
        sock: socket.socket,
        address: str,
        path: Path | None = None,
        *,
        inherited: bool = False,
        config: Config | None = None,
    ) -> None:
        self.config = config
        self.kind = kind
        self.sock = sock
        self.address = address
        self.inherited = inherited
        self.path = path
        self._file = None if path is None else identity(path)

    @property
    def row(self) -> ListenerRow:
        """The listener's row for status."""
        return ListenerRow(self.kind, self.address)

    @property
    def kept(self) -> KeptListener:
        """The name under which shards keep copies of this socket."""
        return KeptListener(self.kind, self.address, self._file, self.inherited)

    def leave(self) -> None:
        """Close this process's copy. Processes with other copies still listen."""
        self.sock.close()

    def close(self) -> None:
        """Close the socket and remove its file, unless the socket was inherited or another file is at the path."""
        self.sock.close()
        if self.path is not None and not self.inherited and identity(self.path) == self._file:
            with contextlib.suppress(OSError):
                self.path.unlink()


def wanted(config: Config, default_path: Path, inherited: Iterable[KeptListener] = ()) -> list[Address]:
    """The addresses of *config*. Without any: the *inherited* sockets, or *default_path* when there are none."""
    named: list[Address] = [*config.tcp_addresses]
    if config.path is not None:
        named.insert(0, Path(config.path))
    return named or [*inherited] or [default_path]


def assign(addresses: Sequence[Address], kept: Iterable[KeptListener]) -> dict[Address, KeptListener]:
    """Map each address to the *kept* socket that serves it, to the first of several alike.

    Port 0 matches any port of its host. Two spellings of one address match: systemd writes /run/… where a configuration
    has /var/run/….
    """
    free: dict[tuple[str, str], KeptListener] = {}
    for listener in kept:
        free.setdefault(_key(listener), listener)
    found: dict[Address, KeptListener] = {}
    for address in addresses:
        match = free.pop(_key(address), None)
        if match is not None:
            found[address] = match
    for address in addresses:
        if isinstance(address, TcpAddress) and address.port == 0:
            host = _key(address)[1].removesuffix("0")
            key = next((key for key in free if key[0] == "tcp" and key[1].startswith(host)), None)
            if key is not None:
                found[address] = free.pop(key)
    return found


def _key(address: Address) -> tuple[str, str]:
    """A key that is the same for all spellings of one address."""
    if isinstance(address, TcpAddress) or (isinstance(address, KeptListener) and address.kind == "tcp"):
        host, _, port = str(address if isinstance(address, TcpAddress) else address.address).rpartition(":")
        with contextlib.suppress(ValueError):
            host = str(ipaddress.ip_address(host.strip("[]")))
        return "tcp", f"{host}:{port}"
    path = address.address if isinstance(address, KeptListener) else str(address)
    # Only the folder is resolved, not a symbolic link in the socket's own name.
    return "uds", os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))  # noqa: PTH118,PTH119,PTH120 - "@name" is no path


def has_its_path(listener: KeptListener) -> bool:
    """Whether the path of a Unix socket still leads to it. Otherwise agents cannot reach it. True for TCP."""
    return listener.kind != "uds" or identity(listener.address) == listener.file


def open_all(config: Config, default_path: Path, taken: Mapping[KeptListener, int] | None = None) -> list[Listener]:
    """Open all listeners of *config*, from the sockets in *taken* where they match.

    Takes ownership of the descriptors in *taken*. After a ListenError none of the listeners is open.
    """
    listeners: list[Listener] = []
    left: dict[KeptListener, int] = {}
    for kept, fd in (taken or {}).items():
        if kept.inherited or has_its_path(kept):
            left[kept] = fd
        else:
            # Its file was removed a moment ago, so agents cannot reach it.
            os.close(fd)
    addresses = wanted(config, default_path, [one for one in left if one.inherited])
    found = assign(addresses, left)
    try:
        for address in addresses:
            if address in found:
                listener = found[address]
                listeners.append(_taken_back(listener, left.pop(listener), config))
            elif isinstance(address, Path):
                listeners.append(_open_uds(address, config))
            elif isinstance(address, TcpAddress):
                listeners.append(_open_tcp(address))
    except BaseException:
        for open_one in listeners:
            # Shards keep copies of the sockets that were taken back. The next supervisor finds them there.
            open_one.leave() if open_one.kept in found.values() else open_one.close()
        raise
    finally:
        close_all(list(left.values()))
    return listeners


def open_again(listener: Listener) -> Listener:
    """Open the Unix socket of *listener* again after its file was removed. The old one stays open.

    Raises `ListenError`.
    """
    if listener.path is None or listener.config is None or listener.inherited:
        raise ListenError("whoever passed this socket has to make it again; restart its socket unit")
    return _open_uds(listener.path, listener.config, wait=0.0)


def remove_files(kept: Iterable[KeptListener], listeners: Sequence[Listener]) -> None:
    """Remove the files of the *kept* sockets that none of *listeners* has taken over, unless they were inherited."""
    taken = {listener.kept for listener in listeners}
    for one in kept:
        if one.kind == "uds" and one not in taken and not one.inherited and has_its_path(one):
            with contextlib.suppress(OSError):
                Path(one.address).unlink()


def tune_tcp(fd: int) -> bool:
    """Set the options of an agent's TCP connection, which it keeps in a handoff. False when its peer has reset it."""
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


def _open_uds(path: Path, config: Config, *, wait: float = LOCK_WAIT) -> Listener:
    if len(os.fsencode(path)) > UNIX_PATH_MAX:
        raise ListenError(f"{path}: the path of a Unix socket has at most {UNIX_PATH_MAX} bytes")
    if (objection := folder_objection(path.parent)) is not None:
        raise ListenError(f"{path}: cannot listen: {_said(objection)}")
    try:
        with _folder_lock(path.parent, wait):
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
        # No peer can connect before listen, so owner and mode apply to the first connection too.
        _set_access(path, config)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 0)
        sock.listen(BACKLOG)
        return Listener("uds", sock, str(path), path, config=config)
    except BaseException:
        sock.close()
        raise


def _set_access(path: Path, config: Config) -> None:
    owner, group = _uid_of(config.socket_owner), _gid_of(config.socket_group)
    if (owner, group) != (-1, -1):
        os.chown(path, owner, group)
    path.chmod(config.socket_mode)


def _taken_back(kept: KeptListener, fd: int, config: Config) -> Listener:
    sock = socket.socket(fileno=fd)
    path = Path(kept.address) if kept.kind == "uds" else None
    try:
        sock.setblocking(False)
        if path is not None and not kept.inherited:
            _set_access(path, config)
    except OSError as error:
        sock.close()
        raise ListenError(f"{kept.address}: cannot set its owner and mode: {error.strerror}") from error
    except BaseException:
        sock.close()
        raise
    return Listener(kept.kind, sock, kept.address, path, inherited=kept.inherited, config=config)


def _open_tcp(address: TcpAddress) -> Listener:
    sock = None
    try:
        sock = socket.socket(address.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        bind_tcp(sock, address)
        sock.listen(BACKLOG)
    except OSError as error:
        if sock is not None:
            sock.close()
        hint = WHAT_TO_DO.get(error.errno or 0)
        raise ListenError(f"{address}: {_said((f'cannot listen: {error.strerror}', hint))}") from error
    return Listener("tcp", sock, str(TcpAddress(address.host, sock.getsockname()[1])))


def _clear_stale(path: Path) -> None:
    """Remove the socket of a dead process at *path*. ListenError when another kind of file or a listener is there."""
    if (objection := socket_objection(path)) is not None:
        raise ListenError(f"{path}: {_said(objection)}")
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except OSError:
            # A full backlog (EAGAIN), no permission, or another kind of socket: a process may listen there.
            pass
    raise ListenError(f"{path}: a running process listens there; stop it or choose another path")


@contextlib.contextmanager
def _folder_lock(folder: Path, wait: float) -> Iterator[None]:
    """Keep two starting listeners from taking each other's new socket for a stale one.

    They hold it for a millisecond. Any process that may read the folder may hold the lock for ever. After *wait*
    seconds a lock that only other users hold is ignored. A lock of this user's own process, or of an unknown one, is a
    `ListenError` that names the holder.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if not flocks.taken_within(fd, wait):
            holders = flocks.holders(fd)
            told = ", ".join(f"pid {holder.pid} of uid {holder.uid}" for holder in holders) or "an unknown process"
            if not holders or any(holder.uid == os.geteuid() for holder in holders):
                raise ListenError(f"{folder}: locked by {told} (flock); end that, or choose another folder")
            get_logger().warning("folder is locked by another user, going on without", folder=str(folder), by=told)
        yield
    finally:
        os.close(fd)


def identity(path: str | Path) -> tuple[int, int, int] | None:
    """The identity of the socket file at *path*; None without one. An inode's number alone is reused at once."""
    try:
        info = os.lstat(path)
    except OSError:
        return None
    return (info.st_dev, info.st_ino, info.st_mtime_ns) if stat.S_ISSOCK(info.st_mode) else None


def _uid_of(owner: int | str | None) -> int:
    try:
        return user_id(owner)
    except KeyError:
        raise ListenError(f"socket-owner: there is no user {owner!r} on this host") from None


def _gid_of(group: int | str | None) -> int:
    try:
        return group_id(group)
    except KeyError:
        raise ListenError(f"socket-group: there is no group {group!r} on this host") from None


def _said(objection: Objection) -> str:
    message, hint = objection
    return f"{message}; {hint}" if hint else message
