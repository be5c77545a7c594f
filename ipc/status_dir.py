"""The status directory: read-only access for other users.

There are two levels of access. A user with access to the runtime directory may act: stop, move, kick. Only the user of
shardgate has it. The status directory is for users with read-only access: a group, or all users of the host. It has
sockets of the same names as the runtime directory. So every command that only reads accepts it as ``--runtime-dir``.
The sockets answer queries that change nothing and show no part of a secret. They refuse all other queries::

    supervisor.json   supervisor.query      shard-<i>.json   shard-<i>.query      lock

The mode of the directory decides about access, and the mode of the sockets follows from it. The directory is
set-group-ID: new files in it belong to its group from the start. It is locked like the runtime directory, because two
shardgates in one directory would take each other's sockets away.
"""

import grp
import os
import stat
from pathlib import Path

from ipc.folders import make_private
from ipc.rundir import RuntimeDir, RuntimeDirError

READS_ONLY = (
    "this socket only answers questions; what acts, or shows the configuration, goes through the runtime directory,"
    " as its user"
)


def create_status_dir(path: str, mode: int, group: int | str | None) -> RuntimeDir:
    """Make the directory, or adjust an existing one. The caller must lock it. Raises `RuntimeDirError`."""
    rundir = RuntimeDir(path)
    rundir.check_length()
    rundir.maker = lambda: create_status_dir(path, mode, group)
    try:
        gid = _group_id(group)
        make_private(rundir.path)
        info = rundir.path.lstat()
        if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid():
            raise RuntimeDirError(f"{path}: not a directory of uid {os.geteuid()}; choose another status-dir")
        # Change only a wrong mode or group. Under systemd's RestrictSUIDSGID= this process cannot set the bit, and only
        # root can give the directory to a group that this process is not in.
        if gid is not None and gid != info.st_gid:
            os.chown(rundir.path, -1, gid)
            info = rundir.path.stat()
        if stat.S_IMODE(info.st_mode) != mode | stat.S_ISGID:
            rundir.path.chmod(mode | stat.S_ISGID)
    except KeyError:
        raise RuntimeDirError(f"status-group: there is no group {group!r} on this host") from None
    except OSError as error:
        what = f"mode 2{mode:03o}" + ("" if group is None else f" and group {group}")
        hint = f"make it beforehand, with {what}, or choose another status-dir"
        raise RuntimeDirError(f"{path}: {error.strerror}; {hint}") from error
    return rundir


def socket_mode(path: Path) -> int:
    """The mode of sockets in a status directory: a user that may enter it may connect, which takes write permission."""
    mode = stat.S_IMODE(path.stat().st_mode)
    return 0o600 | (0o060 if mode & 0o010 else 0) | (0o006 if mode & 0o001 else 0)


def _group_id(group: int | str | None) -> int | None:
    return grp.getgrnam(group).gr_gid if isinstance(group, str) else group
