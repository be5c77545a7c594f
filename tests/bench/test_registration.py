"""The whole benchmark with tiny numbers, against the real product."""

import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from bench.children import ROOT
from bench.registration import Figures

PRODUCT = [sys.executable, "-m", "shardgate"]


def product_starts() -> bool:
    """Whether this checkout has the commands that the benchmark calls."""
    return all(
        subprocess.run([*PRODUCT, command, "--help"], cwd=ROOT, capture_output=True, check=False).returncode == 0
        for command in ("run", "status")
    )


@pytest.mark.skipif(shutil.which("cc") is None, reason="the load generator needs a C compiler")
@pytest.mark.skipif(not product_starts(), reason="this checkout has no `shardgate run` and `status`")
def test_benchmark_measures_the_product_beside_both_plain_listeners(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    tiny = ["--rounds", "1", "--registrations", "64", "--idle", "64"]

    done = subprocess.run(
        [sys.executable, "-m", "bench.registration", *tiny, "--json", str(figures)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )

    assert done.returncode == 0, done.stderr
    found = msgspec.json.decode(figures.read_bytes(), type=Figures)
    names = {"shardgate", "streams on asyncio", "streams on uvloop"}
    assert {(s.target, s.in_handshake) for s in found.summaries} == {(n, k) for n in names for k in (16, 128)}
    assert {m.target for m in found.memory} == names
    assert done.stdout.count("| shardgate ") >= 3


@pytest.mark.skipif(shutil.which("cc") is None, reason="the load generator needs a C compiler")
def test_benchmark_measures_what_log_lines_cost(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.registration", "--logs", "--rounds", "1", "--registrations", "64"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert [line.split()[1] for line in done.stdout.splitlines()[2:]] == ["16", "128"]
