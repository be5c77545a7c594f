"""Editing a file of tokens while others read it, and while others edit it.

An edit holds an exclusive flock on the file, so that no two are made of the same beginning, and puts a new file in the
place of the old one in one step, so that no reader sees a half. That exchanges the very file that others wait to lock:
who gets the lock looks whether the file at the path is still the one that he has opened, and begins anew if not.

Comments, blank lines and lines that cannot be read stay as they are; so do owner, group and mode.
"""

import contextlib
import fcntl
import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from supervisor.config.access import access_problems
from supervisor.config.errors import ConfigError, Problem
from supervisor.config.files import MAX_FILE_BYTES, read_text
from supervisor.config.lines import join_lines, split_lines
from supervisor.config.model import Token
from supervisor.config.tokens import read_token_lines

LOCK_LIMIT = 10.0
"""Seconds to wait for others; an edit takes a millisecond."""


def edit_token_file(path: str, change: Callable[[list[str]], list[str]], *, create: bool = False) -> list[Problem]:
    """Replace the lines of the file at *path* by what *change* makes of them; it may raise, and nothing is changed.

    With *create* a file that is not there begins empty, mode 0600. Before the new file takes the place of the old one,
    it is read as a start reads it: an edit never makes a good file one that is refused. Returns the problems of lines
    that were there before, for which a start refuses the file. Raises ConfigError when the file cannot be used.
    """
    # The target of a symbolic link is what is replaced, not the link.
    target = os.path.realpath(path)
    if problems := access_problems(path, None):
        raise ConfigError(problems)
    if create:
        with contextlib.suppress(FileExistsError), _explained(path):
            os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    with _locked(path, target) as status:
        before = split_lines(read_text(target))
        _refuse_odd(path, before)
        after = join_lines(change([*before]))
        with _explained(path):
            return _replace(path, target, after, _faults(before), status)


def tokens_with_lines(path: str) -> list[tuple[int, Token]]:
    """The tokens of a file with their line numbers; lines that cannot be read are left out."""
    return read_token_lines(split_lines(read_text(path, decides=False)), path).tokens


def token_in(line: str) -> Token | None:
    """The token of a line; None for a comment, a blank line, or one that cannot be read."""
    return next((token for _, token in read_token_lines([line], "").tokens), None)


def _refuse_odd(path: str, lines: list[str]) -> None:
    """Refuse a file in which programs disagree about where lines end: an edit could not keep what its author meant."""
    odd = [problem for problem in read_token_lines(lines, path).problems if not problem.where]
    if odd:
        raise ConfigError(odd)


def _faults(lines: list[str]) -> set[str]:
    """The lines that a start refuses."""
    return {lines[problem.line - 1].rstrip() for problem in read_token_lines(lines, "").problems if problem.line}


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


def _replace(path: str, target: str, text: str, faults: set[str], status: os.stat_result) -> list[Problem]:
    data = text.encode()
    if len(data) > MAX_FILE_BYTES:
        message = f"would grow to {len(data)} bytes, and a start reads at most {MAX_FILE_BYTES}"
        raise ConfigError(
            [Problem(path, None, "", message, "nothing was changed; revoke tokens, or begin another file")]
        )
    part = Path(f"{target}.{secrets.token_hex(8)}.part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            if (status.st_uid, status.st_gid) != (os.geteuid(), os.getegid()):
                os.fchown(descriptor, status.st_uid, status.st_gid)
            os.fchmod(descriptor, status.st_mode & 0o7777)
            # A rename that reaches the disk before the data would leave an empty file: no agent could register.
            os.fsync(descriptor)
        left = _read_back(path, part, faults)
        part.rename(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    _sync_folder(part.parent)
    return left


def _read_back(path: str, part: Path, faults: set[str]) -> list[Problem]:
    """Read the new file as a start does. Only what was wrong before may be wrong in it, and is returned."""
    lines = split_lines(read_text(str(part)))
    problems = read_token_lines(lines, path).problems
    for problem in problems:
        if problem.line is None or lines[problem.line - 1].rstrip() not in faults:
            raise ConfigError([msgspec.structs.replace(problem, hint="nothing was changed")])
    return problems


def _sync_folder(folder: Path) -> None:
    """Have the new name on the disk, so that a revoked token does not come back with a power failure: fsync(2)."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError:
        # Some file systems cannot do this for a folder (EINVAL); the edit itself has succeeded.
        pass
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _explained(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, FileExistsError):
            raise
        raise ConfigError([Problem(path, None, "", f"cannot be changed: {error.strerror}")]) from None
