"""The benchmark of a busy admin endpoint with tiny numbers, against the real product."""

import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from bench.admin import Figures
from bench.children import ROOT


def benchmark(*options: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "bench.admin", "--rounds", "1", "--registrations", "256", *options],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip


@pytest.mark.skipif(shutil.which("cc") is None, reason="the load generator needs a C compiler")
def test_benchmark_compares_busy_rounds_with_quiet_ones(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    done = benchmark("--json", str(figures))

    assert done.returncode == 0, done.stderr
    found = msgspec.json.decode(figures.read_bytes(), type=Figures)
    (pair,) = found.pairs
    assert pair.answers >= 20
    assert found.rate == pair.busy.per_s / pair.quiet.per_s
    assert found.cpu == pair.busy.cpu_us / pair.quiet.cpu_us
    assert len(found.budgets) == 2


@pytest.mark.skipif(shutil.which("cc") is None, reason="the load generator needs a C compiler")
def test_benchmark_fails_when_its_clients_get_no_answers() -> None:
    done = benchmark("--path", "/nowhere")
    assert done.returncode == 1
    assert "not measured: 30 clients got only 0 answers for /nowhere" in done.stderr
