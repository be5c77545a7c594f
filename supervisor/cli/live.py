"""A text that is drawn again and again on the whole screen, until q or Ctrl-C."""

import contextlib
import select
import sys
import termios
import tty
from collections.abc import Callable, Iterator


def show(text: Callable[[], str], interval: float) -> None:
    """Draw *text* every *interval* seconds; returns on q, raises KeyboardInterrupt on Ctrl-C. Needs a terminal."""
    # rich costs as much time to import as all the rest of a command.
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(highlight=False, markup=False)
    with _keys() as pressed, Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(Text.from_ansi(text(), no_wrap=True, overflow="crop"), refresh=True)
            if pressed(interval) in ("q", "Q"):
                return


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """Take keys one by one, without their echo; what is yielded waits for one, and returns nothing in time."""
    if not sys.stdin.isatty():
        yield _no_key
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)

    def pressed(seconds: float) -> str:
        ready, _, _ = select.select([descriptor], [], [], seconds)
        return sys.stdin.read(1) if ready else ""

    try:
        yield pressed
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _no_key(seconds: float) -> str:
    select.select([], [], [], seconds)
    return ""
