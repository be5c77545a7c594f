"""Advice about an agent that is refused, away or unhealthy. Pure: known facts go in, sentences come out."""

from collections.abc import Iterator, Sequence

import msgspec

from ipc.events import CloseCode
from supervisor.history_rows import Event, Refusals, Story

LATELY = 600.0
"""Age in seconds up to which an event counts as recent."""

FLAPPING = 4
"""Number of recently ended connections from which on an agent counts as flapping."""

_REFUSED = {
    "auth_failed": "its token is missing or wrong: give the agent one that is good for this id ('shardgate token new'"
    " makes one), and 'shardgate reload' after a change of a token file",
    "not_allowed": "add the id to allowed-agents, or its uid to allow-uid, and 'shardgate reload'",
    "connection_limit": "it keeps as many connections as it may: have it use fewer, raise max-connections-per-agent and"
    " 'shardgate reload', or close those that nobody needs with 'shardgate kick'",
    "timeout": "it connects and does not register in time: look for a slow network, or raise handshake-timeout",
    "version_mismatch": "it speaks another version of the protocol: update the agent",
    "bad_registration": "what it sends is no registration: the text says what is wrong with it",
    "overloaded": "this host could not take it then: 'shardgate status' shows descriptors, load and silent shards;"
    " 'shardgate doctor' what is too small",
    "shutting_down": "it came while shardgate stopped, and may try again at once",
}

_CLOSED = {
    CloseCode.CONNECTION_LOST: "the network or the agent's host lost the connection: look there, at NAT and firewalls"
    " that forget idle connections",
    CloseCode.BAD_FRAME: "the agent sent what is not the protocol: look into its log, and for what else writes to that"
    " connection",
    CloseCode.NOT_READING: "the agent does not read what it is sent: it hangs, or is far too slow",
    CloseCode.PING_TIMEOUT: "the agent stopped answering: it hangs, or its host vanished",
    CloseCode.KICKED: "an operator closed it; to keep an agent out, revoke its token or take it out of allowed-agents",
    CloseCode.SHARD_DIED: "its shard's process died: 'shardgate events --shard N' and the log say why",
}


class Now(msgspec.Struct, frozen=True, kw_only=True):
    """The present state of an agent: its accepted connections, its limit, and its health (None: unknown)."""

    connections: int
    limit: int
    healthy: bool | None
    in_flight: int = 0


def advise(
    now: Now, story: Story | None, objection: str | None, similar: str | None, at: float, uptime_s: float
) -> Iterator[str]:
    """The next things to check or to do, most pressing first. *at* is the present, in seconds since 1970."""
    if objection is not None:
        yield f"no registration under this id can succeed: {objection}"
    if story is None and not now.connections:
        yield from _never_seen(similar, uptime_s)
        return
    for refusals in _lately_refused(story, at):
        yield f"refused with {refusals.code}: {_REFUSED.get(refusals.code, refusals.text)}"
    if now.connections and now.healthy is False:
        yield "connected, and not healthy: it failed several times in a row, or says so itself; look into its log"
    if now.connections == 0 and story is not None:
        yield from _why_away(story)
    yield from _comes_and_goes(story, at)


def _never_seen(similar: str | None, uptime_s: float) -> Iterator[str]:
    yield (
        f"nothing has come under this id since the supervisor started {uptime_s:.0f} s ago, or it was pushed out by"
        " newer ones: check the address that the agent dials ('shardgate status' lists the listeners), a firewall,"
        " and the spelling of the id"
    )
    if similar is not None:
        yield f"did you mean {similar}? It is known here"


def _lately_refused(story: Story | None, at: float) -> list[Refusals]:
    """The recent refusals without a later acceptance, newest first. Refusals for the limit count in any case."""
    if story is None:
        return []
    accepted_at = max((event.at for event in story.events if event.kind == "registered"), default=0.0)
    return [
        refusals
        for refusals in reversed(story.refusals)
        if at - refusals.last_at <= LATELY and (refusals.last_at >= accepted_at or refusals.code == "connection_limit")
    ]


def _why_away(story: Story) -> Iterator[str]:
    last = _last_closed(story.events)
    if last is None:
        return
    if last.code in (CloseCode.CLOSED_BY_AGENT, CloseCode.RESET_BY_AGENT):
        yield "not connected: the agent ended its last connection itself, so its own log says why; it has to dial again"
    elif last.code in (CloseCode.SHARD_STOPPED, CloseCode.SHARD_DRAINED):
        yield "not connected: its shard was stopped; an agent that reconnects lands on another one"
    elif last.code in _CLOSED:
        yield f"not connected: {_CLOSED[CloseCode(last.code)]}"


def _comes_and_goes(story: Story | None, at: float) -> Iterator[str]:
    ends = [e for e in (story.events if story else ()) if e.kind == "closed" and at - e.at <= LATELY]
    if len(ends) >= FLAPPING:
        longest = max(event.seconds for event in ends)
        codes = ", ".join(sorted({event.code for event in ends}))
        yield f"it comes and goes: {len(ends)} connections ended lately ({codes}), the longest after {longest:.1f} s"


def _last_closed(events: Sequence[Event]) -> Event | None:
    return next((event for event in reversed(events) if event.kind == "closed"), None)
