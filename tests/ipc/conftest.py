"""Child processes, an event loop as the product runs it, and a fence against leaks."""

import asyncio
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import uvloop
from support.fences import descriptors, new_descriptors
from support.product import environment, short_folder

from ipc.bus import close_context

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


class Loop:
    """Runs scenarios on uvloop; *errors* is what reached the loop's exception handler. It must be empty at the end."""

    def __init__(self) -> None:
        self.errors: list[dict[str, Any]] = []

    def run(self, scenario: Coroutine[Any, Any, None]) -> None:
        """Run *scenario* to its end."""

        async def bounded() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda _, context: self.errors.append(context))
            async with asyncio.timeout(40):
                await scenario

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(bounded())

    async def until(self, condition: Callable[[], object], what: str) -> None:
        """Run the loop until *condition* holds; AssertionError after 10 seconds."""
        try:
            async with asyncio.timeout(10):
                while not condition():  # noqa: ASYNC110 - what would set an event is what is tested
                    await asyncio.sleep(0.001)
        except TimeoutError:
            raise AssertionError(f"waited 10 s for {what}; errors of the loop: {self.errors}") from None

    async def turns(self, count: int) -> None:
        """Let the loop turn *count* times, so that everything that is ready happens."""
        for _ in range(count):
            await asyncio.sleep(0)


@pytest.fixture(scope="session")
def warm() -> None:
    """Open what libuv keeps for as long as the process lives: a pipe for signals."""
    uvloop.new_event_loop().close()


@pytest.fixture(autouse=True)
def fence(warm: None) -> Iterator[None]:
    """No test leaves a descriptor behind."""
    before = descriptors()
    yield
    close_context()
    assert new_descriptors(before) == []


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a path short enough for Unix sockets."""
    with short_folder() as path:
        yield path


@pytest.fixture
def start() -> Iterator[Callable[..., Child]]:
    """Start Python processes: ``start(code, *arguments, keep=descriptors)``. They are gone at the end."""
    children: list[Child] = []

    def start(code: str, *arguments: object, keep: Sequence[int] = ()) -> Child:
        children.append(Child(code, *arguments, keep=keep))
        return children[-1]

    yield start
    for child in children:
        child.end()


@pytest.fixture
def loop() -> Iterator[Loop]:
    """An event loop for scenarios."""
    loop = Loop()
    yield loop
    assert loop.errors == []
