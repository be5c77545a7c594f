"""Editing a file of tokens while others read it, and while others edit it.

An edit holds an exclusive flock on the file, so that no two are made of the same beginning, and puts a new file in the
place of the old one in one step, so that no reader sees a half. That exchanges the very file that others wait to lock:
who gets the lock looks whether the file at the path is still the one that he has opened, and begins anew if not.

Comments, blank lines and lines that cannot be read stay as they are; so do owner, group and mode.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from supervisor.config.errors import ConfigError, Problem
from supervisor.config.files import read_text
from supervisor.config.model import Token
from supervisor.config.tokens import parse_token_line

LOCK_LIMIT = 10.0
"""Seconds to wait for others; an edit takes a millisecond."""


def edit_token_file(path: str, change: Callable[[list[str]], list[str]], *, create: bool = False) -> None:
    """Replace the lines of the file at *path* by what *change* makes of them; it may raise, and nothing is changed.

    With *create* a file that is not there begins empty, mode 0600. Raises ConfigError when the file cannot be used.
    """
    # The target of a symbolic link is what is replaced, not the link.
    target = os.path.realpath(path)
    if create:
        with contextlib.suppress(FileExistsError), _explained(path):
            os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    with _locked(path, target) as status:
        before = read_text(target, refuse_world_writable=True)
        after = change(before.splitlines())
        with _explained(path):
            _replace(target, "".join(f"{line}\n" for line in after).encode(), status)


def tokens_with_lines(path: str) -> list[tuple[int, Token]]:
    """The tokens of a file with their line numbers; lines that cannot be read are left out."""
    found = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        token = token_in(line)
        if token is not None:
            found.append((number, token))
    return found


def token_in(line: str) -> Token | None:
    """The token of a line; None for a comment, a blank line, or one that cannot be read."""
    text = line.strip()
    if not text or text.startswith("#"):
        return None
    try:
        return parse_token_line(text)
    except ValueError:
        return None


@contextlib.contextmanager
def _locked(path: str, target: str) -> Iterator[os.stat_result]:
    """Hold the lock on the file that is at *target* now; yields its status."""
    deadline = time.monotonic() + LOCK_LIMIT
    while True:
        with _explained(path):
            descriptor = os.open(target, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            _lock(descriptor, path, deadline)
            status = os.fstat(descriptor)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(status, os.stat(target)):  # noqa: PTH116 - beside fstat
                    yield status
                    return
        finally:
            os.close(descriptor)


def _lock(descriptor: int, path: str, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                problem = f"somebody else has held its lock for {LOCK_LIMIT:g} s"
                raise ConfigError([Problem(path, None, "", problem, "'fuser' shows who has it open")]) from None
            time.sleep(0.005)
        else:
            return


def _replace(target: str, data: bytes, status: os.stat_result) -> None:
    part = Path(f"{target}.{os.getpid()}.part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            if (status.st_uid, status.st_gid) != (os.geteuid(), os.getegid()):
                os.fchown(descriptor, status.st_uid, status.st_gid)
            os.fchmod(descriptor, status.st_mode & 0o7777)
            # A rename that reaches the disk before the data would leave an empty file: nobody could register.
            os.fsync(descriptor)
        part.rename(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _explained(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, FileExistsError):
            raise
        raise ConfigError([Problem(path, None, "", f"cannot be changed: {error.strerror}")]) from None
