"""``shardgate log-level``: changes the log level of the running processes."""

import click
import msgspec

from ipc.log_levels import LEVEL_NAMES
from ipc.rundir import RuntimeDir
from ipc.schema import SCHEMA
from supervisor import words
from supervisor.cli import asking, output
from supervisor.cli.errors import CommandError, ExitCode
from supervisor.cli.options import examples, json_option, runtime_dir_option, timeout_option


class _Level(msgspec.Struct):
    level: str
    shards_silent: list[int]


@click.command(
    "log-level",
    short_help="Change what is logged from now on.",
    epilog=examples("shardgate log-level warning", "shardgate log-level info"),
)
@click.argument("level", type=click.Choice(LEVEL_NAMES))
@runtime_dir_option
@json_option
@timeout_option("2s", "to wait for the supervisor")
def command(level: str, rundir: RuntimeDir, as_json: bool, timeout: float) -> int:
    """Log lines of LEVEL and above from now on: in the supervisor, in all shards, and in shards that start later.

    info has a line for every registration and every end of a connection. warning has only lines that need attention.
    The next supervisor begins with --log-level of 'run' again.
    """
    answer = asking.ask_supervisor(rundir, "log_level", _Level, timeout, {"level": level})
    if as_json:
        output.print_json({"schema": SCHEMA, "level": answer.level, "shards_silent": answer.shards_silent})
    else:
        click.echo(f"log level is {words.safe(answer.level)}")
    if answer.shards_silent:
        names = ", ".join(map(str, answer.shards_silent))
        raise CommandError(ExitCode.FAILED, f"shard {names} could not be told, and is when it comes back")
    return ExitCode.OK
