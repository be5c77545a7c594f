"""Reads the small text files of an operator. Every failure is a ConfigError with a clear message."""

import os
import stat

from supervisor.config.access import access_problems
from supervisor.config.errors import ConfigError, Problem

MAX_FILE_BYTES = 1024 * 1024


def read_text(path: str, *, decides: bool = True) -> str:
    """Read a UTF-8 text file of at most 1 MiB; a byte order mark is dropped. Raises ConfigError.

    *decides* means that the file decides about agents. It is then refused when other users could change it, see
    `access`.

    Only regular files are read. A pipe or a device at the path would make the start hang. The checks look at the open
    descriptor, so the file cannot be exchanged between check and read.
    """

    def refuse(message: str, hint: str | None = None, line: int | None = None) -> ConfigError:
        return ConfigError([Problem(path, line, "", message, hint)])

    try:
        # O_NONBLOCK: opening a FIFO without a writer would block until a writer opens it.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise refuse(f"cannot be read: {reason}") from None
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise refuse("is a directory, expected a file")
        if not stat.S_ISREG(status.st_mode):
            raise refuse("is not a regular file")
        if decides and (problems := access_problems(path, status)):
            raise ConfigError(problems)
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise refuse(f"cannot be read: {error.strerror}") from None
    finally:
        os.close(descriptor)
    if len(data) > MAX_FILE_BYTES:
        raise refuse(f"is larger than {MAX_FILE_BYTES} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise refuse("is not UTF-8", "save it as UTF-8", line) from None
