"""Child processes, an event loop as the product runs it, and a fence against leaks."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import uvloop
from support.child import Child, StartChild
from support.fences import descriptors, new_descriptors
from support.loop import Loop
from support.product import short_folder

from ipc.bus import close_context


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
def start() -> Iterator[StartChild]:
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
