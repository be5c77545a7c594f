"""Edits a file of tokens while other processes read it and edit it.

An edit holds an exclusive flock on the file, so two edits never start from the same content. It replaces the file by a
new one in one rename, so no reader sees half of it. The rename exchanges the very file that other edits wait to lock.
An edit that gets the lock therefore checks that the file at the path is still the one that it opened. If not, it opens
the new file and locks that.

Comments, blank lines and lines that cannot be read stay as they are. So do owner, group and mode.
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
"""Seconds to wait for the lock. An edit takes a millisecond."""


def edit_token_file(path: str, change: Callable[[list[str]], list[str]], *, create: bool = False) -> list[Problem]:
    """Replace the lines of the file at *path* by the result of *change*. If *change* raises, the file stays unchanged.

    With *create*, a missing file is made first, empty and with mode 0600. The new file is read as a start reads it,
    before it replaces the old one. So an edit never turns a valid file into one that a start refuses. Returns the
    problems of older lines: a start refuses the file because of them. Raises ConfigError when the file cannot be used.
    """
    # A symbolic link stays. Its target is replaced.
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
    """Return the tokens of a file with their line numbers. Lines that cannot be read are left out."""
    return read_token_lines(split_lines(read_text(path, decides=False)), path).tokens


def token_in(line: str) -> Token | None:
    """Return the token of a line; None for a comment, a blank line, or a line that cannot be read."""
    return next((token for _, token in read_token_lines([line], "").tokens), None)


def _refuse_odd(path: str, lines: list[str]) -> None:
    """Refuse a file in which programs disagree about the ends of lines: an edit could change its meaning."""
    odd = [problem for problem in read_token_lines(lines, path).problems if not problem.where]
    if odd:
        raise ConfigError(odd)


def _faults(lines: list[str]) -> set[str]:
    """Return the lines that a start refuses."""
    return {lines[problem.line - 1].rstrip() for problem in read_token_lines(lines, "").problems if problem.line}


@contextlib.contextmanager
def _locked(path: str, target: str) -> Iterator[os.stat_result]:
    """Hold the lock on the file that is at *target* now. Yields its status."""
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
            # If the rename reached the disk before the data, a crash could leave an empty file, without a token.
            os.fsync(descriptor)
        left = _read_back(path, part, faults)
        part.rename(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    _sync_folder(part.parent)
    return left


def _read_back(path: str, part: Path, faults: set[str]) -> list[Problem]:
    """Read the new file as a start does. Return the problems of old lines; raise ConfigError for a new problem."""
    lines = split_lines(read_text(str(part)))
    problems = read_token_lines(lines, path).problems
    for problem in problems:
        if problem.line is None or lines[problem.line - 1].rstrip() not in faults:
            raise ConfigError([msgspec.structs.replace(problem, hint="nothing was changed")])
    return problems


def _sync_folder(folder: Path) -> None:
    """Write the rename to disk, so that a power failure does not bring a revoked token back: fsync(2)."""
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
