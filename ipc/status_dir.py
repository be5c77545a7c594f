"""The status directory: the second of two levels of access.

Whoever reaches the runtime directory may act: stop, move, kick. It is its user's alone. The status directory is for
those who may look: a group, or everybody. It has sockets of the same names as the runtime directory, so that every
command that looks works with it as its ``--runtime-dir``; they answer queries that change nothing and show no part of a
secret, and refuse all others::

    supervisor.json   supervisor.query      shard-<i>.json   shard-<i>.query      lock

Its mode decides who gets in, and that of the sockets follows from it. It is set-group-ID, so that what is made in it
belongs to its group without a moment in which it does not. It is locked like the runtime directory: two shardgates that
share one would take each other's sockets away.
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
    """Make the directory, or check and adjust the one that is there. It is to be locked. Raises `RuntimeDirError`."""
    rundir = RuntimeDir(path)
    rundir.check_length()
    rundir.maker = lambda: create_status_dir(path, mode, group)
    try:
        gid = _group_id(group)
        make_private(rundir.path)
        info = rundir.path.lstat()
        if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid():
            raise RuntimeDirError(f"{path}: not a directory of uid {os.geteuid()}; choose another status-dir")
        # Nothing is touched that is right already: under systemd's RestrictSUIDSGID= the bit can only be there before,
        # and a group that we are not in can only be given by root.
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
    """The mode of sockets in a status directory: whoever may enter it may connect, which takes the right to write."""
    mode = stat.S_IMODE(path.stat().st_mode)
    return 0o600 | (0o060 if mode & 0o010 else 0) | (0o006 if mode & 0o001 else 0)


def _group_id(group: int | str | None) -> int | None:
    return grp.getgrnam(group).gr_gid if isinstance(group, str) else group
