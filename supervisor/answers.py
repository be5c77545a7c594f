"""The queries behind why, events, kick and log-level, and the agent ids for shell completion."""

import difflib
import re
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Annotated, Any

import msgspec

from ipc.events import Kick
from ipc.log_levels import LEVEL_NAMES
from ipc.logs import change_level, get_logger
from ipc.query import MAX_PAGE, Refused, page_length, typed
from ipc.query_server import Method
from supervisor.answer_rows import Kicked, SlotRow, Why
from supervisor.fleet import Fleet
from supervisor.history_rows import Page
from supervisor.journal import Journal
from supervisor.ledger import Ledger
from supervisor.policy import Policy

MOST_SIMILAR = 2000
"""Most agents that are compared to find a similar id. It takes 5 ms."""

MOST_OFFERED = 200
"""Most agent ids that one completion in a shell gets."""

_CONNECTION_ID = re.compile(r"(.+)-conn-(\d{1,18})")


class _Agent(msgspec.Struct):
    agent_id: str


class _Beginning(msgspec.Struct):
    beginning: str


class _EventsPage(msgspec.Struct):
    after: int | None = None
    limit: int = MAX_PAGE
    agent_id: str | None = None
    shard: int | None = None


class _Kick(msgspec.Struct):
    target: str
    seconds: Annotated[float, msgspec.Meta(ge=0, le=86400)] = 0.0


class _LogLevel(msgspec.Struct):
    level: str


class Answers:
    """The queries about agents, as methods by name. *policy* and *uptime* are called for each query."""

    def __init__(
        self,
        ledger: Ledger,
        fleet: Fleet,
        journal: Journal,
        policy: Callable[[], Policy],
        uptime: Callable[[], float],
    ) -> None:
        self._ledger, self._fleet, self._journal = ledger, fleet, journal
        self._policy, self._uptime = policy, uptime
        self.kicked_total = 0

    @property
    def reading(self) -> Mapping[str, Method]:
        """The queries that change nothing."""
        return {"why": self._why, "events": self._events, "agent_ids": self._agent_ids}

    @property
    def acting(self) -> Mapping[str, Method]:
        """The queries that change something."""
        return {"kick": self._kick, "log_level": self._log_level}

    def _why(self, arguments: dict[str, Any]) -> Why:
        agent_id = typed(arguments, _Agent).agent_id
        story = self._journal.history.story(agent_id)
        slots = self._ledger.slots(agent_id)
        return Why(
            agent_id=agent_id,
            limit=self._ledger.limit,
            slots=[SlotRow(f"{agent_id}-conn-{number}", slot.shard, slot.live) for number, slot in slots.items()],
            objection=self._policy().objection(agent_id),
            similar=self._similar(agent_id) if story is None and not slots else None,
            story=story,
            uptime_s=round(self._uptime(), 1),
        )

    def _agent_ids(self, arguments: dict[str, Any]) -> list[str]:
        """The ids of connected agents that begin with a text, for completion in a shell."""
        beginning = typed(arguments, _Beginning).beginning
        found = (agent_id for agent_id in self._ledger.agent_ids() if agent_id.startswith(beginning))
        return sorted(islice(found, MOST_OFFERED))

    def _similar(self, agent_id: str) -> str | None:
        """A known agent with a similar id; None without one."""
        known = [known for known, _ in zip(self._journal.history.agent_ids(), range(MOST_SIMILAR), strict=False)]
        found = difflib.get_close_matches(agent_id[:128], known, 1, 0.75)
        return found[0] if found else None

    def _events(self, arguments: dict[str, Any]) -> Page:
        asked = typed(arguments, _EventsPage)
        limit = page_length(asked.limit)
        return self._journal.history.since(asked.after, limit, agent_id=asked.agent_id, shard=asked.shard)

    def _kick(self, arguments: dict[str, Any]) -> Kicked:
        asked = typed(arguments, _Kick)
        target, seconds = asked.target, asked.seconds
        agent_id, numbers = self._meant(target)
        by_shard: dict[int, list[int]] = {}
        for number, slot in self._ledger.slots(agent_id).items():
            if slot.live and slot.shard is not None and (numbers is None or number in numbers):
                by_shard.setdefault(slot.shard, []).append(number)
        if not by_shard:
            raise Refused(f"{target} is not connected; 'shardgate why {agent_id}' says what became of it")
        send = self._fleet.lines.send
        silent = [shard for shard, these in by_shard.items() if not send(shard, Kick(these, seconds))]
        kicked = sorted(n for shard, these in by_shard.items() if shard not in silent for n in these)
        self.kicked_total += len(kicked)
        get_logger().info("connections kicked", agent_id=agent_id, numbers=kicked)
        self._journal.supervisor("kick", f"{agent_id}: {', '.join(f'conn-{n}' for n in kicked)}")
        return Kicked(
            agent_id=agent_id, connection_ids=[f"{agent_id}-conn-{n}" for n in kicked], shards_silent=sorted(silent)
        )

    def _meant(self, target: str) -> tuple[str, set[int] | None]:
        """The agent and its connections (None: all) that *target* names. A connected agent's id takes precedence."""
        found = _CONNECTION_ID.fullmatch(target)
        if found is None or self._ledger.count(target):
            return target, None
        return found[1], {int(found[2])}

    def _log_level(self, arguments: dict[str, Any]) -> dict[str, Any]:
        level = typed(arguments, _LogLevel).level
        if level not in LEVEL_NAMES:
            raise Refused(f"no such level; levels are {', '.join(LEVEL_NAMES)}")
        change_level(level)
        silent = self._fleet.set_log_level(level)
        self._journal.supervisor("log_level", level)
        return {"level": level, "shards_silent": silent}
