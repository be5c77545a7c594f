"""Folders as Kubernetes mounts them."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from supervisor.config import access


@pytest.mark.parametrize(("flags", "objections"), [(0, 1), (os.ST_RDONLY, 0)], ids=["writable", "read-only"])
def test_folder_that_everybody_may_write_is_fine_on_a_read_only_mount_alone(
    flags: int, objections: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A ConfigMap's volume: a folder of mode 0777, a folder for each version, and links to the newest.
    volume = tmp_path / "config"
    version = volume / "..2026_01_01"
    version.mkdir(parents=True)
    (version / "shardgate.kdl").write_text("")
    (volume / "..data").symlink_to(version.name)
    file = volume / "shardgate.kdl"
    file.symlink_to("..data/shardgate.kdl")
    volume.chmod(0o777)
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_flag=flags))

    found = access.access_problems(str(file), file.stat())

    assert len([one for one in found if str(volume) in one.message]) == objections
