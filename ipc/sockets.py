"""Unix sockets in the runtime directory and the status directory."""

import contextlib
import os
import socket
from pathlib import Path


def bind_private(path: Path, kind: socket.SocketKind, mode: int = 0o600) -> socket.socket:
    """A non-blocking socket of *kind* that is bound to *path* with *mode*, in place of a dead predecessor's.

    Only for the one process that has the right to the path: a shard that its supervisor started, or the supervisor that
    has the directory's lock.
    """
    sock = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK)
    try:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        # The mode is there with the socket, and not a moment later.
        previous = os.umask(0o777 & ~mode)
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


def is_served(path: Path) -> bool:
    """Whether a living process listens on the Unix socket at *path*."""
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except BlockingIOError:
            # Its backlog is full (EAGAIN, unix(7)): it is there and does not accept, as a stopped process does after
            # a hundred questions.
            return True
        except OSError:
            return False
        return True
