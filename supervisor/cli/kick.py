"""``shardgate kick``: closes an agent's connections."""

import time

import click

from ipc.rundir import RuntimeDir
from ipc.schema import SCHEMA
from supervisor.answer_rows import Kicked, Why
from supervisor.cli import asking, output
from supervisor.cli.errors import CommandError, ExitCode
from supervisor.cli.options import complete_agents, examples, json_option, runtime_dir_option, timeout_option
from supervisor.words import count, safe

_ANSWER_WITHIN = 5.0
_LOOK_EVERY = 0.02
_MARGIN = 2.0
"""Seconds beyond the time limit of a close, for the news of it to reach the supervisor."""


@click.command(
    "kick",
    short_help="Close an agent's connections.",
    epilog=examples("shardgate kick waf-1", "shardgate kick waf-1-conn-17 --now"),
)
@click.argument("target", metavar="AGENT|CONNECTION", shell_complete=complete_agents)
@click.option(
    "--now", is_flag=True, help="Do not wait for what is in flight; it fails at once, with a retryable error."
)
@runtime_dir_option
@json_option
@timeout_option("5s", "to wait for what is in flight, which fails after that")
def command(target: str, now: bool, rundir: RuntimeDir, as_json: bool, timeout: float) -> int:
    """Close all connections of AGENT, or one CONNECTION as 'connections' lists it.

    Each connection takes no new request, and is closed when nothing is in flight on it. The agent may register again at
    once, and most agents do. To keep it out, revoke its token or take it out of allowed-agents, reload, then kick it.
    """
    seconds = 0.0 if now else timeout
    arguments = {"target": target, "seconds": seconds}
    kicked = asking.ask_supervisor(rundir, "kick", Kicked, _ANSWER_WITHIN, arguments)
    left = _wait(rundir, kicked, seconds + _MARGIN)
    if as_json:
        output.print_json(
            {"schema": SCHEMA, "agent_id": kicked.agent_id, "kicked": kicked.connection_ids, "left": sorted(left)}
        )
    else:
        done = len(kicked.connection_ids) - len(left)
        click.echo(f"closed {count('connection', done)} of {safe(kicked.agent_id)}; it may register again at once")
    if kicked.shards_silent:
        names = ", ".join(map(str, kicked.shards_silent))
        raise CommandError(ExitCode.FAILED, f"shard {names} could not be told; see 'shardgate status'")
    if left:
        raise CommandError(ExitCode.TIMED_OUT, f"still there: {', '.join(map(safe, sorted(left)))}")
    return ExitCode.OK


def _wait(rundir: RuntimeDir, kicked: Kicked, seconds: float) -> set[str]:
    """Wait until the kicked connections are gone. Return the ids that are left after *seconds*."""
    deadline = time.monotonic() + seconds
    while True:
        why = asking.ask_supervisor(rundir, "why", Why, _ANSWER_WITHIN, {"agent_id": kicked.agent_id})
        left = {slot.connection_id for slot in why.slots} & set(kicked.connection_ids)
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(_LOOK_EVERY)
