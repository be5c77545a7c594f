"""``shardgate status``: the supervisor and its shards at a glance."""

import time

import click

from ipc.rundir import RuntimeDir
from supervisor.cli import asking, output
from supervisor.cli.errors import ExitCode
from supervisor.cli.options import Duration, json_option, runtime_dir_option, timeout_option
from supervisor.cli.status_text import status_text
from supervisor.merge import is_anything_alive, is_healthy


@click.command("status")
@click.option(
    "--watch",
    type=Duration(),
    is_flag=False,
    flag_value="2s",
    metavar="[TIME]",
    help="Show it again every TIME [2s] until Ctrl-C; with --json one object a line.",
)
@runtime_dir_option
@json_option
@timeout_option("1.5s", "to wait for answers; slower shards appear with their last report")
def command(watch: float | None, rundir: RuntimeDir, as_json: bool, timeout: float) -> int:
    """Show the supervisor and its shards.

    Exits with 3 when the supervisor is down or a shard neither runs nor drains, with 4 when nothing runs at all.
    """
    if watch is None:
        return _show(rundir, timeout, as_json=as_json)
    try:
        return _watch(rundir, timeout, watch, as_json=as_json)
    except KeyboardInterrupt:
        return ExitCode.OK


def _exit_code(collected: asking.Collected) -> ExitCode:
    if is_healthy(collected.status):
        return ExitCode.OK
    alive = collected.supervisor_silent or is_anything_alive(collected.status)
    return ExitCode.NOT_HEALTHY if alive else ExitCode.NOT_REACHABLE


def _show(rundir: RuntimeDir, timeout: float, *, as_json: bool, one_line: bool = False) -> ExitCode:
    collected = asking.collect_status(rundir, timeout)
    code = _exit_code(collected)
    if as_json:
        # Also when nothing runs, so that a program has something to parse.
        output.print_json(collected.status, one_line=one_line)
    if code is ExitCode.NOT_REACHABLE:
        output.note(f"shardgate: {asking.nothing_runs(rundir)}")
    elif not as_json:
        click.echo(_text(rundir, collected))
    return code


def _watch(rundir: RuntimeDir, timeout: float, interval: float, *, as_json: bool) -> int:
    if not as_json and output.terminal_width():
        return _watch_on_screen(rundir, timeout, interval)
    while True:
        _show(rundir, timeout, as_json=as_json, one_line=True)
        time.sleep(interval)


def _watch_on_screen(rundir: RuntimeDir, timeout: float, interval: float) -> int:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(highlight=False, markup=False)
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            collected = asking.collect_status(rundir, timeout)
            if _exit_code(collected) is ExitCode.NOT_REACHABLE:
                text = str(asking.nothing_runs(rundir))
            else:
                text = _text(rundir, collected)
            live.update(Text.from_ansi(text, no_wrap=True, overflow="crop"), refresh=True)
            time.sleep(interval)


def _text(rundir: RuntimeDir, collected: asking.Collected) -> str:
    return status_text(
        collected.status,
        runtime_dir=str(rundir.path),
        supervisor_silent=collected.supervisor_silent,
        width=output.terminal_width(),
        colour=output.use_colour(),
    )
