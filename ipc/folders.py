"""Makes folders with fixed modes, independent of the umask of the process."""

from pathlib import Path

PARENTS_MODE = 0o755
"""Other users may pass through the folder, and only its user may change it. Entries have their own modes."""


def make_private(path: Path) -> None:
    """Make a missing folder with mode 0700, and its missing parents with 0755. Raises OSError.

    A umask of 0 would let every user rename the entries. A umask of 0077 would lock out the group of a status
    directory.
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
        # Begin with 0700, so that no other user can add a file before the mode is right.
        path.mkdir(mode=0o700)
    except FileExistsError:
        if not path.is_dir():
            raise
    else:
        path.chmod(mode)
