"""``shardgate top``: shows the changing status and the busiest agents."""

import time
from collections.abc import Sequence

import click
import msgspec

from ipc import query
from ipc.rundir import RuntimeDir
from supervisor.cli import asking, output
from supervisor.cli.errors import CommandError, ExitCode
from supervisor.cli.options import Duration, examples, runtime_dir_option, timeout_option
from supervisor.cli.output import Cell, Column
from supervisor.cli.status import screen_text
from supervisor.words import safe

_COLUMNS = (
    Column("AGENT"),
    Column("FRAMES/S", numeric=True),
    Column("IN-FLIGHT", numeric=True),
    Column("CONNECTIONS", numeric=True),
    Column("SHARDS", gives_way=1),
)


_AROUND = 4
"""Lines around the agents: an empty line, the headings, another empty line, and the key that ends."""

_LEAST_AGENTS = 3
"""Fewest lines for agents. On a small screen rows of shards are left out instead."""


class _Busy(msgspec.Struct, array_like=True):
    """An agent in one shard: its id, connections, requests in flight, and the total of frames that it sent."""

    agent_id: str
    connections: int
    in_flight: int
    frames: int


class _Row(msgspec.Struct):
    """An agent, summed over all shards of the host."""

    agent_id: str
    connections: int = 0
    in_flight: int = 0
    frames: int = 0
    per_s: float = 0.0
    shards: list[int] = []


@click.command(
    "top",
    short_help="Watch the shards, and the busiest agents.",
    epilog=examples("shardgate top", "shardgate top --interval 5s --agents 30"),
)
@click.option("--interval", type=Duration(), default="2s", show_default=True, metavar="TIME", help="Between two looks.")
@click.option(
    "--agents", type=click.IntRange(0, 200), default=15, show_default=True, metavar="N", help="How many at most."
)
@runtime_dir_option
@timeout_option("1.5s", "to wait for answers; slower shards appear with their last report")
def command(interval: float, agents: int, rundir: RuntimeDir, timeout: float) -> int:
    """Watch the supervisor, its shards and the busiest agents, until q or Ctrl-C.

    The busiest agents send the most frames, which are mostly answers to requests. Without a terminal use
    'status --watch'.
    """
    if not output.terminal_width():
        raise CommandError(ExitCode.USAGE, "standard output is no terminal; use 'shardgate status --watch'")
    from supervisor.cli.live import show

    busiest = _Busiest(rundir, agents, timeout)

    def text() -> str:
        collected = asking.collect_status(rundir, timeout)
        shards = [row.id for row in collected.status.shards if row.pid is not None]
        height = output.screen_height()
        if height is None:
            return f"{screen_text(rundir, collected, None)}\n\n{busiest.table(shards, agents)}\n\nq ends"
        above = screen_text(rundir, collected, height - _AROUND - _LEAST_AGENTS)
        room = max(_LEAST_AGENTS, height - above.count("\n") - 1 - _AROUND)
        return f"{above}\n\n{busiest.table(shards, min(agents, room))}\n\nq ends"

    show(text, interval)
    return ExitCode.OK


class _Busiest:
    """The agents with the most frames between two looks."""

    def __init__(self, rundir: RuntimeDir, most: int, timeout: float) -> None:
        self._rundir, self._most, self._timeout = rundir, most, timeout
        self._before: dict[str, int] = {}
        self._looked_at = 0.0

    def table(self, shards: Sequence[int], most: int) -> str:
        """Return a table of the *most* busiest agents. Each of *shards* is asked for more, and figures are summed."""
        rows = self._look(shards)
        now = time.monotonic()
        seconds = now - self._looked_at
        for row in rows:
            row.per_s = max(0, row.frames - self._before.get(row.agent_id, row.frames)) / seconds
        self._before, self._looked_at = {row.agent_id: row.frames for row in rows}, now
        rows.sort(key=lambda row: (-row.per_s, -row.in_flight, -row.frames, row.agent_id))
        cells = [_cells(row) for row in rows[:most]]
        return output.table(_COLUMNS, cells, output.terminal_width(), colour=output.use_colour())

    def _look(self, shards: Sequence[int]) -> list[_Row]:
        paths = {self._rundir.shard_query(shard): shard for shard in shards}
        try:
            answers = query.ask_many(paths, "busiest", {"limit": 20 * self._most}, timeout=self._timeout)
        except query.QueryError:
            return []
        rows: dict[str, _Row] = {}
        for path, answer in answers.items():
            for busy in asking.understood(answer, list[_Busy]):
                row = rows.setdefault(busy.agent_id, _Row(busy.agent_id))
                row.connections += busy.connections
                row.in_flight += busy.in_flight
                row.frames += busy.frames
                row.shards.append(paths[path])
        return list(rows.values())


def _cells(row: _Row) -> list[Cell]:
    return [
        Cell(safe(row.agent_id)),
        Cell(f"{row.per_s:,.0f}"),
        Cell(f"{row.in_flight:,}"),
        Cell(f"{row.connections:,}"),
        Cell(" ".join(map(str, sorted(row.shards)))),
    ]
