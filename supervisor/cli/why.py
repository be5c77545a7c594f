"""``shardgate why AGENT``: prints the history of one agent, and advice."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import click
import msgspec

from ipc.rundir import RuntimeDir
from ipc.schema import SCHEMA
from supervisor.advice import Now, advise
from supervisor.answer_rows import Why
from supervisor.cli import asking, output
from supervisor.cli.errors import ExitCode
from supervisor.cli.event_text import event_row
from supervisor.cli.options import complete_agents, examples, json_option, runtime_dir_option, timeout_option
from supervisor.history_rows import Refusals
from supervisor.history_words import what, with_code
from supervisor.merge import AgentEntry, ConnectionEntry, rfc3339
from supervisor.words import LONGEST_CONNECTION_ID, count, duration, moment, safe


@click.command(
    "why",
    short_help="Explain what became of an agent.",
    epilog=examples("shardgate why waf-1", "shardgate why waf-1 --json"),
)
@click.argument("agent", metavar="AGENT", shell_complete=complete_agents)
@runtime_dir_option
@json_option
@timeout_option("2s", "to wait for answers")
def command(agent: str, rundir: RuntimeDir, as_json: bool, timeout: float) -> int:
    """Explain what became of AGENT: its last registrations and refusals, why connections ended, and what to do next.

    The supervisor keeps this in memory, longest for agents that were connected for a minute or more. A flood of
    refusals under an agent's id is one line with a number, and displaces no other events.
    """
    answer = asking.ask_supervisor(rundir, "why", Why, timeout, {"agent_id": agent})
    shards = sorted({slot.shard for slot in answer.slots if slot.shard is not None})
    pages = asking.collect_pages(
        rundir, shards, "connections", {"after": 0, "agent": agent}, ConnectionEntry, lambda entry: entry.n, timeout
    )
    health = asking.collect_pages(
        rundir, shards, "agents", {"after": "", "agent": agent}, AgentEntry, lambda entry: entry.agent_id, timeout
    )
    connections = {entry.connection_id: entry for entries in pages.entries.values() for entry in entries}
    mine = [entry for entries in health.entries.values() for entry in entries if entry.agent_id == agent]
    now = Now(
        connections=sum(slot.live for slot in answer.slots),
        limit=answer.limit,
        healthy=all(entry.healthy for entry in mine) if mine else None,
        in_flight=sum(entry.in_flight for entry in mine),
    )
    at = time.time()
    advice = list(advise(now, answer.story, answer.objection, answer.similar, at, answer.uptime_s))
    if as_json:
        output.print_json(_as_row(answer, now, connections, advice))
    else:
        click.echo("\n".join(_text(answer, now, connections, advice, at)))
    asking.warn_of_silence(pages.silent, timeout)
    return ExitCode.OK


def _as_row(answer: Why, now: Now, connections: dict[str, ConnectionEntry], advice: Sequence[str]) -> dict[str, Any]:
    story = answer.story
    return {
        "schema": SCHEMA,
        "agent_id": answer.agent_id,
        "connections": now.connections,
        "limit": answer.limit,
        "healthy": now.healthy,
        "in_flight": now.in_flight,
        "slots": [
            msgspec.structs.asdict(slot)
            | {"peer": connections[slot.connection_id].peer if slot.connection_id in connections else None}
            for slot in answer.slots
        ],
        "refusals": [
            msgspec.structs.asdict(r) | {"first_at": rfc3339(r.first_at), "last_at": rfc3339(r.last_at)}
            for r in (story.refusals if story else ())
        ],
        "events": [event_row(event) for event in (story.events if story else ())],
        "objection": answer.objection,
        "advice": list(advice),
    }


def _text(
    answer: Why, now: Now, connections: dict[str, ConnectionEntry], advice: Sequence[str], at: float
) -> Iterator[str]:
    colour = output.use_colour()
    health = {True: ", healthy", False: ", not healthy", None: ""}[now.healthy if now.connections else None]
    in_flight = f", {now.in_flight:,} in flight" if now.in_flight else ""
    head = f"{safe(answer.agent_id)}: {now.connections} of {count('connection', answer.limit)}{health}{in_flight}"
    yield output.styled(head, "green" if now.connections and now.healthy is not False else "red", enabled=colour)
    for slot in answer.slots:
        where = "no shard yet" if slot.shard is None else f"shard {slot.shard}"
        entry = connections.get(slot.connection_id)
        since = f", since {moment(entry.connected_at, at)}, {safe(entry.peer)}" if entry else ""
        state = "" if slot.live else ", being accepted"
        yield f"  {safe(slot.connection_id, LONGEST_CONNECTION_ID)}  {where}{state}{since}"
    story = answer.story
    if story is not None and story.refusals:
        yield "refused"
        yield from (f"  {_refusals(refusals, at)}" for refusals in story.refusals)
    if story is not None and story.events:
        yield "happened"
        times = [moment(event.at, at, milliseconds=True) for event in story.events]
        width = max(map(len, times))
        for when, event in zip(times, story.events, strict=True):
            shard = f"shard {event.shard}" if event.shard >= 0 else ""
            line = f"  {when:<{width}}  {event.kind:<10}  {f'conn-{event.number}':<12}  {shard:<8}  {what(event)}"
            yield line.rstrip()
        yield f"  last of it {duration(max(0.0, at - story.events[-1].at))} ago"
    yield "what to do" if advice else "nothing to do: all is as it should be"
    yield from (f"  - {safe(line, 500)}" for line in advice)


def _refusals(refusals: Refusals, now: float) -> str:
    times = f"{refusals.times:,} times since {moment(refusals.first_at, now)}, last " if refusals.times > 1 else ""
    origin = f" (from {safe(refusals.peer)})" if refusals.peer else ""
    return f"{times}{moment(refusals.last_at, now)}  {with_code(refusals.code, refusals.text)}{origin}"
