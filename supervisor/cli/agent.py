"""``shardgate agent``: dialout's demonstration agent, with the default listener as its address."""

import click

from ipc.rundir import default_runtime_dir
from supervisor.cli.options import examples


@click.command(
    "agent",
    short_help="Be an agent, to try things out.",
    epilog=examples("shardgate agent --block-uri '/admin*' --delay 20ms"),  # For the manual page.
    add_help_option=False,  # dialout's agent has its own --help, with all options.
    context_settings={"ignore_unknown_options": True},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def command(arguments: tuple[str, ...]) -> int:
    """Dial a listener, register, and decide about requests; see 'shardgate agent --help'."""
    from dialout.agent.demo import main

    # The socket of 'shardgate run' without --uds and --tcp.
    return main(arguments, prog="shardgate agent", address=str(default_runtime_dir() / "agents.sock"))
