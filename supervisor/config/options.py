"""Applies options of the command line to a configuration, under the same rules and with the same errors."""

import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from supervisor.config import values
from supervisor.config.errors import ConfigError, Problem
from supervisor.config.model import BLOCK, Config, ReverseConnectionConfig, validate
from supervisor.config.values import BadValue


class _Option(msgspec.Struct, frozen=True):
    """An option: the field that it sets, the node that it replaces, and whether it takes several values."""

    field: str
    node: str
    convert: Callable[[object], Any]
    several: bool = False


# Names as click derives them from options: `max_handshakes` from `--max-handshakes`. Some fields have several names.
OPTIONS: dict[str, _Option] = {
    "uds": _Option("path", "path", values.socket_path),
    "path": _Option("path", "path", values.socket_path),
    "socket_mode": _Option("socket_mode", "socket-mode", values.octal_mode),
    "socket_owner": _Option("socket_owner", "socket-owner", values.owner),
    "socket_group": _Option("socket_group", "socket-group", values.owner),
    "tcp": _Option("tcp_addresses", "tcp-address", values.tcp_address, several=True),
    "tcp_address": _Option("tcp_addresses", "tcp-address", values.tcp_address, several=True),
    "tcp_addresses": _Option("tcp_addresses", "tcp-address", values.tcp_address, several=True),
    "max_connections_per_agent": _Option("max_connections_per_agent", "max-connections-per-agent", values.integer),
    "max_connections": _Option("max_connections", "max-connections", values.integer),
    "max_connections_per_peer": _Option("max_connections_per_peer", "max-connections-per-peer", values.integer),
    "handshake_timeout": _Option("handshake_timeout", "handshake-timeout", values.duration),
    "max_registration_bytes": _Option("max_registration_bytes", "max-registration-bytes", values.integer),
    "max_handshakes": _Option("max_handshakes", "max-handshakes", values.integer),
    "max_handshakes_per_peer": _Option("max_handshakes_per_peer", "max-handshakes-per-peer", values.integer),
    "require_auth": _Option("require_auth", "require-auth", values.boolean),
    "allowed_agents": _Option("allowed_agents", "allowed-agents", values.pattern, several=True),
    "allow_uid": _Option("allow_uids", "allow-uid", values.unix_id, several=True),
    "token_file": _Option("token_files", "auth > token-file", values.path, several=True),
    "shards": _Option("shards", "shards", values.integer),
    "placement": _Option("placement", "placement", values.placement),
    "runtime_dir": _Option("runtime_dir", "runtime-dir", values.path),
    "orphan_timeout": _Option("orphan_timeout", "orphan-timeout", values.duration),
    "admin": _Option("admin_listen", "admin > listen", values.admin_address),
    "admin_allow_remote": _Option("admin_allow_remote", "admin > allow-remote", values.boolean),
}


def apply_options(config: Config, options: Mapping[str, object]) -> Config:
    """Return `config` with the given options in place of its own values. Raises ConfigError.

    None and an empty tuple mean that an option was not given. A flag that was not given must be None: False would
    switch off a setting of the file. Times and modes are strings as in a file (`"10s"`, `"0660"`). Numbers and flags
    are int and bool. An option with several values takes a sequence, or one string with commas between the values. It
    replaces the whole list of the file. `token_file` replaces the token files; tokens written in the file stay.
    Relative paths stay as they are and count from the current directory. Raises TypeError for an unknown name, which is
    a mistake of the caller.
    """
    changed, problems = override(config, options)
    problems += rename(validate(changed), options)
    if problems:
        raise ConfigError(problems)
    return changed


def origins_of(file: str | None, lines: Mapping[str, int | None], given: Mapping[str, str]) -> dict[str, str]:
    """Return the origin of each node that is set: a line of the file, or the spelling of the option in *given*.

    Nodes are named below the block, as ``pool > strategy``. A node that is missing has its default.
    """
    prefix = f"{BLOCK} > "
    origins = {
        node.removeprefix(prefix): f"{file}:{line}" for node, line in lines.items() if node.startswith(prefix) and line
    }
    return origins | {OPTIONS[name].node: spelled for name, spelled in given.items() if name in OPTIONS}


def override(config: Config, options: Mapping[str, object]) -> tuple[Config, list[Problem]]:
    """Apply the options without the checks between values. Bad values are left out; return their problems."""
    problems: list[Problem] = []
    fields: dict[str, Any] = {}
    for name, value in _given(options).items():
        option = OPTIONS[name]
        for part in _parts(value) if option.several else [value]:
            try:
                converted = option.convert(part)
            except BadValue as error:
                problems.append(Problem(None, None, _spelled(name), error.message, _for_a_shell(error.hint)))
                continue
            fields[option.field] = (*fields.get(option.field, ()), converted) if option.several else converted
    limits = {key: fields.pop(key) for key in ReverseConnectionConfig.__struct_fields__ if key in fields}
    default = Config().max_handshakes_per_peer
    if config.max_handshakes_per_peer == default > fields.get("max_handshakes", default) >= 1:
        # An operator may lower the total alone. The default limit per peer then follows it.
        fields.setdefault("max_handshakes_per_peer", fields["max_handshakes"])
    limits_ = msgspec.structs.replace(config.limits, **limits)
    return msgspec.structs.replace(config, limits=limits_, **fields), problems


def _for_a_shell(hint: str | None) -> str | None:
    """Reword a hint that proposes a node of a file into one that proposes an option."""
    for node, option in (("path", "--uds"), ("tcp-address", "--tcp")):
        proposal = re.fullmatch(rf'write {node} "(.+)"', hint or "")
        if proposal is not None:
            return f"write {option} {shlex.quote(proposal[1])}"
    return hint and hint.replace("leave it to an option of run", "let the shell replace it: no single quotes")


def rename(problems: Iterable[Problem], options: Mapping[str, object]) -> list[Problem]:
    """Reword problems with values from an option: they name the option, not the node and the file."""
    spelled = {f"{BLOCK} > {OPTIONS[name].node}": _spelled(name) for name in _given(options)}
    return [
        Problem(None, None, spelled[problem.where], problem.message, problem.hint)
        if problem.where in spelled
        else problem
        for problem in problems
    ]


def _given(options: Mapping[str, object]) -> dict[str, object]:
    unknown = options.keys() - OPTIONS.keys()
    if unknown:
        raise TypeError(f"not options of a configuration: {', '.join(sorted(unknown))}")
    return {name: value for name, value in options.items() if value not in (None, (), [])}


def _spelled(name: str) -> str:
    return "--" + name.replace("_", "-")


def _parts(value: object) -> list[object]:
    values_ = [value] if isinstance(value, str) or not isinstance(value, Iterable) else value
    parts: list[object] = []
    for item in values_:
        parts += [part.strip() for part in item.split(",")] if isinstance(item, str) else [item]
    return parts
