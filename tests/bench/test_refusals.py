"""The benchmark of refusals with tiny numbers, against the real product."""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from bench.children import ROOT
from bench.measure import NotMeasuredError
from bench.refusals import Figures, Kind, kinds, measure_refused
from bench.targets import shardgate
from supervisor.config.model import Config


def test_benchmark_measures_every_kind_of_content_beside_ordinary_registrations(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"

    done = subprocess.run(
        [sys.executable, "-m", "bench.refusals", "--rounds", "1", "--registrations", "16", "--json", str(figures)],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    found = msgspec.json.decode(figures.read_bytes(), type=Figures)
    assert {cost.kind for cost in found.costs} == {kind.name for kind in kinds()}
    assert found.ordinary_cpu_us > 0
    assert all(cost.cpu_us > 0 for cost in found.costs)


def test_kinds_are_as_long_as_a_registration_may_be() -> None:
    most = Config().max_registration_bytes
    sizes = {kind.name: 1 + len(kind.payload) for kind in kinds() if kind.name != "an ordinary one"}

    assert all(most * 0.9 < size <= most for size in sizes.values()), sizes


def test_a_registration_that_is_accepted_is_not_measured_as_refused(tmp_path: Path) -> None:
    accepted = Kind("accepted", 0x03, b'{"protocol_version":2,"agent_id":"waf-1"}', "auth_failed")

    with shardgate(tmp_path, 1) as target, pytest.raises(NotMeasuredError, match="refused with"):
        measure_refused(target, [accepted], 2)
