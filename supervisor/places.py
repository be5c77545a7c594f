"""Check the places of a supervisor's sockets and folders, before anything is created there.

A start and ``shardgate check`` use the same functions. Each returns an objection with a remedy, or None. None of them
changes anything. Only a start finds problems that the kernel alone knows, such as a full disk or a security policy.
"""

import errno
import grp
import os
import pwd
import shlex
import socket
import stat
from pathlib import Path

import psutil

from supervisor.config.model import TcpAddress
from supervisor.config.paths import Objection

_CAP_CHOWN = 0
"""The number of CAP_CHOWN, see capabilities(7)."""

_LISTENS = 0x10000
"""__SO_ACCEPTCON of the kernel, in the flags of /proc/net/unix."""

WHAT_TO_DO = {
    errno.EADDRINUSE: "'ss -ltnp' shows who does",
    errno.EADDRNOTAVAIL: "no interface of this host has it, or not yet: 'ip address' shows them",
    errno.EACCES: "below 1024 systemd can open it, see shardgate.socket",
    errno.EAFNOSUPPORT: "this host has no IPv6: write an IPv4 address",
}


def folder_objection(folder: Path) -> Objection | None:
    """Say why no socket can be made in *folder*: it is missing, is no folder, or is not writable for this user."""
    missing = [path for path in (folder, *folder.parents) if not _is_there(path)]
    shown = shlex.quote(str(folder))
    if missing:
        return f"the folder {missing[-1]} is not there", f"run: mkdir -p {shown}; or choose another folder"
    try:
        mode = folder.stat().st_mode
    except OSError as error:
        return (
            f"the folder {folder} cannot be entered: {error.strerror}",
            "give its users the right to pass, x of chmod",
        )
    if not stat.S_ISDIR(mode):
        return f"{folder} is a file, and no socket can be made below it", "choose another folder"
    # The folder is locked while a socket is made in it. That needs the right to read it.
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK, effective_ids=True):
        if os.statvfs(folder).f_flag & os.ST_RDONLY:
            return f"{folder} is on a file system that is mounted read-only", "choose another folder"
        me = os.geteuid()
        return f"uid {me} may not make files in {folder}", f"run: chown {me} {shown}; or choose another folder"
    return None


def socket_objection(path: Path) -> Objection | None:
    """Say why no socket can be made at *path*, because of the file there. A socket is no objection."""
    try:
        mode = path.lstat().st_mode
    except OSError:
        return None
    if stat.S_ISDIR(mode):
        return "is a folder", f'choose a name in it, such as "{path}/agents.sock"'
    if not stat.S_ISSOCK(mode):
        return "exists and is not a socket", "remove it or choose another path"
    return None


def private_folder_objection(folder: Path) -> Objection | None:
    """Say why *folder* cannot be used as a private folder: it cannot be made, is no folder, or is another user's."""
    there = next(path for path in (folder, *folder.parents) if _is_there(path))
    try:
        info = there.stat() if there != folder else folder.lstat()
    except OSError as error:
        return f"{there}: {error.strerror}", "choose another folder"
    if not stat.S_ISDIR(info.st_mode):
        return f"{there} is not a directory", "choose another folder"
    if there == folder:
        if info.st_uid != os.geteuid():
            return f"{folder} belongs to uid {info.st_uid}, not to uid {os.geteuid()}", "choose another folder"
        return None
    if not os.access(there, os.W_OK | os.X_OK, effective_ids=True):
        return f"uid {os.geteuid()} may not make {folder}: {there} is not writable for it", "choose another folder"
    return None


def user_id(name: int | str | None) -> int:
    """The uid of a user, -1 for None. KeyError for a name that this host does not know."""
    return pwd.getpwnam(name).pw_uid if isinstance(name, str) else -1 if name is None else name


def group_id(name: int | str | None) -> int:
    """The gid of a group, -1 for None. KeyError for a name that this host does not know."""
    return grp.getgrnam(name).gr_gid if isinstance(name, str) else -1 if name is None else name


def owner_objection(name: int | str | None) -> Objection | None:
    """Say why this process cannot give a file of its own to a user."""
    try:
        uid = user_id(name)
    except KeyError:
        return f"there is no user {name!r} on this host", "'getent passwd' shows them"
    if uid in (-1, os.geteuid()) or _may(_CAP_CHOWN):
        return None
    return f"only root can give the socket to another user, and this is uid {os.geteuid()}", "name a group instead"


def group_objection(name: int | str | None) -> Objection | None:
    """Say why this process cannot give a file of its own to a group."""
    try:
        gid = group_id(name)
    except KeyError:
        return f"there is no group {name!r} on this host", "'getent group' shows them"
    if gid in (-1, os.getegid(), *os.getgroups()) or _may(_CAP_CHOWN):
        return None
    return f"uid {os.geteuid()} is no member of group {name}", "add it to the group, or name one that it is in"


def address_objection(address: TcpAddress) -> Objection | None:
    """Say why no socket can be bound to an address. An address in use is an objection, too."""
    try:
        with socket.socket(address.family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
            bind_tcp(sock, address)
    except OSError as error:
        return f"cannot listen: {error.strerror}", WHAT_TO_DO.get(error.errno or 0)
    return None


def bind_tcp(sock: socket.socket, address: TcpAddress) -> None:
    """Bind a socket with the options of every TCP listener. Raises OSError."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if address.family == socket.AF_INET6:
        # "[::]:9090" beside "0.0.0.0:9090" must work with any value of net.ipv6.bindv6only.
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.bind((address.host, address.port))


def is_listened_on(where: Path | TcpAddress) -> bool:
    """Whether a process listens there now. It does not connect, since that could start a service of systemd."""
    if isinstance(where, TcpAddress):
        try:
            with socket.socket(where.family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
                bind_tcp(sock, where)
        except OSError as error:
            return error.errno == errno.EADDRINUSE
        return False
    wanted = {str(where), os.path.realpath(where)}
    try:
        lines = Path("/proc/net/unix").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return False
    rows = (line.split(maxsplit=7) for line in lines[1:])
    return any(len(row) == 8 and row[7] in wanted and int(row[3], 16) & _LISTENS for row in rows)


def listeners_at(where: Path | TcpAddress) -> list[str]:
    """The names of the processes that listen there, as far as this user may inspect them."""
    names = set()
    kind = "tcp" if isinstance(where, TcpAddress) else "unix"
    wanted = {str(where), os.path.realpath(where)} if isinstance(where, Path) else set()
    try:
        rows = psutil.net_connections(kind)
    except (psutil.Error, OSError):
        return []
    for row in rows:
        if isinstance(where, TcpAddress):
            found = row.status == psutil.CONN_LISTEN and row.laddr[1:2] == (where.port,)
        else:
            found = str(row.laddr) in wanted
        if found and row.pid is not None:
            try:
                names.add(psutil.Process(row.pid).name())
            except psutil.Error:
                continue
    return sorted(names)


def _is_there(path: Path) -> bool:
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        # It cannot be inspected, and may exist.
        return True
    return True


def _may(capability: int) -> bool:
    """Whether this process has a capability. An ordinary user may have it, and root may lack it in a container."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return os.geteuid() == 0
    line = next((line for line in status.splitlines() if line.startswith("CapEff:")), "CapEff: 0")
    return bool(int(line.split()[1], 16) >> capability & 1)
