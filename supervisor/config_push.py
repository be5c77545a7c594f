"""Push changed configuration to connected agents after a reload.

A shard gets the merged text and the ids of its agents. It gets no rules and no tokens, and one text for all agents that
share it. The shards know which connections can take a push.
"""

import asyncio
from collections.abc import Callable
from itertools import islice

from ipc.events import Command, PushConfig
from ipc.logs import get_logger
from supervisor.config.pushed import AgentConfig
from supervisor.ledger import Ledger

SLICE = 50
"""Agents that are compared in one turn of the loop. It takes up to 20 ms with 256 rules, half a ms with a few rules."""

LATER = 0.1
"""Seconds between two checks of the agents that need a second push."""

NOTHING = b"{}"
"""The configuration of an agent that no rule matches any more."""


class ConfigPush:
    """Finds the agents with changed configuration, and sends it to their shards.

    *send* sends a command to a shard, and returns False when the shard cannot be reached. An agent may get the same
    configuration twice. A connection on its way to a shard may have an acceptance with the old configuration. Its agent
    gets a second push when the connection is in a pool.
    """

    def __init__(self, ledger: Ledger, send: Callable[[int, Command], bool]) -> None:
        self._ledger = ledger
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._log = get_logger()
        self._newest = AgentConfig(())
        # Agents to compare, each with the rules of its last push.
        self._todo: dict[str, AgentConfig] = {}
        # Agents that need a second push, each with the number of checks that found no connection of it on its way.
        self._again: dict[str, int] = {}
        self._told = 0
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """How many agents are still to be compared, or need a second push."""
        return len(self._todo) + len(self._again)

    def changed(self, old: AgentConfig, new: AgentConfig) -> None:
        """Push *new* to every agent whose configuration differs between *old* and *new*."""
        self._newest = new
        for agent_id in self._ledger.agent_ids():
            # An agent that was not compared since the previous reload still has an older one.
            self._todo.setdefault(agent_id, old)
        if self._timer is None:
            self._timer = self._loop.call_later(0, self._turn)

    def close(self) -> None:
        """Push nothing more."""
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
                # The commit takes another way to the shard, so a push may overtake it. Wait one more check.
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
