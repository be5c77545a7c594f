"""The whole benchmark with tiny numbers, against the real product."""

import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from bench.children import ROOT
from bench.dispatch import Figures


@pytest.mark.skipif(shutil.which("cc") is None, reason="the load generator needs a C compiler")
def test_benchmark_measures_every_route(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    in_flight = ["--in-flight", "64"]

    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "bench.dispatch",
            "--rounds",
            "1",
            "--requests",
            "256",
            *in_flight,
            "--json",
            str(figures),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )

    assert done.returncode == 0, done.stderr
    found = msgspec.json.decode(figures.read_bytes(), type=Figures)
    ours = {"pool", "pool, with cancels", "PoolClient", "PoolClient, with cancels"}
    plain = {"streams on asyncio", "streams on uvloop"}
    assert {(s.route, s.in_flight) for s in found.summaries} == {(route, 64) for route in ours | plain}
    assert {r.other for r in found.ratios} == plain
    assert len(found.budgets) == 4
    assert done.stdout.count("| PoolClient ") == 1
