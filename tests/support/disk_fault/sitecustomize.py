"""Imported by every Python process that finds this folder on its path: makes its file operations fail on demand.

``TEST_DISK_FAULT`` names a symbolic link; while it is there, its target ``ERRNO:PATH`` says with what everything fails
that would change something in the folder *PATH*. An audit hook (PEP 578) sees each operation before it happens.
"""

import errno
import os
import sys
from typing import Any

_SWITCH = os.environ.get("TEST_DISK_FAULT", "")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_MAKING = frozenset({"socket.bind", "os.mkdir", "os.rename", "os.symlink", "os.link"})
_CHANGING = frozenset({"os.remove", "os.chmod", "os.rmdir"})


def _path(event: str, args: tuple[Any, ...]) -> str:
    """The path that an event would change something at; empty for none."""
    if event == "open":
        path, _, flags = args
        wants = isinstance(flags, int) and flags & _WRITING
    elif event == "socket.bind":
        path, wants = args[1], True
    else:
        path, wants = args[0] if args else "", event in _MAKING or event in _CHANGING
    return os.fspath(path) if wants and isinstance(path, str | os.PathLike) else ""


def _fails(event: str, args: tuple[Any, ...]) -> None:
    if event != "open" and event not in _MAKING and event not in _CHANGING:
        return
    path = _path(event, args)
    try:
        name, _, folder = os.readlink(_SWITCH).partition(":")  # noqa: PTH115 - no event comes of it
    except OSError:
        return
    if not path.startswith(folder):
        return
    if name in ("ENOSPC", "ENOENT"):
        # A full folder takes nothing new; what is there can be written over and removed.
        makes = event in _MAKING or (event == "open" and bool(args[2] & os.O_CREAT) and not os.path.lexists(path))
        if name == "ENOSPC" and not makes:
            return
    number = getattr(errno, name)
    raise OSError(number, os.strerror(number), path)


if _SWITCH:
    sys.addaudithook(_fails)
