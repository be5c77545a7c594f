"""Side files: what cannot be written now is written later, and nothing that is asked for raises."""

import errno
import os
import stat
from pathlib import Path

import pytest
from support.loop import Loop, scenario

from ipc import replacing, side_files
from ipc.side_files import SideFiles


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []

    class Log:
        def error(self, event: str, **_: object) -> None:
            lines.append(event)

        info = warning = error

    monkeypatch.setattr(side_files, "get_logger", Log)
    return lines


@scenario
async def test_what_cannot_be_written_is_written_when_it_can_be_with_its_newest_content(
    loop: Loop, tmp_path: Path, logged: list[str]
) -> None:
    files, folder = SideFiles(), tmp_path / "gone"
    assert not files.write(folder / "a", b"1")
    assert not files.write(folder / "b", b"1")
    assert not files.write(folder / "a", b"2")
    assert len(files.problems) == 2
    assert "No such file" in files.problems[0]
    folder.mkdir()
    await loop.until(lambda: files.problems == [], "both to be written")
    assert ((folder / "a").read_bytes(), (folder / "b").read_bytes()) == (b"2", b"1")
    assert stat.S_IMODE((folder / "a").stat().st_mode) == replacing.MODE
    # Said once for both, counted for each attempt.
    assert logged.count("file cannot be written, trying again") == 1
    assert logged.count("file written again") == 2
    assert files.failures_total >= 2
    assert sorted(path.name for path in folder.iterdir()) == ["a", "b"]
    files.close()
    assert not files.write(folder / "a", b"3")


@scenario
async def test_what_others_remove_is_written_again_and_what_was_removed_here_is_not(
    loop: Loop, tmp_path: Path, logged: list[str]
) -> None:
    files = SideFiles()
    for name in ("a", "b"):
        assert files.write(tmp_path / name, name.encode())
        (tmp_path / name).unlink()
    files.remove(tmp_path / "b", tmp_path / "never-there")
    files.look()
    assert os.listdir(tmp_path) == ["a"]  # noqa: PTH208 - names are enough
    (tmp_path / "folder").mkdir()
    files.remove(tmp_path / "folder")
    assert (files.failures_total, logged) == (1, ["file cannot be removed"])
    files.close()


def test_without_room_for_a_second_file_the_first_one_is_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "numbers"
    replacing.replace(path, b"123456")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "rename", full)
    replacing.replace(path, b"200")
    assert int(path.read_bytes()) == 200
    with pytest.raises(OSError, match="No space"):
        replacing.replace(path, b"x" * 100_000)
    with pytest.raises(OSError, match="No space"):
        replacing.replace(tmp_path / "new", b"1")
    assert int(path.read_bytes()) == 200
    assert [one.name for one in tmp_path.iterdir()] == ["numbers"]


def test_part_that_another_user_has_put_there_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / f"a.{os.getpid()}.part").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        replacing.replace(tmp_path / "a", b"1")
    assert not (tmp_path / "elsewhere").exists()
