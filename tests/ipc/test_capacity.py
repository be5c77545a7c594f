"""How much there may be: what a host gives, and what all processes agree on."""

import os
from pathlib import Path

import pytest

from ipc import capacity
from ipc.capacity import MAX_SHARDS, default_shards, processor_quota

V2 = "0::/system.slice/shardgate.service\n"
V1 = "5:cpuset:/other\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n"


@pytest.mark.parametrize(
    ("groups", "files", "processors"),
    [
        (V2, {"system.slice/shardgate.service/cpu.max": "150000 100000\n"}, 1.5),
        (V2, {"system.slice/shardgate.service/cpu.max": "max 100000\n"}, None),
        # The groups above have a say, and the lowest counts.
        (V2, {"system.slice/cpu.max": "200000 100000", "system.slice/shardgate.service/cpu.max": "max 100000"}, 2),
        (V2, {"system.slice/cpu.max": "200000 100000", "system.slice/shardgate.service/cpu.max": "50000 50000"}, 1),
        # A container that has a namespace of its own, and one whose own path is not there.
        ("0::/\n", {"cpu.max": "300000 100000"}, 3),
        ("0::/../../docker/abc\n", {"cpu.max": "300000 100000"}, 3),
        (V1, {"cpu,cpuacct/cpu.cfs_quota_us": "250000\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"}, 2.5),
        (V1, {"cpu/docker/abc/cpu.cfs_quota_us": "25000\n", "cpu/docker/abc/cpu.cfs_period_us": "100000\n"}, 0.25),
        (V1, {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        # What cannot be read is no quota.
        (V2, {"cpu.max": "much of it\n"}, None),
        (V2, {"cpu.max": "100000 0\n"}, None),
        (V2, {}, None),
        ("", {"cpu.max": "max"}, None),
    ],
)
def test_the_quota_of_control_groups_is_found(
    groups: str, files: dict[str, str], processors: float | None, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert processor_quota(groups, tmp_path) == processors


@pytest.mark.parametrize(
    ("allowed", "quota", "shards"),
    [(96, None, MAX_SHARDS), (96, 70.0, MAX_SHARDS), (8, None, 8), (8, 1.5, 2), (8, 0.1, 1), (2, 16.0, 2)],
)
def test_the_default_is_a_shard_for_each_processor_that_may_be_used(
    allowed: int, quota: float | None, shards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(allowed)))
    monkeypatch.setattr(capacity, "processor_quota", lambda: quota)
    assert default_shards() == shards
