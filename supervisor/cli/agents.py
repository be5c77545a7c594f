"""``shardgate agents``: lists the agents of the whole host."""

import click
import msgspec

from ipc import query
from ipc.rundir import RuntimeDir
from ipc.status import AgentRow
from supervisor import words
from supervisor.cli import asking, output
from supervisor.cli.options import examples, json_option, runtime_dir_option, shard_option, timeout_option
from supervisor.cli.output import Cell, Column
from supervisor.config.patterns import AgentPatterns
from supervisor.merge import AgentEntry, merge_agents

_COLUMNS = (
    Column("AGENT"),
    Column("CONNECTIONS", numeric=True),
    Column("LIMIT", numeric=True, gives_way=2),
    Column("IN-FLIGHT", numeric=True, gives_way=1),
    Column("HEALTHY"),
    Column("SHARD:CONNECTIONS", gives_way=3, shortest=17),
)


class _Limit(msgspec.Struct):
    max_connections_per_agent: int


class _Supervisor(msgspec.Struct):
    supervisor: _Limit


@click.command(
    "agents",
    short_help="List the agents.",
    epilog=examples("shardgate agents", "shardgate agents --unhealthy", "shardgate agents 'waf-*' --shard 1 --json"),
)
@click.argument("pattern", required=False, metavar="[AGENT-PATTERN]")
@shard_option("Only agents with connections in this shard, and only what is there.")
@click.option("--unhealthy", is_flag=True, help="Only agents that fail, or say that they are not well.")
@runtime_dir_option
@json_option
@timeout_option("1.5s", "to wait for answers")
def command(
    pattern: str | None, shard: int | None, unhealthy: bool, rundir: RuntimeDir, as_json: bool, timeout: float
) -> None:
    """List the agents with their connections in each shard.

    AGENT-PATTERN selects by id; * stands for anything, as in waf-* (quote it for the shell).
    """
    try:
        patterns = AgentPatterns([pattern or "*"])
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="AGENT-PATTERN") from None
    shards = asking.living_shards(rundir, shard)
    limit = _limit(rundir, timeout)
    pages = asking.collect_pages(
        rundir, shards, "agents", {"after": ""}, AgentEntry, lambda entry: entry.agent_id, timeout
    )
    rows = [
        row
        for row in merge_agents(pages.entries, limit)
        if patterns.matches(row.agent_id) and not (unhealthy and row.healthy)
    ]
    if as_json:
        output.print_json(rows)
    elif rows:
        colour = output.use_colour()
        click.echo(output.table(_COLUMNS, map(_cells, rows), output.terminal_width(), colour=colour))
    else:
        of_kind = "unhealthy agent" if unhealthy else "agent"
        output.note(f"no {of_kind} matches {words.safe(pattern)}" if pattern else f"no {of_kind} is connected")
    asking.warn_of_silence(pages.silent, timeout)


def _limit(rundir: RuntimeDir, timeout: float) -> int | None:
    path = rundir.supervisor_query
    answer = query.ask_many([path], "status", timeout=timeout).get(path)
    return None if answer is None else asking.understood(answer, _Supervisor).supervisor.max_connections_per_agent


def _cells(row: AgentRow) -> list[Cell]:
    return [
        Cell(words.safe(row.agent_id)),
        Cell(f"{row.connections:,}"),
        Cell("-" if row.limit is None else f"{row.limit:,}"),
        Cell(f"{row.in_flight:,}"),
        Cell("yes") if row.healthy else Cell("no", "red"),
        Cell(" ".join(f"{shard}:{connections}" for shard, connections in row.shards.items())),
    ]
