"""``shardgate completion``: prints click's script that completes commands in a shell."""

import click
from click.shell_completion import get_completion_class

from supervisor.cli.errors import CommandError, ExitCode
from supervisor.cli.options import examples


@click.command(
    "completion",
    short_help="Print the script that completes commands in a shell.",
    epilog=examples(
        "shardgate completion bash > ~/.local/share/bash-completion/completions/shardgate",
        "shardgate completion zsh > ~/.zfunc/_shardgate",
        "shardgate completion fish > ~/.config/fish/completions/shardgate.fish",
    ),
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(context: click.Context, /, shell: str) -> None:
    """Print the script that completes commands and options in SHELL. Put it into the shell's folder for them."""
    kind = get_completion_class(shell)
    if kind is None:
        raise CommandError(ExitCode.FAILED, f"this version of click cannot write a script for {shell}")
    script = kind(context.find_root().command, {}, "shardgate", "_SHARDGATE_COMPLETE")
    # Not source(): for bash it starts a bash, to check its version.
    click.echo(script.source_template % script.source_vars())
