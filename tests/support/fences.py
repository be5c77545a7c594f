"""Fences against leaks: descriptors and processes."""

import os
from pathlib import Path


def descriptors(pid: int | None = None) -> dict[int, str]:
    """The open descriptors of a process, each with what it is."""
    folder = Path(f"/proc/{os.getpid() if pid is None else pid}/fd")
    found = {}
    for entry in folder.iterdir():
        try:
            found[int(entry.name)] = str(entry.readlink())
        except FileNotFoundError:
            continue  # The one that listed the folder.
    return found


def sockets(pid: int) -> int:
    """How many sockets a process has open."""
    return sum(target.startswith("socket:") for target in descriptors(pid).values())


def new_descriptors(before: dict[int, str]) -> list[str]:
    """What this process has open now and had not *before*."""
    return sorted(f"{fd}: {target}" for fd, target in descriptors().items() if before.get(fd) != target)


def processes_with(text: str) -> list[str]:
    """The command lines of running processes that contain *text*."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue
        if text in command:
            found.append(f"{entry.name} {command}")
    return found
