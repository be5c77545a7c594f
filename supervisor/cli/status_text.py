"""The text form of a status: a few lines about the supervisor, then a table of the shards."""

from collections.abc import Iterator, Sequence

from ipc.status import ShardRow, ShardState, SupervisorRow
from supervisor.cli.output import Cell, Column, folded, styled, table
from supervisor.merge import Status, problems
from supervisor.words import count, duration, moment_of, safe, size

_COLUMNS = (
    Column("SHARD", numeric=True),
    Column("STATE"),
    Column("PID", numeric=True, gives_way=1),
    Column("UPTIME", numeric=True, gives_way=5),
    Column("CONNECTIONS", numeric=True),
    Column("AGENTS", numeric=True, gives_way=2),
    Column("IN-FLIGHT", numeric=True),
    Column("REQ/S", numeric=True, gives_way=6),
    Column("LAG", numeric=True, gives_way=8),
    Column("FDS", numeric=True, gives_way=9),
    Column("RSS", numeric=True, gives_way=10),
    Column("CPU%", numeric=True, gives_way=7),
    Column("RESTARTS", numeric=True, gives_way=3),
    Column("LAST EVENT", gives_way=4, shortest=12),
)

_COLOURS = {
    ShardState.STARTING: "cyan",
    ShardState.RUNNING: "green",
    ShardState.DRAINING: "yellow",
    ShardState.UNHEALTHY: "red",
    ShardState.DOWN: "red",
}

_LONGEST_PROBLEM = 1000

_INDENT = 11
"""Columns of the heading in front of each line about the supervisor."""

_AROUND = 3
"""Lines around the rows of the shards: an empty line, the headings and the total."""

NEARLY_FULL = 0.8
"""Fraction of the descriptor limit above which the figure is red."""

SLOW_MS = 50.0
"""Milliseconds of lag of a shard's event loop above which the figure is yellow. Every request waits as long."""


def status_text(
    status: Status,
    *,
    runtime_dir: str,
    supervisor_silent: bool,
    width: int | None,
    height: int | None = None,
    colour: bool,
    now: float,
    held_by: int | None = None,
) -> str:
    """Lay out *status* as text, within *width* columns and *height* lines if they are given.

    *now* is in seconds of the epoch. *held_by* is the pid of a supervisor that runs without its sockets, so that it
    cannot be asked. If *height* is too small for all shards, the foremost are shown, see `_foremost`.
    """
    head: list[tuple[str, str | None]]
    if status.supervisor is not None:
        head = list(_supervisor_lines(status.supervisor, now))
    elif supervisor_silent:
        head = [(f"supervisor in {safe(runtime_dir)} does not answer", "red")]
    elif held_by is not None:
        text = (
            f"supervisor pid {held_by} runs and cannot be asked: its sockets in {safe(runtime_dir)} are gone;"
            " it makes them again within seconds, or its log says why not"
        )
        head = [(text, "red")]
    else:
        head = [(f"supervisor is down in {safe(runtime_dir)}; start it again with 'shardgate run'", "red")]
    head += [(f"problem    {safe(problem, _LONGEST_PROBLEM)}", "red") for problem in problems(status)]
    lines = [
        styled(line, its_colour, enabled=colour) for text, its_colour in head for line in folded(text, width, _INDENT)
    ]
    known = status.supervisor is not None
    shown = status.shards if height is None else _foremost(status.shards, height - len(lines) - _AROUND)
    rows = [_shard_cells(row, now, supervised=known) for row in shown]
    if len(status.shards) > 1:
        rows.append(_total_cells(status.shards, supervised=known))
    lines += ["", table(_COLUMNS, rows, width, colour=colour)]
    if len(shown) < len(status.shards):
        lines.append(f"not shown: {count('shard', len(status.shards) - len(shown))} with less to do")
    return "\n".join(lines)


def _foremost(rows: Sequence[ShardRow], most: int) -> Sequence[ShardRow]:
    """Choose the *most* important rows, at least one, in their order: shards that do not run, then the busiest.

    One line of *most* is left for the note about the rows that are not shown.
    """
    if len(rows) <= most:
        return rows
    by_need = sorted(
        rows, key=lambda row: (row.state is ShardState.RUNNING, -row.requests_per_s, -row.in_flight, -row.connections)
    )
    chosen = {row.id for row in by_need[: max(1, most - 1)]}
    return [row for row in rows if row.id in chosen]


def _supervisor_lines(row: SupervisorRow, now: float) -> Iterator[tuple[str, str | None]]:
    state = "" if row.state == "running" else f", {safe(row.state)}"
    yield (
        f"supervisor pid {row.pid}, version {safe(row.version)}, up {duration(row.uptime_s)}{state}{_resources(row)}",
        None,
    )
    source = safe(row.config_file) if row.config_file else "none, options only"
    yield f"config     {source}, loaded {moment_of(row.config_loaded_at, now)}", None
    for line in (row.config_error or "").splitlines():
        yield f"           not reloaded: {safe(line, _LONGEST_PROBLEM)}", "red"
    listeners = ", ".join(f"{safe(listener.kind)} {safe(listener.address)}" for listener in row.listeners)
    yield f"listening  {listeners or 'nowhere'}", None
    refused = {safe(code): number for code, number in row.rejected_total.items() if number}
    detail = ", ".join(f"{code} {number:,}" for code, number in sorted(refused.items()))
    kicked = f"; kicked {row.kicked_total:,}" if row.kicked_total else ""
    total = f"refused {sum(refused.values()):,}{f' ({detail})' if detail else ''}"
    yield f"accepted   {row.accepted_total:,}; {total}{kicked}", None
    if row.handshakes or row.held_descriptors:
        held = count("descriptor", row.held_descriptors)
        yield f"now        {count('handshake', row.handshakes)} in progress, {held} held", None
    if row.operation is not None and not row.operation.is_done:
        yield f"operation  {safe(row.operation.name)}: {safe(row.operation.step)}", None


def _resources(row: SupervisorRow) -> str:
    """Return the resources of the supervisor's process; empty when an older version does not report them."""
    if not row.descriptor_limit:
        return ""
    return (
        f", CPU {row.cpu_percent:.1f} %, {size(row.rss_bytes)},"
        f" {row.descriptors:,} of {row.descriptor_limit:,} descriptors"
    )


def _shard_cells(row: ShardRow, now: float, *, supervised: bool) -> list[Cell]:
    state = row.state.value
    if row.stale_s:
        state += f", stale {duration(row.stale_s)}"
    numbers: Sequence[str]
    if row.state is ShardState.DOWN:
        numbers = ["-"] * 7
    elif row.state is ShardState.UNHEALTHY and not supervised:
        # The shard runs and does not answer. Only the supervisor, which is down, had its numbers.
        numbers = ["?"] * 7
    else:
        numbers = [f"{row.connections:,}", f"{row.agents:,}", f"{row.in_flight:,}"]
        numbers += [f"{row.requests_per_s:,.0f}", f"{row.lag_ms:.1f} ms", _descriptors(row), f"{row.cpu_percent:.1f}"]
    connections, agents, in_flight, requests, lag, descriptors, cpu = numbers
    full = row.descriptor_limit > 0 and row.descriptors > NEARLY_FULL * row.descriptor_limit
    return [
        Cell(str(row.id)),
        Cell(state, _COLOURS[row.state]),
        Cell("-" if row.pid is None else str(row.pid)),
        Cell("-" if row.state is ShardState.DOWN else duration(row.uptime_s)),
        Cell(connections),
        Cell(agents),
        Cell(in_flight),
        Cell(requests),
        Cell(lag, "yellow" if row.lag_ms > SLOW_MS else None),
        Cell(descriptors, "red" if full else None),
        Cell(size(row.rss_bytes) if row.rss_bytes else "-"),
        Cell(cpu),
        Cell(f"{row.restarts:,}" if supervised else "?", "yellow" if row.restarts else None),
        Cell(_last_event(row, now)),
    ]


def _last_event(row: ShardRow, now: float) -> str:
    when = f"{moment_of(row.last_event_at, now)} " if row.last_event_at else ""
    return when + safe(row.last_event or "")


def _descriptors(row: ShardRow) -> str:
    return f"{row.descriptors:,}/{row.descriptor_limit:,}" if row.descriptor_limit else "-"


def _total_cells(rows: Sequence[ShardRow], *, supervised: bool) -> list[Cell]:
    return [
        Cell("total"),
        Cell(""),
        Cell(""),
        Cell(""),
        Cell(f"{sum(row.connections for row in rows):,}"),
        # An agent may be in several shards, so a sum of this column would count it several times.
        Cell(""),
        Cell(f"{sum(row.in_flight for row in rows):,}"),
        Cell(f"{sum(row.requests_per_s for row in rows):,.0f}"),
        Cell(f"{max(row.lag_ms for row in rows):.1f} ms"),
        # The limit applies to each process, so it has no sum.
        Cell(f"{sum(row.descriptors for row in rows):,}"),
        Cell(size(sum(row.rss_bytes for row in rows))),
        Cell(f"{sum(row.cpu_percent for row in rows):.1f}"),
        Cell(f"{sum(row.restarts for row in rows):,}" if supervised else "?"),
        Cell(""),
    ]
