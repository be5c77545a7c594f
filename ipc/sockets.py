"""Listening Unix sockets in the runtime directory."""

import contextlib
import os
import socket
from pathlib import Path


def bind_private(path: Path, kind: socket.SocketKind) -> socket.socket:
    """A non-blocking socket of *kind* that is bound to *path*, mode 0600, in place of a dead predecessor's.

    Only for the one process that has the right to the path: a shard that its supervisor started, or the supervisor that
    has the runtime directory's lock.
    """
    sock = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK)
    try:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        # The mode is there with the socket, and not a moment later.
        previous = os.umask(0o177)
        try:
            sock.bind(os.fspath(path))
        finally:
            os.umask(previous)
    except OSError as error:
        sock.close()
        if error.errno is None:
            raise  # Python's own, for a path that is too long: it says what it is about.
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error
    except BaseException:
        sock.close()
        raise
    return sock
