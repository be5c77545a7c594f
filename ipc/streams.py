"""Standard input, output and error, made sure of before anything else is opened.

A process that is started with one of them closed (cron, an init script, ``2>&-``) gives its number to the next file
that it opens: log lines would go to an agent's socket. Light, because an entry point imports it first.
"""

import os
import sys

_NAMES = ("stdin", "stdout", "stderr")


def open_standard() -> None:
    """Open /dev/null in place of those of the descriptors 0 to 2 that are closed, for this process and its children."""
    for fd, name in enumerate(_NAMES):
        try:
            os.fstat(fd)
        except OSError:
            # The lowest number that is free, and so this one: those below are open by now. A child inherits it.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            # Python leaves None for a descriptor that was closed at its start.
            mode = "r" if fd == 0 else "w"
            setattr(sys, name, open(fd, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 - a descriptor
