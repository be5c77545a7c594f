"""Folders have the mode that they are to have, whatever the umask."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipc.folders import make_private
from ipc.rundir import RuntimeDir
from ipc.status_dir import create_status_dir


@pytest.fixture(params=[0o000, 0o002, 0o022, 0o077, 0o777], ids="{:04o}".format)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.usefixtures("umask")
def test_parents_of_a_runtime_directory_are_open_to_pass_and_closed_to_change(folder: Path) -> None:
    folder.chmod(0o711)
    RuntimeDir(folder / "a/b/run").create()
    assert [mode(folder / path) for path in ("a", "a/b", "a/b/run")] == [0o755, 0o755, 0o700]
    create_status_dir(str(folder / "a/c/status"), 0o750, None)
    assert [mode(folder / path) for path in ("a/c", "a/c/status")] == [0o755, 0o2750]
    assert mode(folder) == 0o711, "what was there stays as it is"


def test_a_folder_that_is_there_is_left_alone_and_a_file_is_not_taken_for_one(tmp_path: Path) -> None:
    folder, file = tmp_path / "folder", tmp_path / "file"
    folder.mkdir(mode=0o755)
    file.touch()
    make_private(folder)
    assert mode(folder) == 0o755
    for path in (file, file / "below"):
        with pytest.raises(OSError, match=r"exists|Not a directory"):
            make_private(path)
