"""``drain``, ``restart``, ``scale``, ``rebalance``: start an operation of the supervisor and follow it to its end."""

import time
from collections.abc import Mapping
from typing import Any

import click
import msgspec

from ipc import query
from ipc.capacity import MAX_SHARDS
from ipc.rundir import RuntimeDir
from ipc.schema import SCHEMA
from ipc.status import OperationRow
from supervisor import words
from supervisor.cli import asking, output
from supervisor.cli.errors import CommandError, ExitCode
from supervisor.cli.options import examples, json_option, runtime_dir_option, timeout_option

_ANSWER_WITHIN = 5.0
_LOOK_EVERY = 0.1
_AFTER_THE_LIMIT = 120.0
"""Seconds beyond its own time limit that an operation may take, to start and end processes."""

_busy_time = timeout_option("30s", "to wait for what is in flight on the connections of a shard")


class _Move(msgspec.Struct, array_like=True):
    """A connection that a rebalance would move."""

    agent_id: str
    number: int
    source: int
    target: int


@click.command(
    "drain",
    short_help="Move a shard's connections to the others.",
    epilog=examples("shardgate drain 1", "shardgate drain 1 --undo"),
)
@click.argument("shard", type=click.IntRange(0))
@click.option("--undo", is_flag=True, help="Let a drained shard take connections again.")
@runtime_dir_option
@json_option
@_busy_time
def drain(shard: int, undo: bool, rundir: RuntimeDir, as_json: bool, timeout: float) -> int:
    """Move all connections of SHARD to other shards, and give it no new ones.

    Agents do not notice. A connection moves when nothing is in flight on it. A connection that is busy for longer than
    the timeout stays, and the exit code is 6. The shard stays drained until --undo or a restart.
    """
    order = {"what": "undrain" if undo else "drain", "number": shard, "seconds": timeout}
    done = f"shard {shard} takes connections again" if undo else f"shard {shard} takes no connections"
    return _operate(rundir, order, timeout, done, as_json=as_json)


@click.command(
    "restart",
    short_help="Replace shards' processes, without a reconnect.",
    epilog=examples("shardgate restart --rolling", "shardgate restart 1 --timeout 1m"),
)
@click.argument("shards", type=click.IntRange(0), nargs=-1, metavar="[SHARD]...")
@click.option("--rolling", is_flag=True, help="Restart all shards, one after the other.")
@runtime_dir_option
@json_option
@_busy_time
def restart(shards: tuple[int, ...], rolling: bool, rundir: RuntimeDir, as_json: bool, timeout: float) -> int:
    """Start each SHARD's process anew, with the code that is installed now.

    A spare shard is started first. If it does not come up, nothing else happens. Then the connections of each shard
    move to the others before it ends. A request that is in flight for longer than the timeout fails.
    """
    if rolling == bool(shards):
        raise click.UsageError("name the shards to restart, or all of them with --rolling")
    order = {"what": "restart", "shards": list(shards), "seconds": timeout}
    done = "all shards restarted" if rolling else f"restarted shard {', '.join(map(str, shards))}"
    return _operate(rundir, order, timeout * (len(shards) or MAX_SHARDS), done, as_json=as_json)


@click.command("scale", short_help="Change the number of shards.", epilog=examples("shardgate scale 4"))
@click.argument("shards", type=click.IntRange(1, MAX_SHARDS))
@runtime_dir_option
@json_option
@_busy_time
def scale(shards: int, rundir: RuntimeDir, as_json: bool, timeout: float) -> int:
    """Change the number of shards to SHARDS, and spread the connections over them.

    The number in the configuration does not change. The next supervisor starts with that number.
    """
    order = {"what": "scale", "number": shards, "seconds": timeout}
    done = f"there {'is' if shards == 1 else 'are'} {words.count('shard', shards)}"
    return _operate(rundir, order, 2 * timeout, done, as_json=as_json)


@click.command(
    "rebalance",
    short_help="Spread the connections over the shards.",
    epilog=examples("shardgate rebalance --dry-run", "shardgate rebalance"),
)
@click.option("--dry-run", is_flag=True, help="Show what would be moved, and move nothing.")
@runtime_dir_option
@json_option
@_busy_time
def rebalance(dry_run: bool, rundir: RuntimeDir, as_json: bool, timeout: float) -> int:
    """Spread the connections over the shards as new ones would be placed, with as few moves as possible."""
    if dry_run:
        _show_plan(asking.ask_supervisor(rundir, "plan", list[_Move], _ANSWER_WITHIN), as_json=as_json)
        return ExitCode.OK
    return _operate(rundir, {"what": "rebalance", "seconds": timeout}, timeout, "rebalanced", as_json=as_json)


def _show_plan(moves: list[_Move], *, as_json: bool) -> None:
    if as_json:
        named = [
            {"connection_id": f"{m.agent_id}-conn-{m.number}", "agent_id": m.agent_id, "from": m.source, "to": m.target}
            for m in moves
        ]
        output.print_json(named)
        return
    between: dict[tuple[int, int], int] = {}
    for move in moves:
        between[move.source, move.target] = between.get((move.source, move.target), 0) + 1
    for (source, target), n in sorted(between.items()):
        click.echo(f"{words.count('connection', n)} from shard {source} to shard {target}")
    if not moves:
        click.echo("nothing to move")


def _operate(rundir: RuntimeDir, order: Mapping[str, Any], seconds: float, done: str, *, as_json: bool) -> int:
    """Start an operation, follow it to its end, and return the exit code. *done* is the text for a success."""
    row = asking.ask_supervisor(rundir, "operate", OperationRow, _ANSWER_WITHIN, dict(order))
    deadline = time.monotonic() + seconds + _AFTER_THE_LIMIT
    said = ""
    try:
        while not row.is_done:
            if row.step != said and not as_json:
                said = row.step
                output.note(said)
            if time.monotonic() > deadline:
                raise CommandError(ExitCode.TIMED_OUT, f"'{row.name}' is not done yet; 'shardgate status' shows it")
            time.sleep(_LOOK_EVERY)
            row = _look(rundir, row)
    except KeyboardInterrupt:
        raise CommandError(ExitCode.FAILED, f"'{row.name}' goes on; 'shardgate status' shows it") from None
    if as_json:
        output.print_json({"schema": SCHEMA} | msgspec.structs.asdict(row))
    else:
        click.echo(_summary(row) if row.error else f"{done}; {_summary(row)}")
    if row.error is not None:
        raise CommandError(ExitCode.FAILED, words.safe(row.error, 500))
    return ExitCode.TIMED_OUT if row.left else ExitCode.OK


def _look(rundir: RuntimeDir, last: OperationRow) -> OperationRow:
    """Return the progress of the operation, or *last* while the supervisor is too busy to answer."""
    try:
        answer = query.ask(rundir.supervisor_query, "operation", timeout=_ANSWER_WITHIN)
    except query.NoAnswer:
        return last
    except query.QueryError:
        raise CommandError(ExitCode.FAILED, f"the supervisor went away during '{last.name}'") from None
    row = None if answer is None else asking.understood(answer, OperationRow)
    if row is None or row.name != last.name:
        raise CommandError(ExitCode.FAILED, f"the supervisor was replaced during '{last.name}'")
    return row


def _summary(row: OperationRow) -> str:
    parts = [f"{words.count('connection', row.moved)} moved" if row.moved or row.left else "nothing to move"]
    if row.p50_ms is not None:
        parts.append(f"each within {row.p50_ms:.1f} ms (median), {row.longest_ms:.1f} ms (longest)")
    if row.left:
        parts.append(f"{row.left} left, with requests in flight")
    return ", ".join(parts) + f", in {row.seconds:.1f} s"
