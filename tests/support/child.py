"""Child processes that run a piece of Python and tell what they see, line by line."""

import asyncio
import subprocess
import sys
from collections.abc import Callable, Sequence

from support.product import environment

CHILD_PRELUDE = '''
import os


def become_ordinary():
    """Give up root for good. Everything must be imported by now: the interpreter may lie in root's home."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)


def open_descriptors():
    """How many there are, without /proc: it is closed to a process that gave up root."""
    found = 0
    for fd in range(4096):
        try:
            os.fstat(fd)
        except OSError:
            continue
        found += 1
    return found
'''


class Child:
    """A Python process that runs *code* and inherits *keep*; its lines on standard output are what it tells."""

    def __init__(self, code: str, *arguments: object, keep: Sequence[int] = ()) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", CHILD_PRELUDE + code, *map(str, arguments)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(), text=True,
            pass_fds=keep,
        )  # fmt: skip
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._stdin, self._stdout = self.process.stdin, self.process.stdout

    @property
    def pid(self) -> int:
        """Its pid."""
        return self.process.pid

    def line(self) -> str:
        """The next line that it prints; AssertionError when it ended instead."""
        line = self._stdout.readline()
        assert line, f"the child ended with {self.process.wait()}"
        return line.rstrip("\n")

    async def told(self) -> str:
        """The next line that it prints, without keeping the loop from running."""
        return await asyncio.to_thread(self.line)

    def say(self, line: str) -> None:
        """Give it a line on standard input."""
        self._stdin.write(f"{line}\n")
        self._stdin.flush()

    def kill(self) -> None:
        """Kill it (-9) and wait until it is gone."""
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """Kill it if it still runs, and close its pipes."""
        self.kill()
        self._stdin.close()
        self._stdout.close()


StartChild = Callable[..., Child]
"""Starts one: ``start(code, *arguments, keep=descriptors)``."""
