"""``shardgate status``: prints the state of the supervisor and its shards."""

import time

import click

from ipc.rundir import RuntimeDir
from supervisor.cli import asking, output
from supervisor.cli.errors import ExitCode
from supervisor.cli.options import Duration, examples, json_option, runtime_dir_option, timeout_option
from supervisor.cli.status_text import status_text
from supervisor.merge import is_anything_alive, is_healthy


@click.command(
    "status",
    short_help="Show the supervisor and its shards.",
    epilog=examples("shardgate status", "shardgate status --watch 5s", "shardgate status --json"),
)
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

    Exits with 3 when the supervisor is down or a shard neither runs nor drains. Exits with 4 when nothing runs at all.
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
    alive = collected.supervisor_silent or collected.held_by is not None or is_anything_alive(collected.status)
    return ExitCode.NOT_HEALTHY if alive else ExitCode.NOT_REACHABLE


def _show(rundir: RuntimeDir, timeout: float, *, as_json: bool, one_line: bool = False) -> ExitCode:
    collected = asking.collect_status(rundir, timeout)
    code = _exit_code(collected)
    if as_json:
        # JSON is printed even when nothing runs, for the program that parses it.
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
    from supervisor.cli.live import show

    def text() -> str:
        return screen_text(rundir, asking.collect_status(rundir, timeout), output.screen_height())

    show(text, interval)
    return ExitCode.OK


def screen_text(rundir: RuntimeDir, collected: asking.Collected, height: int | None) -> str:
    """Return the text of a status for a screen of *height* lines. When nothing runs, the text says so."""
    if _exit_code(collected) is ExitCode.NOT_REACHABLE:
        return str(asking.nothing_runs(rundir))
    return _text(rundir, collected, height)


def _text(rundir: RuntimeDir, collected: asking.Collected, height: int | None = None) -> str:
    return status_text(
        collected.status,
        runtime_dir=str(rundir.path),
        supervisor_silent=collected.supervisor_silent,
        held_by=collected.held_by,
        width=output.terminal_width(),
        height=height,
        colour=output.use_colour(),
        now=time.time(),
    )
