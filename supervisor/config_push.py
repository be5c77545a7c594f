"""Telling agents their configuration again, after a reload that changed it.

What shards are told is the merged text and whom it is for: no rules, no tokens, and one text for all agents that share
it. The shards know which connections can take it.
"""

import asyncio
from collections.abc import Callable
from itertools import islice

from ipc.events import Command, PushConfig
from ipc.logs import get_logger
from supervisor.config.pushed import AgentConfig
from supervisor.ledger import Ledger

SLICE = 50
"""Agents looked at in one turn of the loop. With 256 rules that takes up to 20 ms, with a few of them half of one."""

LATER = 0.1
"""Seconds between looks at agents that are to be told once more."""

NOTHING = b"{}"
"""The configuration of an agent that no rule is for any more."""


class ConfigPush:
    """Finds the agents whose configuration changed. *send* tells a shard something; False when it cannot be told.

    An agent may be told twice, and never too little: one with a newcomer on its way, whose acceptance may still hold
    the old configuration, is told again when that one is in a pool.
    """

    def __init__(self, ledger: Ledger, send: Callable[[int, Command], bool]) -> None:
        self._ledger = ledger
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._log = get_logger()
        self._newest = AgentConfig(())
        # Agents to look at, each with the configuration that it has been told.
        self._todo: dict[str, AgentConfig] = {}
        # Agents to be told once more, each with the number of looks that found nobody of it on the way.
        self._again: dict[str, int] = {}
        self._told = 0
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """How many agents are still to be told something."""
        return len(self._todo) + len(self._again)

    def changed(self, old: AgentConfig, new: AgentConfig) -> None:
        """Tell every agent for which *new* says something else than *old*."""
        self._newest = new
        for agent_id in self._ledger.agent_ids():
            # Whoever has not been looked at since the reload before has an older one.
            self._todo.setdefault(agent_id, old)
        if self._timer is None:
            self._timer = self._loop.call_later(0, self._turn)

    def close(self) -> None:
        """Tell nobody any more."""
        if self._timer is not None:
            self._timer.cancel()
        self._todo.clear()
        self._again.clear()

    def _turn(self) -> None:
        if self._todo:
            self._look()
        else:
            self._look_again()
        self._timer = None
        if self._todo or self._again:
            self._timer = self._loop.call_later(0 if self._todo else LATER, self._turn)

    def _look(self) -> None:
        agents = list(islice(self._todo, SLICE))
        to_tell = []
        for agent_id in agents:
            told = self._todo.pop(agent_id).for_agent(agent_id)
            if told != self._newest.for_agent(agent_id):
                to_tell.append(agent_id)
                if self._ledger.reserved(agent_id):
                    self._again[agent_id] = 0
        self._told += len(to_tell)
        self._tell(to_tell)
        if not self._todo:
            self._log.info("configuration of agents changed", agents=self._told)
            self._told = 0

    def _look_again(self) -> None:
        due = []
        for agent_id, looks in list(self._again.items()):
            if self._ledger.reserved(agent_id):
                self._again[agent_id] = 0
            elif looks == 0:
                # The shard may hear this before the commit, which goes another way: give it time.
                self._again[agent_id] = 1
            else:
                del self._again[agent_id]
                due.append(agent_id)
        self._tell(due)

    def _tell(self, agent_ids: list[str]) -> None:
        alike: dict[tuple[int, bytes], list[str]] = {}
        for agent_id in agent_ids:
            text = self._newest.for_agent(agent_id) or NOTHING
            for shard in self._ledger.live_counts(agent_id):
                alike.setdefault((shard, text), []).append(agent_id)
        for (shard, text), names in alike.items():
            if not self._send(shard, PushConfig(text, names)):
                self._again.update(dict.fromkeys(names, 0))
