"""A measurement that did not take place is no figure."""

import shutil
from pathlib import Path

import msgspec
import pytest

from bench import loadgen
from bench.measure import NotMeasuredError, measure_memory, measure_round, path_faults
from bench.targets import Pool, streams

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="the load generator needs a C compiler")

BEFORE = Pool(connections=0, accepted_total=5, pids=frozenset({1, 2, 3}), per_shard={0: 0, 1: 0})
AFTER = Pool(connections=100, accepted_total=105, pids=frozenset({1, 2, 3}), per_shard={0: 60, 1: 40})
REPORT = loadgen.Registered(
    cpu_user_s=0,
    cpu_system_s=0,
    lost=0,
    asked=100,
    in_handshake=16,
    accepted=100,
    refused=0,
    failed=0,
    first_failure=None,
    seconds=1,
    p50_us=1,
    p90_us=1,
    p99_us=1,
    max_us=1,
    connect_retries=0,
    held=100,
)


def test_path_has_no_fault_when_all_went_through_it() -> None:
    assert path_faults(BEFORE, AFTER, REPORT) == []


@pytest.mark.parametrize(
    ("after", "report", "fault"),
    [
        ({"connections": 99}, {}, "99 connections in the pool"),
        ({"accepted_total": 104}, {}, "99 acceptances counted"),
        ({"restarts": 1}, {}, "replaced"),
        ({"pids": frozenset({1, 2, 4})}, {}, "replaced"),
        ({"per_shard": {0: 88, 1: 12}}, {}, "shard 1 was not used"),
        ({}, {"accepted": 99, "refused": 1, "first_failure": "nope"}, "nope"),
        ({}, {"lost": 1}, "closed by the listener"),
    ],
)
def test_path_has_a_fault(after: dict[str, object], report: dict[str, object], fault: str) -> None:
    found = path_faults(BEFORE, msgspec.structs.replace(AFTER, **after), msgspec.structs.replace(REPORT, **report))

    assert len(found) == 1
    assert fault in found[0]


@needs_compiler
def test_round_measures_and_leaves_an_empty_pool(tmp_path: Path) -> None:
    with streams(tmp_path, "uvloop") as listener, loadgen.start(listener.address) as generator:
        found = measure_round(listener, generator, registrations=40, in_handshake=4)
        left = listener.pool()

    assert (found.registrations, found.in_handshake, left.connections, left.accepted_total) == (40, 4, 0, 40)
    assert found.cpu_us > 0
    # The kernel adds up a running process at its ticks, 4 ms apart: closing so few may be in none.
    assert found.close_cpu_us >= 0
    assert found.generator_cpu_us > 0


@needs_compiler
def test_round_is_not_measured_when_agents_are_refused(tmp_path: Path) -> None:
    with (
        streams(tmp_path, "asyncio") as listener,
        loadgen.start(listener.address, per_id=8) as generator,
        pytest.raises(NotMeasuredError, match="too many connections"),
    ):
        measure_round(listener, generator, registrations=16, in_handshake=4)


@needs_compiler
def test_memory_of_idle_connections_is_that_of_the_held_ones(tmp_path: Path) -> None:
    with streams(tmp_path, "asyncio") as listener, loadgen.start(listener.address) as generator:
        found = measure_memory(listener, generator, connections=1500)

    assert found.with_bytes - found.before_bytes == pytest.approx(found.bytes_per_connection * 1500)
    assert found.bytes_per_connection > 1000
