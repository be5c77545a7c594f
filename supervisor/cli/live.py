"""Draws a changing text on the whole screen, until q or Ctrl-C."""

import contextlib
import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Callable, Iterator

import click

from supervisor.cli import output


def show(text: Callable[[], str], interval: float) -> None:
    """Draw *text* every *interval* seconds. Returns on q and on Ctrl-C. Needs a terminal.

    A terminal without escape sequences gets each text below the one before it.
    """
    with _drawing() as draw, _interrupts() as interrupts, _keys() as keys:
        while True:
            draw(text())
            ready, _, _ = select.select([interrupts, *keys], [], [], interval)
            # An empty read means that the terminal is gone. It ends the loop as q does.
            if interrupts in ready or any(_says_end(os.read(descriptor, 64)) for descriptor in ready):
                return


@contextlib.contextmanager
def _drawing() -> Iterator[Callable[[str], None]]:
    """Yield the function that draws a text."""
    if output.is_dumb():
        # rich would draw nothing on such a terminal.
        yield lambda text: click.echo(f"{text}\n")
        return
    # The import of rich takes as long as the rest of a command.
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(highlight=False, markup=False)
    with Live(console=console, screen=True, auto_refresh=False) as live:
        yield lambda text: live.update(Text.from_ansi(text, no_wrap=True, overflow="crop"), refresh=True)


def _says_end(typed: bytes) -> bool:
    return not typed or b"q" in typed.lower()


@contextlib.contextmanager
def _interrupts() -> Iterator[int]:
    """Yield a descriptor that becomes readable on Ctrl-C.

    KeyboardInterrupt is not used. Python swallows it when it is raised in a finaliser, and the objects of the queries
    are often being finalised. The screen would go on.
    """
    reading, writing = os.pipe()
    before = signal.signal(signal.SIGINT, lambda _number, _frame: os.write(writing, b"i"))
    try:
        yield reading
    finally:
        signal.signal(signal.SIGINT, before)
        os.close(reading)
        os.close(writing)


@contextlib.contextmanager
def _keys() -> Iterator[list[int]]:
    """Switch the terminal to single keys without echo. Yield the descriptors to read keys from."""
    if not sys.stdin.isatty():
        yield []
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    try:
        yield [descriptor]
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
