"""Making folders whose modes do not depend on the umask of the program that made them."""

from pathlib import Path

PARENTS_MODE = 0o755
"""Others may pass through to what is below, which has a mode of its own; only the user may change it."""


def make_private(path: Path) -> None:
    """Make a folder 0700, if it is not there, and those above it 0755. Raises OSError.

    A umask of 0 would let every user rename what is below; one of 0077 would lock out the group of a status directory.
    """
    missing = []
    parent = path.parent
    while not parent.exists():
        missing.append(parent)
        parent = parent.parent
    for folder in reversed(missing):
        _make(folder, PARENTS_MODE)
    _make(path, 0o700)


def _make(path: Path, mode: int) -> None:
    try:
        # 0700 first: no user puts anything into a folder before its mode is right.
        path.mkdir(mode=0o700)
    except FileExistsError:
        if not path.is_dir():
            raise
    else:
        path.chmod(mode)
