"""Figures as metrics: complete, documented once, and in a form that Prometheus' own tool accepts."""

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from prometheus_client.registry import Collector

from dialout import ErrorCode
from dialout.proxy.errors import FailureCode
from ipc.histogram import BOUNDS, Histogram
from ipc.status import ListenerRow, RequestLatency, ShardRow, ShardState, SupervisorRow
from supervisor.admin.figures import Figures, ShardFigures
from supervisor.admin.metric_table import METRICS
from supervisor.admin.metrics import SLICE, exposition, families
from supervisor.admin.readiness import grade
from supervisor.merge import Status
from supervisor.totals import ShardTotals

PROMTOOL = shutil.which("promtool")
DOCUMENT = Path(__file__).parents[3] / "METRICS.md"


def histogram_of(*seconds: float) -> Histogram:
    found = Histogram()
    for one in seconds:
        found.observe(one)
    return found


def figures(**changes: Any) -> Figures:
    supervisor = SupervisorRow(
        pid=1, state="running", uptime_s=5.0, version="1.2.3",
        listeners=[ListenerRow("uds", "/a"), ListenerRow("tcp", "b")],
        accepted_total=7, rejected_total={code.value: 1 for code in ErrorCode}, handshakes=2, held_descriptors=3,
        config_file=None, config_loaded_at="2026-01-01T00:00:00Z", config_error=changes.pop("config_error", None),
        max_connections_per_agent=4, shards_wanted=2, cpu_seconds=1.5, rss_bytes=1000, descriptors=10,
        descriptor_limit=100, lag_ms=2.5,
    )  # fmt: skip
    rows = [
        ShardRow(
            id=0, pid=10, state=ShardState.RUNNING, connections=4, agents=2, in_flight=1, restarts=1, prepared=1,
            rss_bytes=2000, descriptors=20, descriptor_limit=200, lag_ms=1.0, stale_s=0.3,
        ),
        ShardRow(id=1, pid=None, state=ShardState.DOWN, restarts=3),
    ]  # fmt: skip
    totals = ShardTotals(
        requests={"answered": 5, "request_timeout": 2, "a_newer_code": 1}, relayed=1, late=2, adopted=3, closed=4,
        moved=5, frames=6, cpu_seconds=7.5, latency=RequestLatency(histogram_of(0.0001, 0.02, 99), histogram_of(30)),
    )  # fmt: skip
    found = Figures(
        status=Status(supervisor=supervisor, shards=rows),
        readiness=grade(state="running", wanted=2, rows=rows, takers=[0], listeners=supervisor.listeners),
        shards={
            0: ShardFigures(totals=totals, gaps={"events": 1, "counts": 2, "doubt": 3}),
            5: ShardFigures(totals=ShardTotals(requests={"answered": 9}, cpu_seconds=2.0)),
        },
        slots_live=4, slots_reserved=1, agents=2, not_agents=6, handshake_seconds=histogram_of(0.001),
        handoff_seconds=histogram_of(0.002), registration_seconds=histogram_of(0.003, 0.004),
        move_seconds=histogram_of(), loaded_at=1000.0, reloads={"success": 1, "failure": 2},
        started_at={"supervisor": 500.0, "shard-0": 501.0},
    )  # fmt: skip
    for name, value in changes.items():
        setattr(found, name, value)
    return found


def render(figures: Figures, accept: str) -> tuple[str, bytes]:
    content_type, parts = exposition(figures, accept)
    return content_type, b"".join(parts)


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {(s.name, frozenset(s.labels.items())): s.value for family in parse_text(text) for s in family.samples}


def value(found: dict[tuple[str, frozenset[tuple[str, str]]], float], name: str, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


def test_every_metric_of_the_table_is_there_with_its_kind_and_labels_and_no_other() -> None:
    found = {family.name: family for family in families(figures())}

    assert {spec.name.removesuffix("_total") for spec in METRICS} == found.keys()
    for spec in METRICS:
        family = found[spec.name.removesuffix("_total")]
        assert (family.type, family.documentation) == (spec.kind, spec.help)
        assert family.samples, spec.name
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(spec.labels), spec.name


def test_names_follow_the_conventions() -> None:
    for spec in METRICS:
        assert re.fullmatch(r"shardgate_[a-z_]+", spec.name)
        assert spec.name.endswith("_total") == (spec.kind == "counter")
        assert spec.kind != "histogram" or spec.name.endswith("_duration_seconds")
        assert spec.help.endswith(".")
    assert len({spec.name for spec in METRICS}) == len(METRICS)


def test_values_are_those_of_the_figures() -> None:
    found = samples(render(figures(), "")[1].decode())

    assert value(found, "shardgate_build_info", version="1.2.3", python=platform.python_version()) == 1
    assert value(found, "shardgate_ready") == 1
    assert value(found, "shardgate_shards", state="running") == value(found, "shardgate_shards", state="down") == 1
    assert value(found, "shardgate_shards", state="unhealthy") == 0
    assert value(found, "shardgate_registrations_total", result="accepted") == 7
    assert value(found, "shardgate_registrations_total", result="not_an_agent") == 6
    assert {labels for name, labels in found if name == "shardgate_registrations_total"} == {
        frozenset({("result", result)}) for result in ("accepted", "not_an_agent", *ErrorCode)
    }
    assert value(found, "shardgate_slots", state="reserved") == 1
    assert value(found, "shardgate_config_last_reload_successful") == 1
    assert value(found, "shardgate_shard_up", shard="0") == 1
    assert value(found, "shardgate_shard_up", shard="1") == 0
    assert value(found, "shardgate_shard_report_age_seconds", shard="0") == 0.3
    assert value(found, "shardgate_requests_total", shard="0", outcome="a_newer_code") == 1
    assert value(found, "shardgate_requests_total", shard="5", outcome="answered") == 9
    assert value(found, "shardgate_process_cpu_seconds_total", process="shard-5") == 2
    assert value(found, "shardgate_process_loop_lag_seconds", process="supervisor") == 0.0025
    assert value(found, "shardgate_bus_gaps_repaired_total", shard="0", kind="doubt") == 3


def test_every_failure_code_has_a_sample_before_it_happens() -> None:
    found = samples(render(figures(), "")[1].decode())
    outcomes = {dict(labels)["outcome"] for name, labels in found if name == "shardgate_requests_total"}

    assert outcomes >= {code.value for code in FailureCode} - {"no_shard"} | {"answered", "shard_lost"}


def test_buckets_are_cumulative_and_end_with_all() -> None:
    found = samples(render(figures(), "")[1].decode())
    name, labels = "shardgate_request_duration_seconds", {"shard": "0", "outcome": "answered"}
    buckets = [
        value(found, f"{name}_bucket", **labels, le=f"{bound:g}" if bound < 1 else f"{bound}") for bound in BOUNDS
    ]

    assert buckets == [1.0] * 7 + [2.0] * 10
    assert value(found, f"{name}_bucket", **labels, le="+Inf") == value(found, f"{name}_count", **labels) == 3
    assert value(found, f"{name}_sum", **labels) == pytest.approx(99.0201)


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text; version=1.0.0"])
def test_many_shards_are_written_in_parts_and_say_the_same(accept: str) -> None:
    many = figures()
    many.shards = dict.fromkeys(range(64), many.shards[0])
    parts = list(exposition(many, accept)[1])
    text = b"".join(parts).decode()

    class Whole(Collector):
        def collect(self) -> Iterator[Metric]:
            yield from families(many)

    assert text == choose_encoder(accept)[0](Whole()).decode()
    assert max(part.count(b"\n") for part in parts) <= SLICE + 2
    assert len(parts) > 64


def test_process_that_is_gone_keeps_its_counters_and_loses_its_gauges() -> None:
    found = samples(render(figures(), "")[1].decode())

    assert value(found, "shardgate_shard_restarts_total", shard="1") == 3
    assert not [name for name, labels in found if ("process", "shard-1") in labels]
    assert not [name for name, labels in found if name.startswith("shardgate_shard_") and ("shard", "5") in labels]


def test_failed_reload_and_a_host_that_takes_nobody_are_told() -> None:
    bad = figures(config_error="shardgate.kdl:3: no")
    bad.readiness = grade(state="stopping", wanted=2, rows=[], takers=[], listeners=[])
    found = samples(render(bad, "")[1].decode())

    assert value(found, "shardgate_config_last_reload_successful") == value(found, "shardgate_ready") == 0
    assert value(found, "shardgate_listeners", kind="uds") == 0


def test_openmetrics_is_spoken_where_it_is_asked_for() -> None:
    content_type, content = render(figures(), "application/openmetrics-text; version=1.0.0, text/plain;q=0.5")

    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    assert content.endswith(b"# EOF\n")
    parsed = parse_openmetrics(content.decode())  # type: ignore[no-untyped-call]
    assert {family.name for family in parsed} == {spec.name.removesuffix("_total") for spec in METRICS}


@pytest.mark.parametrize(
    "accept", ["*/*", "text/plain;version=x", "application/openmetrics-text; version=x.y", ";;;,,", "text/html"]
)
def test_strange_wish_for_a_form_gets_one_all_the_same(accept: str) -> None:
    content_type, content = render(figures(), accept)

    assert content_type.startswith(("text/plain", "application/openmetrics-text"))
    assert b"shardgate_build_info" in content


def test_promtool_accepts_what_is_rendered() -> None:
    if PROMTOOL is None:
        assert not os.environ.get("CI"), "CI installs promtool (Debian: prometheus)"
        pytest.skip("there is no promtool here (Debian: prometheus)")
    done = subprocess.run(
        [PROMTOOL, "check", "metrics"], input=render(figures(), "")[1], capture_output=True, check=False, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_document_has_the_same_table() -> None:
    rows = re.findall(r"^\| `(shardgate_\w+)` \| (\w+) \| (.*?) \| (.*) \|$", DOCUMENT.read_text(), re.MULTILINE)

    assert rows == [
        (spec.name, spec.kind, ", ".join(f"`{label}`" for label in spec.labels), spec.help) for spec in METRICS
    ]
    for bound in BOUNDS:
        assert f" {bound:g}" in DOCUMENT.read_text()
