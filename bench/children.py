"""Child processes of a benchmark that answer questions line by line."""

import contextlib
import select
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

__all__ = ["ROOT", "Child", "ChildError"]

#: The repository: children start here, so that `python -m` finds its packages.
ROOT = Path(__file__).parent.parent
STOP_TIMEOUT_S = 10.0


class ChildError(Exception):
    """A child has ended or is silent; the message carries the end of what it wrote to stderr."""


class Child:
    """A process with a question-and-answer conversation on its stdin and stdout."""

    def __init__(self, name: str, process: subprocess.Popen[str], stderr: IO[bytes]) -> None:
        self._name = name
        self._process = process
        self._stderr = stderr

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @classmethod
    @contextlib.contextmanager
    def start(cls, name: str, command: Sequence[str]) -> Iterator["Child"]:
        """Starts `command`; on leaving, ends it by the end of its input, or kills it when that does not help."""
        with (
            tempfile.TemporaryFile() as stderr,
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True, cwd=ROOT
            ) as process,
        ):
            try:
                yield cls(name, process, stderr)
            finally:
                assert process.stdin
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()
                try:
                    process.wait(STOP_TIMEOUT_S)
                except subprocess.TimeoutExpired:
                    process.kill()

    def ask(self, line: str, timeout_s: float) -> str:
        """Sends one line and returns the line that answers it. Raises `ChildError`."""
        assert self._process.stdin
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as ended:
            raise self._error("has ended") from ended
        return self.read_line(timeout_s)

    def read_line(self, timeout_s: float) -> str:
        """The next line of its output. Raises `ChildError`."""
        assert self._process.stdout
        readable, _, _ = select.select([self._process.stdout], [], [], timeout_s)
        if not readable:
            raise self._error(f"said nothing for {timeout_s:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise self._error("has ended")
        return line

    def _error(self, what: str) -> ChildError:
        self._stderr.seek(0)
        said = self._stderr.read()[-2000:].decode(errors="replace").strip()
        return ChildError(f"the {self._name} {what}" + (f"; it wrote:\n{said}" if said else ""))
