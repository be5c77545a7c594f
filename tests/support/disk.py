"""A file system that refuses to take anything, on demand: for one folder, with any error."""

import os
from pathlib import Path

from support.product import environment

CODE = Path(__file__).parent / "disk_fault"


class Disk:
    """The switch of faults at a path *switch*, for processes with `variables` in their environment."""

    def __init__(self, switch: Path) -> None:
        self._switch = switch

    @property
    def variables(self) -> dict[str, str]:
        """What turns the switch's processes into ones that it works for."""
        path = os.pathsep.join([str(CODE), environment()["PYTHONPATH"]])
        return {"PYTHONPATH": path, "TEST_DISK_FAULT": str(self._switch)}

    def fail(self, error: str, folder: Path) -> None:
        """Have everything fail with *error*, as ``ENOSPC``, that would change something in *folder*."""
        self._switch.symlink_to(f"{error}:{folder}")

    def mend(self) -> None:
        """Have everything work again."""
        self._switch.unlink(missing_ok=True)
