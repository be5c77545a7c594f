"""Lists of agents for the admin endpoint, fetched from the shards over the bus page by page, and cached briefly."""

import asyncio
from collections.abc import Callable, Collection
from time import thread_time
from typing import NamedTuple

import msgspec

from ipc.events import AgentsPage
from ipc.schema import SCHEMA
from ipc.status import AgentRow
from ipc.turns import Turns
from supervisor.merge import AgentEntry, merge_agents

MOST = 500
"""The most agents in one page."""

KEPT_SECONDS = 0.9
"""Lifetime of a cached answer. A shard sorts its agents for each answer, and many clients may watch the page."""

ANSWER_SECONDS = 0.5

MOST_KEPT = 16

MOST_WAITING = 16
"""The most pages that are being fetched, or wait for that."""

PAUSE_TIMES = 4
"""Pause after asking the shards, in multiples of their answer time. So all pages together take a fifth of a shard."""

MOST_PAUSE_SECONDS = 0.5
"""The longest such pause."""


class Busy(Exception):
    """Too many different pages are being fetched."""


class AgentList(msgspec.Struct, kw_only=True):
    """The answer of ``/agents.json``: the first agents with an id above *after*, in the order of their ids.

    *total* counts all agents of the host. The page is *complete* when every shard answered in time.
    """

    schema: int = SCHEMA
    total: int
    after: str
    complete: bool
    agents: list[AgentRow]


class _Kept(NamedTuple):
    until: float
    task: "asyncio.Task[AgentList]"


class AgentLists:
    """Asks the shards for agents. *ask* sends (shard, request, after, limit), and returns False on failure."""

    def __init__(
        self,
        shards: Callable[[], Collection[int]],
        ask: Callable[[int, int, str, int], bool],
        total: Callable[[], int],
        limit_per_agent: Callable[[], int],
        turns: Turns,
    ) -> None:
        self._shards, self._ask, self._total, self._limit_per_agent = shards, ask, total, limit_per_agent
        self._turns = turns
        self._loop = asyncio.get_running_loop()
        self._request = 0
        self._one_at_a_time = asyncio.Lock()
        self._not_before = 0.0
        self._unfinished = 0
        self._waiting: dict[tuple[int, int], asyncio.Future[list[tuple[str, int, int, bool]]]] = {}
        self._kept: dict[tuple[str, int], _Kept] = {}

    def answered(self, shard: int, page: AgentsPage) -> None:
        """Take a shard's answer."""
        future = self._waiting.pop((shard, page.request), None)
        if future is not None and not future.done():
            future.set_result(page.agents)

    async def page(self, after: str, limit: int) -> AgentList:
        """The first *limit* agents (at most `MOST`) with an id above *after*. Raises `Busy`."""
        limit = max(1, min(limit, MOST))
        now = self._loop.time()
        kept = self._kept.get((after, limit))
        if kept is None or (kept.task.done() and kept.until < now):
            if self._unfinished >= MOST_WAITING:
                raise Busy
            self._kept.pop((after, limit), None)
            while len(self._kept) >= MOST_KEPT:
                del self._kept[next(iter(self._kept))]
            kept = _Kept(now + KEPT_SECONDS, self._loop.create_task(self._in_its_turn(after, limit)))
            self._kept[after, limit] = kept
        # A client that hangs up must not cancel the answer for other clients.
        return await asyncio.shield(kept.task)

    async def _in_its_turn(self, after: str, limit: int) -> AgentList:
        self._unfinished += 1
        try:
            async with self._one_at_a_time:
                await asyncio.sleep(max(0.0, self._not_before - self._loop.time()))
                began = self._loop.time()
                page = await self._collect(after, limit)
                now = self._loop.time()
                self._not_before = now + min((now - began) * PAUSE_TIMES, MOST_PAUSE_SECONDS)
                return page
        finally:
            self._unfinished -= 1

    async def _collect(self, after: str, limit: int) -> AgentList:
        self._request += 1
        request, complete = self._request, True
        asked = {}
        for shard in self._shards():
            if self._ask(shard, request, after, limit):
                asked[shard] = self._waiting[shard, request] = self._loop.create_future()
            else:
                complete = False
        try:
            if asked:
                await asyncio.wait(asked.values(), timeout=ANSWER_SECONDS)
        finally:
            for shard in asked:
                self._waiting.pop((shard, request), None)
        before = thread_time()
        entries = {
            shard: [AgentEntry(*row) for row in future.result()] for shard, future in asked.items() if future.done()
        }
        rows = merge_agents(entries, self._limit_per_agent())
        self._turns.charge(thread_time() - before)
        return AgentList(
            total=self._total(), after=after, complete=complete and len(entries) == len(asked), agents=rows[:limit]
        )
