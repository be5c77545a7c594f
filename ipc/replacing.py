"""Replaces the content of a file in one step. Commands use it too: it logs nothing, and needs no loop."""

import contextlib
import errno
import os
from pathlib import Path

MODE = 0o644
"""The mode of the directory decides about access to the file. The umask, 0077 under our systemd unit, does not."""

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})


def replace(path: Path, content: bytes) -> None:
    """Write *content* to *path*, in one step. Raises OSError, and leaves the old content in place.

    A full file system has no room for a second file. Then one write puts the content over the old one, and blanks fill
    the rest. That works because the old content is of the same kind and about as long.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            _write_all(descriptor, content)
            os.fchmod(descriptor, MODE)
        finally:
            os.close(descriptor)
        part.rename(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        if error.errno not in _NO_ROOM or not _overwrite(path, content):
            raise


def _write_all(descriptor: int, content: bytes) -> None:
    written = os.write(descriptor, content)
    if written < len(content):
        # Write the rest. On a full file system this raises the error with the reason.
        _write_all(descriptor, content[written:])


def _overwrite(path: Path, content: bytes) -> bool:
    """Overwrite the file at *path*, if its blocks have room for *content*. Returns whether that was done."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        info = os.fstat(descriptor)
        if len(content) > max(info.st_size, 512 * info.st_blocks):
            return False
        content = content.ljust(info.st_size)
        return os.pwrite(descriptor, content, 0) == len(content)
    except OSError:
        return False
    finally:
        os.close(descriptor)
