"""Opens standard input, output and error when they are closed, before the process opens any other file.

A process may be started with one of them closed (cron, an init script, ``2>&-``). Then the next opened file gets that
number, and log lines would go to an agent's socket. This module is light, because entry points import it first.
"""

import os
import sys

_NAMES = ("stdin", "stdout", "stderr")


def open_standard() -> None:
    """Open /dev/null for each closed descriptor of 0 to 2, for this process and its children."""
    for fd, name in enumerate(_NAMES):
        try:
            os.fstat(fd)
        except OSError:
            # open(2) returns the lowest free number: *fd*, as all lower ones are open by now. A child inherits it.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            # Python sets None for a descriptor that was closed at its start.
            mode = "r" if fd == 0 else "w"
            setattr(sys, name, open(fd, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 - a descriptor
