"""Converts the figures to Prometheus metrics. Pure: `families` turns one value into another.

`metric_table` has the names, kinds, labels and meanings. This module assigns the values.
"""

import platform
from collections.abc import Callable, Iterator
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from dialout.proxy.errors import FailureCode
from ipc.histogram import BOUNDS, Histogram
from ipc.status import ShardRow, ShardState, SupervisorRow
from supervisor.admin.figures import Figures, process_name
from supervisor.admin.metric_table import METRICS, Kind
from supervisor.care import GAPS
from supervisor.totals import SHARD_LOST

_UP = (ShardState.RUNNING, ShardState.DRAINING)
_OUTCOMES = ("answered", *(code.value for code in FailureCode if code is not FailureCode.NO_SHARD), SHARD_LOST)

_END = b"# EOF\n"
"""The last line of OpenMetrics text."""

SLICE = 200
"""Samples that are written in one step. It takes a millisecond."""

_Add = Callable[..., None]
"""Adds a sample. The arguments are its value, then the values of the labels."""


def families(figures: Figures) -> list[Metric]:
    """All metrics of one moment, in the order of `METRICS`."""
    found = _empty_families()
    for _ in _fill(figures, found):
        pass
    return list(found.values())


def exposition(figures: Figures, accept: str) -> tuple[str, Iterator[bytes]]:
    """The content type for an ``Accept`` header, and the metrics in that form, in parts.

    Each part takes about a millisecond. With 64 shards all parts take 35 ms, in which no agent could be accepted.
    """
    encode, content_type = _form(accept)
    return content_type, _parts(figures, encode)


def content_type(accept: str) -> str:
    """The content type for an ``Accept`` header."""
    return _form(accept)[1]


def _form(accept: str) -> tuple[Callable[[Collector], bytes], str]:
    try:
        encode, chosen = choose_encoder(accept)
    except (TypeError, ValueError):
        # The version is malformed. The library compares it unchecked, in all releases up to 0.26 at least.
        return choose_encoder("")
    # The library repeats the requested version. Our header must not contain a client's arbitrary bytes.
    return (encode, chosen) if chosen.isascii() and chosen.isprintable() else choose_encoder("")


def _parts(figures: Figures, encode: Callable[[Collector], bytes]) -> Iterator[bytes]:
    found = _empty_families()
    for _ in _fill(figures, found):
        yield b""
    ending = b""
    for family in found.values():
        samples = family.samples
        for start in range(0, max(1, len(samples)), SLICE):
            family.samples = samples[start : start + SLICE]
            text = encode(_One(family))
            if text.endswith(_END):
                text, ending = text.removesuffix(_END), _END
            # HELP and TYPE come once, before all samples.
            yield text if start == 0 else text.split(b"\n", 2)[2]
    yield ending


class _One(Collector):
    """A collector of one metric, for the library's encoders."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterator[Metric]:
        yield self._family


def _empty_families() -> dict[str, Metric]:
    return {spec.name: _FAMILIES[spec.kind](spec.name, spec.help, labels=spec.labels) for spec in METRICS}


def _fill(figures: Figures, found: dict[str, Metric]) -> Iterator[None]:
    """Add all samples to the families, in steps."""

    def family(name: str) -> _Add:
        return _adder(found[name])

    _add_host(figures, family)
    _add_processes(figures, family)
    yield
    yield from _add_shards(figures, family)


def _add_host(figures: Figures, family: Callable[[str], _Add]) -> None:
    supervisor = figures.status.supervisor
    assert supervisor is not None
    family("shardgate_build_info")(1, supervisor.version, platform.python_version())
    family("shardgate_ready")(figures.readiness.status != "not ready")
    add = family("shardgate_shards")
    for state in ShardState:
        add(sum(row.state is state for row in figures.status.shards), state.value)
    family("shardgate_shards_wanted")(supervisor.shards_wanted)
    add = family("shardgate_listeners")
    for kind in ("uds", "tcp"):
        add(sum(listener.kind == kind for listener in figures.readiness.listeners), kind)
    add = family("shardgate_registrations_total")
    add(supervisor.accepted_total, "accepted")
    for code, number in supervisor.rejected_total.items():
        add(number, code)
    add(figures.not_agents, "not_an_agent")
    family("shardgate_silent_contacts_total")(supervisor.silent_total)
    family("shardgate_handshakes_reset_total")(supervisor.reset_total)
    for name, histogram in (
        ("handshake", figures.handshake_seconds),
        ("handoff", figures.handoff_seconds),
        ("registration", figures.registration_seconds),
        ("move", figures.move_seconds),
    ):
        family(f"shardgate_{name}_duration_seconds")(histogram)
    family("shardgate_handshakes_in_progress")(supervisor.handshakes)
    family("shardgate_held_descriptors")(supervisor.held_descriptors)
    add = family("shardgate_slots")
    add(figures.slots_reserved, "reserved")
    add(figures.slots_live, "live")
    family("shardgate_agents")(figures.agents)
    family("shardgate_max_connections_per_agent")(supervisor.max_connections_per_agent)
    family("shardgate_max_connections")(supervisor.max_connections or 0)
    family("shardgate_config_last_reload_successful")(supervisor.config_error is None)
    family("shardgate_config_last_reload_success_timestamp_seconds")(figures.loaded_at)
    add = family("shardgate_config_reloads_total")
    for result, number in figures.reloads.items():
        add(number, result)


def _add_shards(figures: Figures, family: Callable[[str], _Add]) -> Iterator[None]:
    for row in figures.status.shards:
        for name, value in (
            ("shard_up", row.state in _UP),
            ("shard_report_age_seconds", row.stale_s),
            ("shard_restarts_total", row.restarts),
            ("shard_connections", row.connections),
            ("shard_agents", row.agents),
            ("shard_prepared", row.prepared),
            ("shard_requests_in_flight", row.in_flight),
        ):
            family(f"shardgate_{name}")(value, str(row.id))
    for number, shard in sorted(figures.shards.items()):
        label, totals = str(number), shard.totals
        add = family("shardgate_requests_total")
        for outcome in dict.fromkeys((*_OUTCOMES, *totals.requests)):
            add(totals.requests.get(outcome, 0), label, outcome)
        add = family("shardgate_request_duration_seconds")
        add(totals.latency.answered, label, "answered")
        add(totals.latency.failed, label, "failed")
        for name, value in (
            ("requests_relayed", totals.relayed),
            ("late_answers", totals.late),
            ("connections_adopted", totals.adopted),
            ("connections_closed", totals.closed),
            ("connections_moved", totals.moved),
            ("frames_received", totals.frames),
        ):
            family(f"shardgate_{name}_total")(value, label)
        add = family("shardgate_bus_gaps_repaired_total")
        for kind in GAPS:
            add(shard.gaps.get(kind, 0), label, kind)
        yield


def _add_processes(figures: Figures, family: Callable[[str], _Add]) -> None:
    supervisor = figures.status.supervisor
    assert supervisor is not None
    cpu = family("shardgate_process_cpu_seconds_total")
    cpu(supervisor.cpu_seconds, process_name(None))
    for number, shard in sorted(figures.shards.items()):
        cpu(shard.totals.cpu_seconds, process_name(number))
    add = family("shardgate_process_start_time_seconds")
    for name, seconds in figures.started_at.items():
        add(seconds, name)
    processes: dict[str, SupervisorRow | ShardRow] = {process_name(None): supervisor}
    processes |= {process_name(row.id): row for row in figures.status.shards if row.descriptor_limit}
    for name, process in processes.items():
        family("shardgate_process_resident_memory_bytes")(process.rss_bytes, name)
        family("shardgate_process_open_fds")(process.descriptors, name)
        family("shardgate_process_max_fds")(process.descriptor_limit, name)
        family("shardgate_process_disk_problems")(len(process.problems), name)
        family("shardgate_process_file_write_failures_total")(process.write_failures_total, name)
        family("shardgate_process_files_mended_total")(process.mended_total, name)
        family("shardgate_process_loop_lag_seconds")(process.lag_ms / 1000, name)


_FAMILIES: dict[Kind, Callable[..., Metric]] = {
    "gauge": GaugeMetricFamily,
    "counter": CounterMetricFamily,
    "histogram": HistogramMetricFamily,
}


def _adder(family: Metric) -> _Add:
    def add(value: float | Histogram, *labels: str) -> None:
        if isinstance(family, HistogramMetricFamily):
            assert isinstance(value, Histogram)
            family.add_metric(labels, _cumulative(value), value.seconds)
        else:
            assert isinstance(family, GaugeMetricFamily | CounterMetricFamily)
            assert not isinstance(value, Histogram)
            family.add_metric(labels, float(value))

    return add


def _cumulative(histogram: Histogram) -> list[tuple[str, float]]:
    """Prometheus' buckets: the number of durations up to each bound."""
    names = [*(f"{bound:g}" if bound < 1 else f"{bound}" for bound in BOUNDS), "+Inf"]
    return list(zip(names, accumulate(histogram.counts), strict=True))
