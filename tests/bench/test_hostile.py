"""The benchmark of hostile agents with tiny numbers, against the real product."""

import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from bench.attackers import ATTACKS
from bench.children import ROOT
from bench.hostile import Attacked, Figures, budgets
from dialout import FrameDecoder

LARGE, SMALL = "dear numbers in an answer", "small frames of no known type"


def attacked(attack: str, times: float, max_ms: float) -> Attacked:
    """What was noticed of an attack."""
    return Attacked(attack, 100.0, 100.0 * times, times, 1.0, max_ms, 1.0, 1)


@pytest.mark.skipif(shutil.which("cc") is None, reason="the load generator needs a C compiler")
def test_benchmark_measures_latency_beside_an_attack(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    few = ["--rounds", "1", "--seconds", "0.5", "--requests", "64"]

    done = subprocess.run(
        [sys.executable, "-m", "bench.hostile", *few, "--attack", LARGE, "--attack", SMALL, "--json", str(figures)],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=55,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    found = msgspec.json.decode(figures.read_bytes(), type=Figures)
    assert [one.attack for one in found.attacks] == [LARGE, SMALL]
    assert all(one.sent_mb > 0 for one in found.attacks)
    assert len(found.budgets) == 2


def test_budgets_are_those_of_the_worst_attack() -> None:
    median, longest = budgets([attacked("a", 1.0, 300.0), attacked("b", 3.5, 20.0)])
    assert ("(b)" in median.what, median.kept) == (True, False)
    assert ("(a)" in longest.what, longest.kept) == (True, False)
    assert all(budget.kept for budget in budgets([attacked("a", 2.9, 249.0)]))


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_attacks_get_past_the_limit_of_a_frame(name: str) -> None:
    decoder = FrameDecoder(1024 * 1024)
    frames = decoder.feed(ATTACKS[name])
    assert bool(frames) != (decoder.wanted > 0)
