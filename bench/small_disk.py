"""A file system of a few megabytes that can be filled: what a full disk is to a program that writes to it."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

__all__ = ["SmallDisk"]

SIZE = "4m"


class SmallDisk:
    """A tmpfs mounted at a folder. Only root can mount one: see `can_be`."""

    can_be = os.geteuid() == 0

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def at(cls, path: Path) -> "SmallDisk":
        """Mount one at *path*, which it makes; CalledProcessError where the kernel does not let us."""
        path.mkdir(mode=0o700)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=0700", "shardgate-bench", path], check=True)
        return cls(path)

    def remove(self) -> None:
        """Unmount it, also when a process that ends holds a file of it."""
        subprocess.run(["umount", "--lazy", self.path], check=True)

    @contextlib.contextmanager
    def full(self) -> Iterator[None]:
        """Fill it, to the last byte, and free it again."""
        ballast = self.path / "ballast"
        try:
            with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while file.write(bytes(4096)):
                    pass
            yield
        finally:
            ballast.unlink(missing_ok=True)
