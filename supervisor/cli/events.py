"""``shardgate events``: prints the events of agents and shards, past and new ones."""

import time
from collections.abc import Callable
from functools import partial

import click

from ipc.query import MAX_PAGE
from ipc.rundir import RuntimeDir
from supervisor.cli import asking, output
from supervisor.cli.errors import CommandError, ExitCode
from supervisor.cli.event_text import COLUMNS, event_cells, event_row
from supervisor.cli.options import examples, json_option, runtime_dir_option, shard_option, timeout_option
from supervisor.history_rows import Event, Page

_PAGE = MAX_PAGE
_LOOK_EVERY = 0.25
_WIDTHS = (10, 24, 12, 5, 0)
"""Widths of all columns but the first, for lines that are printed one by one."""


@click.command(
    "events",
    short_help="Show what happened to agents and shards.",
    epilog=examples(
        "shardgate events --follow", "shardgate events --agent waf-1 --last 20", "shardgate events --follow --json"
    ),
)
@click.option(
    "-f", "--follow", is_flag=True, help="Go on with what happens from now on, until Ctrl-C or the end of shardgate."
)
@click.option("--agent", "agent_id", metavar="ID", help="Only what has to do with this agent.")
@shard_option("Only what has to do with this shard.")
@click.option(
    "--last", type=click.IntRange(0, _PAGE), default=100, show_default=True, metavar="N", help="Begin with so many."
)
@runtime_dir_option
@json_option
@timeout_option("2s", "to wait for each answer")
def command(
    follow: bool,
    agent_id: str | None,
    shard: int | None,
    last: int,
    rundir: RuntimeDir,
    as_json: bool,
    timeout: float,
) -> int:
    """Show events: registrations and refusals, ends and moves of connections, starts and ends of shards.

    The supervisor keeps the newest events of each agent, and of all, in memory. They are lost when the supervisor ends;
    keep the logs instead. With --json each event is one line, an object with "schema": 1.
    """
    chosen = {"agent_id": agent_id, "shard": shard}

    def ask(after: int | None, limit: int) -> Page:
        return asking.ask_supervisor(rundir, "events", Page, timeout, chosen | {"after": after, "limit": limit})

    page = ask(None, last)
    if not follow:
        _show(page.events, as_json=as_json)
        if not page.events:
            output.note("no event")
        return ExitCode.OK
    try:
        _say(page.events, as_json=as_json)
        began = page.began
        while True:
            if not page.events:
                time.sleep(_LOOK_EVERY)
            page = _next_page(rundir, partial(ask, page.next, _PAGE))
            if page.began != began:
                began = page.began
                output.note("another supervisor has begun; what came between the two is not known")
            if page.lost:
                output.note(f"{page.lost:,} events came faster than they could be read, and are gone")
            _say(page.events, as_json=as_json)
    except KeyboardInterrupt:
        return ExitCode.OK


def _next_page(rundir: RuntimeDir, ask: Callable[[], Page]) -> Page:
    """Return the next page. While shards serve, wait for the next supervisor when the current one is gone."""
    told = False
    while True:
        try:
            return ask()
        except CommandError as error:
            if error.exit_code not in (ExitCode.NOT_REACHABLE, ExitCode.TIMED_OUT) or not asking.living_shards(rundir):
                raise
            if not told:
                output.note(f"shardgate: {error}; waiting for it")
                told = True
            time.sleep(_LOOK_EVERY)


def _show(events: list[Event], *, as_json: bool) -> None:
    if as_json:
        _say(events, as_json=True)
    elif events:
        now = time.time()
        rows = [event_cells(event, now) for event in events]
        click.echo(output.table(COLUMNS, rows, output.terminal_width(), colour=output.use_colour()))


def _say(events: list[Event], *, as_json: bool) -> None:
    """Print events one by one, in columns of fixed width, so that later events line up with them."""
    if as_json:
        for event in events:
            output.print_json(event_row(event), one_line=True)
        return
    colour, now = output.use_colour(), time.time()
    rows = [event_cells(event, now) for event in events]
    widths = [max((len(cells[0].text) for cells in rows), default=0), *_WIDTHS]
    click.echo(
        "".join(f"{output.line(cells, widths, output.terminal_width(), colour=colour)}\n" for cells in rows), nl=False
    )
