"""``shardgate run``: runs the supervisor."""

import os
from typing import Any

import click

from ipc.log_levels import LEVEL_NAMES
from supervisor.cli.errors import ExitCode
from supervisor.cli.options import examples
from supervisor.cli.output import note
from supervisor.config.errors import ConfigError
from supervisor.config.kdl import load_config
from supervisor.config.model import Config, Placement
from supervisor.config.options import apply_options, origins_of
from supervisor.config.tokens import load_tokens


@click.command(
    "run",
    short_help="Accept agents and start the shards.",
    epilog=examples(
        "shardgate run",
        "shardgate run --config /etc/shardgate/listener.kdl",
        "shardgate run --tcp 127.0.0.1:9090 --shards 4 --log-format json",
    ),
)
@click.option(
    "--config",
    "file",
    envvar="SHARDGATE_CONFIG",
    show_envvar=True,
    metavar="FILE.kdl",
    help="Configuration file; options take the place of what it says.",
)
@click.option(
    "--uds",
    envvar="SHARDGATE_UDS",
    show_envvar=True,
    metavar="PATH",
    help="Accept agents on this Unix socket [default, without --tcp: agents.sock in the runtime directory].",
)
@click.option(
    "--tcp",
    multiple=True,
    envvar="SHARDGATE_TCP",
    show_envvar=True,
    metavar="HOST:PORT",
    help="Accept agents on this address, 127.0.0.1:9090 or [::1]:9090; may be repeated.",
)
@click.option(
    "--shards",
    type=int,
    envvar="SHARDGATE_SHARDS",
    show_envvar=True,
    metavar="N",
    help="Number of shard processes [default: one per CPU].",
)
@click.option(
    "--placement",
    type=click.Choice(list(map(str, Placement))),
    help="How a shard is chosen for an agent [default: spread].",
)
@click.option(
    "--runtime-dir",
    envvar="SHARDGATE_RUNTIME_DIR",
    show_envvar=True,
    metavar="DIR",
    help="Where the processes have their sockets [default: /run/shardgate for root, $XDG_RUNTIME_DIR/shardgate"
    " for others].",
)
@click.option(
    "--orphan-timeout",
    metavar="TIME",
    help="How long shards serve on when the supervisor is gone and no other one comes [default: 10m].",
)
@click.option(
    "--admin",
    envvar="SHARDGATE_ADMIN",
    show_envvar=True,
    metavar="HOST:PORT|PATH",
    help="Serve metrics, health and a status page there, as 127.0.0.1:9180 or a Unix socket's path [default: nowhere].",
)
@click.option(
    "--admin-allow-remote/--no-admin-allow-remote",
    default=None,
    envvar="SHARDGATE_ADMIN_ALLOW_REMOTE",
    show_envvar=True,
    help="Whether --admin may be an address that other hosts can reach [default: no].",
)
@click.option("--max-connections-per-agent", type=int, metavar="N", help="Connections of one agent [default: 4].")
@click.option("--max-connections", type=int, metavar="N", help="Connections in all [default: what descriptors allow].")
@click.option(
    "--max-connections-per-peer",
    type=int,
    metavar="N",
    help="Connections of one uid, IPv4 address or IPv6 /64 [default: 15 in 16 of what descriptors allow].",
)
@click.option("--handshake-timeout", metavar="TIME", help="Time for a registration to arrive [default: 10s].")
@click.option("--max-registration-bytes", type=int, metavar="N", help="Longest registration [default: 16384].")
@click.option("--max-handshakes", type=int, metavar="N", help="Handshakes in progress [default: 4096].")
@click.option(
    "--max-handshakes-per-peer",
    type=int,
    metavar="N",
    help="The same for one uid, IPv4 address or IPv6 /64 [default: 256].",
)
@click.option(
    "--require-auth/--no-require-auth", default=None, help="Whether agents must present a token [default: no]."
)
@click.option(
    "--allowed-agents",
    multiple=True,
    metavar="PATTERN",
    help="Agents that may register, as waf-*; may be repeated [default: all].",
)
@click.option(
    "--token-file",
    multiple=True,
    metavar="FILE",
    help="File with tokens, see 'shardgate token'; may be repeated. There is no option for a token itself, which"
    " everybody on the host could read.",
)
@click.option("--socket-mode", metavar="MODE", help="Permissions of the Unix socket, octal [default: 0660].")
@click.option(
    "--allow-uid",
    type=int,
    multiple=True,
    metavar="UID",
    help="Users that may register over the Unix socket; may be repeated [default: all].",
)
@click.option(
    "--takeover",
    is_flag=True,
    help="Take the place of the supervisor that runs in the runtime directory, if one does; agents do not notice.",
)
@click.option(
    "--log-level",
    type=click.Choice(LEVEL_NAMES),
    default="info",
    show_default=True,
    envvar="SHARDGATE_LOG_LEVEL",
    show_envvar=True,
    help="Least level that is logged.",
)
@click.option(
    "--log-format",
    type=click.Choice(["auto", "text", "json"]),
    default="auto",
    show_default=True,
    envvar="SHARDGATE_LOG_FORMAT",
    show_envvar=True,
    help="Form of the log on standard error; auto is text on a terminal.",
)
@click.pass_context
def command(
    context: click.Context, /, file: str | None, log_level: str, log_format: str, takeover: bool, **options: Any
) -> int:
    """Accept agents and start the shards, in the foreground, until SIGTERM or Ctrl-C.

    Precedence, highest first: options, environment variables, the file, defaults. SIGHUP, or 'shardgate reload', reads
    the file again. SIGUSR2 replaces this process: it starts the code that is installed now, with the same options, as
    --takeover does from outside. 'shardgate restart --rolling' does the same for the shards.
    """
    # The absolute path stays valid after a change of directory, for a reload and for readers of the status.
    path = os.path.abspath(file) if file else None  # noqa: PTH100 - Path.absolute() leaves ".." in

    origins: dict[str, str] = {}

    def load() -> Config:
        lines: dict[str, int | None] = {}
        if path:
            config = load_config(path, options, lines)
        else:
            config = apply_options(Config(), options)
            load_tokens(config)
        origins.clear()
        origins.update(origins_of(path, lines, _given(context, options)))
        return config

    try:
        config = load()
    except ConfigError as error:
        note(str(error))
        return ExitCode.BAD_CONFIG
    from supervisor.serve import serve

    return serve(config, load=load, origins=origins, log_level=log_level, log_format=log_format, takeover=takeover)


def _given(context: click.Context, options: dict[str, Any]) -> dict[str, str]:
    """Return the given options, each with its spelling: ``--shards`` or ``$SHARDGATE_SHARDS``."""
    spelled = {}
    for parameter in context.command.params:
        name = parameter.name or ""
        if options.get(name) not in (None, ()):
            from_environment = context.get_parameter_source(name) is click.core.ParameterSource.ENVIRONMENT
            variable = f"${parameter.envvar}" if from_environment else ""
            spelled[name] = variable or f"--{name.replace('_', '-')}"
    return spelled
