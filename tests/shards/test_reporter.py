"""The shard's end of the bus: what it does with what it does not understand."""

from typing import Any

from structlog.testing import capture_logs
from support.engine import on_loop
from support.pools import until
from support.product import short_folder

from ipc import events
from ipc.bus import Bus, close_context
from ipc.events import Counts, Probe
from ipc.rundir import RuntimeDir
from ipc.status import RequestLatency, ShardReport
from shards.reporter import Reporter

ARRAY_OF_A_NEWER_TAG = b"\x92\xcc\xc8\x01"


def report() -> ShardReport:
    """A report of nothing."""
    numbers: dict[str, Any] = dict.fromkeys(ShardReport.__struct_fields__, 0)
    return ShardReport(**numbers | {"failed_total": {}})


@on_loop
async def test_commands_and_counts_of_another_version_are_passed_over_and_the_next_ones_are_not() -> None:
    with short_folder() as folder:
        rundir = RuntimeDir(folder)
        rundir.create()
        peers: list[bytes] = []
        supervisor = Bus.router(lambda parts: peers.append(parts[0]))
        supervisor.bind(rundir.bus)
        published = Bus.publisher()
        published.bind(rundir.counts)
        commands: list[events.Command] = []
        counts: list[Counts] = []
        reporter = Reporter(rundir, "shard-0/e", commands.append, counts.append, report, RequestLatency)
        reporter.start()
        await until(lambda: peers)
        with capture_logs() as lines:
            for data in (ARRAY_OF_A_NEWER_TAG, b"garbage", events.encode(Probe(1, "waf"))):
                supervisor.send(peers[0], data)
            await until(lambda: commands)
        assert commands == [Probe(1, "waf")]
        assert [line["event"].partition(";")[0] for line in lines] == ["command not understood"] * 2

        def heard() -> bool:
            published.send(b"garbage")
            published.send(events.encode(Counts(1, {})))
            return bool(counts)

        await until(heard)
        assert counts[0] == Counts(1, {})
        reporter.close()
        supervisor.close()
        published.close()
    close_context()
