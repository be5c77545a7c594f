"""``shardgate reload``: have the supervisor read its configuration again."""

import click
import msgspec

from ipc.rundir import RuntimeDir
from supervisor.cli import asking, output
from supervisor.cli.options import json_option, runtime_dir_option, timeout_option


class _Reloaded(msgspec.Struct):
    """What a reload changed, and what differs in the file and needs a restart; names of nodes."""

    changed: list[str]
    restart_needed: list[str]


@click.command("reload", short_help="Read the configuration again.")
@runtime_dir_option
@json_option
@timeout_option("10s", "to wait for the supervisor")
def command(rundir: RuntimeDir, as_json: bool, timeout: float) -> None:
    """Read the configuration file and the token files again.

    A file with problems changes nothing: the problems are printed and the exit code is 5.
    """
    answer = asking.ask_supervisor(rundir, "reload", _Reloaded, timeout)
    if as_json:
        output.print_json(answer)
        return
    changed = ", ".join(map(output.safe, answer.changed))
    click.echo(f"reloaded; changed: {changed}" if changed else "reloaded; nothing changed")
    if answer.restart_needed:
        click.echo(f"not yet in effect, needs a restart: {', '.join(map(output.safe, answer.restart_needed))}")
