"""Whom the supervisor has told a changed configuration: no agent too little, whatever happens in between."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from ipc.events import Command, PushConfig
from supervisor import config_push
from supervisor.config.model import AgentConfigRule
from supervisor.config.pushed import AgentConfig
from supervisor.config_push import ConfigPush
from supervisor.ledger import Ledger

Told = list[tuple[int, bytes, list[str]]]


def config(**by_pattern: int) -> AgentConfig:
    """Rules that give the agents of a prefix a version."""
    return AgentConfig(AgentConfigRule((f"{prefix}-*",), {"v": v}) for prefix, v in by_pattern.items())


def noting(told: Told) -> Callable[[int, Command], bool]:
    """A way to tell shards that notes what they are told."""

    def send(shard: int, command: Command) -> bool:
        assert isinstance(command, PushConfig)
        told.append((shard, command.config, command.agent_ids))
        return True

    return send


def join(ledger: Ledger, agent_id: str, shard: int) -> int:
    """A live connection."""
    number = ledger.reserve(agent_id)
    ledger.place(agent_id, number, shard)
    ledger.commit(agent_id, number)
    return number


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run it with a limit."""
    asyncio.run(asyncio.wait_for(test(), 20))


async def until(condition: Callable[[], object]) -> None:
    """Let the loop run until *condition* holds; the test has a limit."""
    while not condition():  # noqa: ASYNC110 - it has no event to wait for
        await asyncio.sleep(0)


def test_agents_whose_configuration_changed_are_told_once_for_each_shard_and_text() -> None:
    async def test() -> None:
        ledger, told = Ledger(10), Told()
        push = ConfigPush(ledger, noting(told))
        for agent_id, shard in [("waf-1", 0), ("waf-1", 0), ("waf-1", 1), ("waf-2", 1), ("auth-1", 0), ("x-1", 0)]:
            join(ledger, agent_id, shard)
        push.changed(config(waf=1, auth=1, old=1), config(waf=2, auth=1, x=7))
        await until(lambda: len(told) == 3)
        push.changed(config(waf=2, auth=1, x=7), config(auth=1, x=7))
        await until(lambda: len(told) == 5)
        assert sorted(told[:3]) == [
            (0, b'{"v":2}', ["waf-1"]),
            (0, b'{"v":7}', ["x-1"]),
            (1, b'{"v":2}', ["waf-1", "waf-2"]),
        ]
        assert sorted(told[3:]) == [(0, b"{}", ["waf-1"]), (1, b"{}", ["waf-1", "waf-2"])]
        push.close()

    run(test)


def test_reload_in_the_middle_of_another_tells_everybody_the_newest_and_nobody_what_he_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(config_push, "SLICE", 10)

    async def test() -> None:
        ledger = Ledger(10)
        last: dict[str, bytes] = {}

        def send(_shard: int, command: Command) -> bool:
            assert isinstance(command, PushConfig)
            last.update(dict.fromkeys(command.agent_ids, command.config))
            return True

        push = ConfigPush(ledger, send)
        for number in range(100):
            join(ledger, f"waf-{number}", number % 3)
        push.changed(config(waf=1), config(waf=2))
        await until(lambda: len(last) >= 30)
        half = set(last)
        assert len(half) < 100
        push.changed(config(waf=2), config(waf=1))
        await until(lambda: set(last.values()) == {b'{"v":1}'} or len(last) == 100)
        await until(lambda: not push._todo)
        assert set(last) == half  # The others still have version 1.
        push.close()

    run(test)


def test_agent_with_a_newcomer_on_its_way_is_told_again_when_that_one_is_in_a_pool(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(config_push, "LATER", 0.01)
    looks: list[str] = []

    class Watched(Ledger):
        def reserved(self, agent_id: str) -> bool:
            looks.append(agent_id)
            return super().reserved(agent_id)

    async def test() -> None:
        ledger, told = Watched(10), Told()
        push = ConfigPush(ledger, noting(told))
        join(ledger, "waf-1", 0)
        number = ledger.reserve("waf-1")
        first = ledger.reserve("waf-2")
        push.changed(config(waf=1), config(waf=2))
        await until(lambda: looks.count("waf-1") == 5)
        assert told == [(0, b'{"v":2}', ["waf-1"])]
        ledger.release("waf-2", first)  # Refused: nobody to tell.
        ledger.place("waf-1", number, 1)
        ledger.commit("waf-1", number)
        await until(lambda: len(told) == 3)
        assert told[1:] == [(0, b'{"v":2}', ["waf-1"]), (1, b'{"v":2}', ["waf-1"])]
        await until(lambda: push._timer is None)
        push.close()

    run(test)


def test_shard_that_cannot_be_told_is_told_later() -> None:
    async def test() -> None:
        ledger, told = Ledger(10), Told()
        reachable = False

        def send(shard: int, command: Command) -> bool:
            noting(told)(shard, command)
            return reachable

        push = ConfigPush(ledger, send)
        join(ledger, "waf-1", 0)
        push.changed(config(waf=1), config(waf=2))
        await until(lambda: len(told) == 2)
        reachable = True
        await until(lambda: push._timer is None)
        assert told == [(0, b'{"v":2}', ["waf-1"])] * 3
        push.close()

    run(test)
