"""``shardgate check``: prints a summary of a configuration file, or its problems."""

from collections.abc import Iterator
from typing import Any

import click

from ipc.schema import SCHEMA
from supervisor.cli.errors import ExitCode
from supervisor.cli.options import examples, json_option
from supervisor.cli.output import note, print_json
from supervisor.config.errors import ConfigError, Problem
from supervisor.config.kdl import load_config
from supervisor.config.model import Config, Token, format_duration
from supervisor.config.tokens import load_tokens
from supervisor.preflight import Host, look
from supervisor.words import count, safe


@click.command(
    "check", short_help="Check a configuration file.", epilog=examples("shardgate check /etc/shardgate/listener.kdl")
)
@click.argument("file", metavar="FILE.kdl")
@click.option("--file-only", is_flag=True, help="Look at the file and its token files alone: it is for another host.")
@json_option
def command(file: str, file_only: bool, as_json: bool) -> int:
    """Check a configuration file, its token files, and the folders, addresses, users and groups that it names.

    A file is good when 'shardgate run' would start with it here, as the same user. The check starts nothing and creates
    nothing. It prints a summary of a good file. Otherwise it prints every problem and exits with 78. 'shardgate config
    show FILE --effective' prints all settings.
    """
    lines: dict[str, int | None] = {}
    others: list[str] = []
    try:
        config = load_config(file, lines=lines, others=others)
        tokens = load_tokens(config)
    except ConfigError as error:
        return _refuse(file, error.problems, as_json=as_json)
    host = Host([], []) if file_only else look(config, lines)
    for line in host.notes:
        note(line)
    if host.problems:
        return _refuse(file, host.problems, as_json=as_json)
    if as_json:
        effective = _effective(config, tokens)
        print_json(
            {"schema": SCHEMA, "file": file, "ok": True, "problems": [], "config": effective, "not_read": others}
        )
    else:
        click.echo("\n".join([f"{safe(file, 4096)}: ok", *_summary(config, tokens, others)]))
    return ExitCode.OK


def _refuse(file: str, problems: list[Problem], *, as_json: bool) -> int:
    if as_json:
        print_json({"schema": SCHEMA, "file": file, "ok": False, "problems": problems})
    else:
        note(str(ConfigError(problems)))
    return ExitCode.BAD_CONFIG


def _listeners(config: Config) -> list[dict[str, str]]:
    found = [{"kind": "uds", "address": config.path}] if config.path else []
    return found + [{"kind": "tcp", "address": str(address)} for address in config.tcp_addresses]


def _effective(config: Config, tokens: tuple[Token, ...]) -> dict[str, Any]:
    """Return the configuration without digests: a token that a person invented can be guessed from its digest."""
    limits = config.limits
    return {
        "listeners": _listeners(config),
        "socket_mode": f"{config.socket_mode:04o}",
        "socket_owner": config.socket_owner,
        "socket_group": config.socket_group,
        "max_connections_per_agent": limits.max_connections_per_agent,
        "max_connections": config.max_connections,
        "max_connections_per_peer": config.max_connections_per_peer,
        "handshake_timeout_s": limits.handshake_timeout,
        "max_registration_bytes": config.max_registration_bytes,
        "max_handshakes": config.max_handshakes,
        "max_handshakes_per_peer": config.max_handshakes_per_peer,
        "require_auth": limits.require_auth,
        "allowed_agents": limits.allowed_agents,
        "allow_uids": config.allow_uids,
        "tokens": [
            {"patterns": token.patterns}
            | ({} if token.max_connections is None else {"max_connections": token.max_connections})
            for token in tokens
        ],
        "token_files": config.token_files,
        "agent_config": [{"patterns": rule.patterns} for rule in config.agent_config],
        "shards": config.shards,
        "placement": config.placement,
        "runtime_dir": config.runtime_dir,
        "orphan_timeout_s": config.orphan_timeout,
        "status_dir": config.status_dir,
        "admin": None if config.admin_listen is None else str(config.admin_listen),
        "pool": config.pool,
    }


def _other_limits(config: Config) -> str:
    given = ((config.max_connections_per_peer, " per peer"), (config.max_connections, " in all"))
    return "".join(f", {most:,}{where}" for most, where in given if most is not None)


def _summary(config: Config, tokens: tuple[Token, ...], others: list[str]) -> Iterator[str]:
    limits = config.limits
    listeners = [f"{listener['kind']} {safe(listener['address'], 4096)}" for listener in _listeners(config)]
    yield f"  listeners     {', '.join(listeners) or 'uds agents.sock in the runtime directory'}"
    yield (
        f"  limits        {count('connection', limits.max_connections_per_agent)} per agent{_other_limits(config)};"
        f" registration within {format_duration(limits.handshake_timeout)}"
        f" and {config.max_registration_bytes:,} bytes;"
        f" {count('handshake', config.max_handshakes)} at a time, {config.max_handshakes_per_peer:,} per peer"
    )
    known = count("token", len(tokens))
    unused = f"not required; {known} not looked at" if tokens else "not required"
    yield f"  auth          {f'required, {known}' if limits.require_auth else unused}"
    yield f"  agents        {'any' if limits.allowed_agents is None else ', '.join(limits.allowed_agents)}"
    if config.allow_uids is not None:
        yield f"  uids          {', '.join(map(str, config.allow_uids))}"
    rules = [" ".join(rule.patterns) for rule in config.agent_config]
    yield f"  agent-config  {', '.join(rules) or 'none'}"
    yield f"  shards        {config.shards or 'one per CPU'}, placement {config.placement}"
    for name, path in (("admin", config.admin_listen), ("status-dir", config.status_dir)):
        if path is not None:
            yield f"  {name:<12}  {safe(str(path), 4096)}"
    if others:
        included = "; nor is what include names" if "include" in others else ""
        yield f"  not read      {safe(', '.join(others), 1000)}: for a proxy{included}"
