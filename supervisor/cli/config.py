"""``shardgate config show``: prints the configuration as KDL, with the origin of each value."""

from collections.abc import Mapping

import click
import msgspec

from ipc.capacity import default_shards
from ipc.rundir import RuntimeDir, default_runtime_dir
from ipc.schema import SCHEMA
from supervisor import words
from supervisor.cli import asking, output
from supervisor.cli.errors import ExitCode
from supervisor.cli.options import examples, json_option, runtime_dir_option, timeout_option
from supervisor.config.errors import ConfigError
from supervisor.config.kdl import load_config
from supervisor.config.options import origins_of
from supervisor.config.show import Setting, as_kdl, quoted, settings
from supervisor.config.tokens import load_tokens


class _Shown(msgspec.Struct):
    """A configuration: its settings, their origins, and the running values of settings that need a restart."""

    source: str | None
    loaded_at: str
    settings: list[Setting]
    origins: dict[str, str]
    pending: dict[str, str]
    shards: int
    runtime_dir: str


@click.group("config", short_help="Show the configuration.", epilog=examples("shardgate config show --effective"))
def command() -> None:
    """Show the configuration that is in effect, or that a file would have."""


@command.command(
    "show",
    short_help="Show what is set, and where each value comes from.",
    epilog=examples(
        "shardgate config show",
        "shardgate config show --effective",
        "shardgate config show /etc/shardgate/listener.kdl",
    ),
)
@click.argument("file", required=False, metavar="[FILE.kdl]")
@click.option("--effective", is_flag=True, help="Show defaults, too.")
@runtime_dir_option
@json_option
@timeout_option("2s", "to wait for the supervisor")
def show(file: str | None, effective: bool, rundir: RuntimeDir, as_json: bool, timeout: float) -> int:
    """Show the configuration of the running supervisor, or of FILE, as KDL. A comment names the origin of each value.

    No secret is shown. A token is shown by the beginning of its digest, an agent-config by its size and the beginning
    of its digest.
    """
    if file is None:
        shown = asking.ask_supervisor(rundir, "config", _Shown, timeout)
    else:
        try:
            shown = _of_file(file)
        except ConfigError as error:
            output.note(str(error))
            return ExitCode.BAD_CONFIG
    found = [*shown.settings, *_chosen(shown)]
    if as_json:
        rows = [
            {"node": s.node, "values": s.values, "origin": _origin(s, shown), "pending": s.node in shown.pending}
            for s in found
            if effective or _origin(s, shown) != "default"
        ]
        output.print_json({"schema": SCHEMA, "source": shown.source, "loaded_at": shown.loaded_at, "settings": rows})
        return ExitCode.OK
    notes = {s.node: _note(s, shown) for s in found if effective or _origin(s, shown) != "default"}
    for line in as_kdl(found, notes, only_noted=True):
        click.echo(words.safe(line, 4096))
    return ExitCode.OK


def _of_file(file: str) -> _Shown:
    lines: dict[str, int | None] = {}
    config = load_config(file, {}, lines)
    tokens = load_tokens(config)[len(config.tokens) :]
    return _Shown(
        source=file,
        loaded_at="",
        settings=settings(config, tokens=tokens),
        origins=origins_of(file, lines, {}),
        pending={},
        shards=config.shards or default_shards(),
        runtime_dir=config.runtime_dir or str(default_runtime_dir()),
    )


def _chosen(shown: _Shown) -> list[Setting]:
    """Return the shards, the runtime directory and the socket that are chosen when they are not set."""
    known = {setting.node for setting in shown.settings}
    chosen = []
    if "shards" not in known:
        chosen.append(Setting("shards", (str(shown.shards),)))
    if "runtime-dir" not in known:
        chosen.append(Setting("runtime-dir", (quoted(shown.runtime_dir),)))
    if not known & {"path", "tcp-address"}:
        chosen.append(Setting("path", (quoted(f"{shown.runtime_dir}/agents.sock"),)))
    return chosen


def _origin(setting: Setting, shown: _Shown) -> str:
    origins: Mapping[str, str] = shown.origins
    if setting.node == "auth > token in a file":
        return origins.get("auth > token-file", "a token file")
    return origins.get(setting.node, "default")


def _note(setting: Setting, shown: _Shown) -> str:
    origin = _origin(setting, shown)
    running = shown.pending.get(setting.node)
    return origin if running is None else f"{origin}; after a restart, until then {running or 'not set'}"
