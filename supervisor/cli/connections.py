"""``shardgate connections``: lists the connections of the agents in all shards."""

import time

import click
import msgspec

from ipc.rundir import RuntimeDir
from ipc.status import ConnectionRow
from supervisor import words
from supervisor.cli import asking, output
from supervisor.cli.options import examples, json_option, runtime_dir_option, shard_option, timeout_option
from supervisor.cli.output import Cell, Column
from supervisor.merge import ConnectionEntry, merge_connections

_COLUMNS = (
    Column("CONNECTION"),
    Column("AGENT"),
    Column("SHARD", numeric=True),
    Column("TRANSPORT", gives_way=2),
    Column("PEER", gives_way=1),
    Column("DIALECT", gives_way=4),
    Column("CONNECTED AT", gives_way=3),
    Column("IN-FLIGHT", numeric=True),
    Column("METADATA", gives_way=5, shortest=12),
)


@click.command(
    "connections",
    short_help="List the agents' connections.",
    epilog=examples(
        "shardgate connections", "shardgate connections --agent waf-1", "shardgate connections --transport tcp --json"
    ),
)
@click.option("--agent", metavar="ID", help="Only the connections of this agent.")
@shard_option("Only the connections in this shard.")
@click.option("--transport", type=click.Choice(["uds", "tcp"]), help="Only connections over it.")
@runtime_dir_option
@json_option
@timeout_option("1.5s", "to wait for answers")
def command(
    agent: str | None, shard: int | None, transport: str | None, rundir: RuntimeDir, as_json: bool, timeout: float
) -> None:
    """List the connections of the agents: shard, peer, and requests in flight of each."""
    shards = asking.living_shards(rundir, shard)
    pages = asking.collect_pages(
        rundir, shards, "connections", {"after": 0, "agent": agent}, ConnectionEntry, lambda entry: entry.n, timeout
    )
    rows = [row for row in merge_connections(pages.entries) if transport in (None, row.transport)]
    if as_json:
        output.print_json(rows)
    elif rows:
        colour = output.use_colour()
        now = time.time()
        click.echo(output.table(_COLUMNS, (_cells(row, now) for row in rows), output.terminal_width(), colour=colour))
    else:
        output.note("no connection")
    asking.warn_of_silence(pages.silent, timeout)


def _cells(row: ConnectionRow, now: float) -> list[Cell]:
    metadata = "" if row.metadata is None else msgspec.json.encode(row.metadata).decode()
    return [
        Cell(words.safe(row.connection_id, words.LONGEST_CONNECTION_ID)),
        Cell(words.safe(row.agent_id)),
        Cell(str(row.shard)),
        Cell(words.safe(row.transport)),
        Cell(words.safe(row.peer)),
        Cell(words.safe(row.dialect)),
        Cell(words.moment_of(row.connected_at, now)),
        Cell(f"{row.in_flight:,}"),
        Cell(words.safe(metadata, 60)),
    ]
