"""Unix sockets in the runtime directory and the status directory."""

import contextlib
import os
import socket
from pathlib import Path


def bind_private(path: Path, kind: socket.SocketKind, mode: int = 0o600) -> socket.socket:
    """Bind a non-blocking socket of *kind* to *path* with *mode*, in place of an old file there.

    Only for the process that has the right to the path: a shard started by its supervisor, or the supervisor that holds
    the directory's lock.
    """
    sock = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK)
    try:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        # The umask sets the mode at the moment when bind(2) makes the file.
        previous = os.umask(0o777 & ~mode)
        try:
            sock.bind(os.fspath(path))
        finally:
            os.umask(previous)
    except OSError as error:
        sock.close()
        if error.errno is None:
            raise  # Python's own error, for a path that is too long. Its text gives the reason.
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
            # The backlog is full (EAGAIN, unix(7)): a process listens but does not accept, such as a stopped process
            # after a hundred questions.
            return True
        except OSError:
            return False
        return True
