"""``shardgate reload``: makes the supervisor read its configuration again."""

import click
import msgspec

from ipc.rundir import RuntimeDir
from ipc.schema import SCHEMA
from supervisor import words
from supervisor.cli import asking, output
from supervisor.cli.options import examples, json_option, runtime_dir_option, timeout_option
from supervisor.config.show import Change


class _Reloaded(msgspec.Struct):
    """The result of a reload: nodes that changed, nodes that need a restart, and the values of both."""

    changed: list[str]
    restart_needed: list[str]
    changes: list[Change] = []


@click.command(
    "reload",
    short_help="Read the configuration again.",
    epilog=examples("shardgate reload --dry-run", "shardgate reload"),
)
@click.option("--dry-run", is_flag=True, help="Show what would change, and change nothing.")
@runtime_dir_option
@json_option
@timeout_option("10s", "to wait for the supervisor")
def command(dry_run: bool, rundir: RuntimeDir, as_json: bool, timeout: float) -> None:
    """Read the configuration file and the token files again, and print the changes.

    A file with problems changes nothing: the problems are printed and the exit code is 5. Listeners, shards, pool and
    directories need a restart; 'shardgate scale' changes the number of shards at once.
    """
    answer = asking.ask_supervisor(rundir, "reload", _Reloaded, timeout, {"dry_run": dry_run})
    if as_json:
        output.print_json({"schema": SCHEMA, "dry_run": dry_run} | msgspec.structs.asdict(answer))
        return
    at_once = [change for change in answer.changes if not change.needs_restart]
    later = [change for change in answer.changes if change.needs_restart]
    done = "would change" if dry_run else "reloaded; changed"
    click.echo(f"{done}:" if at_once else f"{'dry run' if dry_run else 'reloaded'}; nothing changes at once")
    _print(at_once)
    if later:
        click.echo("needs a restart:")
        _print(later)


def _print(changes: list[Change]) -> None:
    for change in changes:
        old, new = (words.safe("; ".join(values), 200) or "not set" for values in (change.old, change.new))
        click.echo(f"  {words.safe(change.node)}: {old} -> {new}")
