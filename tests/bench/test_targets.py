"""Targets that do not start, and the plain listener's account of itself."""

import sys
from pathlib import Path

import pytest

from bench import targets


def test_shardgate_target_says_what_the_product_wrote_when_it_does_not_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(targets, "command", lambda: [sys.executable, "-c", "raise SystemExit('no such option')"])

    with pytest.raises(targets.TargetError, match="no such option"), targets.shardgate(tmp_path):
        pytest.fail("it started")


def test_streams_target_says_what_the_listener_wrote_when_it_does_not_start(tmp_path: Path) -> None:
    with (
        pytest.raises(targets.TargetError, match="No such file or directory"),
        targets.streams(tmp_path / "nowhere", "asyncio"),
    ):
        pytest.fail("it started")


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_streams_target_is_an_empty_pool_of_one_process_at_first(loop: str, tmp_path: Path) -> None:
    with targets.streams(tmp_path, "uvloop" if loop == "uvloop" else "asyncio") as target:
        pool = target.pool()

    assert (pool.connections, pool.accepted_total, len(pool.pids)) == (0, 0, 1)
