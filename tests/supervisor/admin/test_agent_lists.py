"""Lists of agents for the admin endpoint: many who ask cost the shards one question at a time."""

import asyncio

import pytest
from support.loop import Loop, scenario

from ipc.events import AgentsPage
from ipc.turns import Turns
from supervisor.admin import agents
from supervisor.admin.agents import AgentLists, Busy


@pytest.fixture
def loop() -> Loop:
    """An event loop for scenarios."""
    return Loop()


class Shards:
    """Two shards that answer when they are told to."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int, str, int]] = []
        self.lists = AgentLists(lambda: (0, 1), self._ask, lambda: 0, lambda: 4, Turns())

    def _ask(self, shard: int, request: int, after: str, limit: int) -> bool:
        self.asked.append((shard, request, after, limit))
        return True

    def answer(self) -> None:
        """Answer the last question."""
        for shard, request, *_ in self.asked[-2:]:
            self.lists.answered(shard, AgentsPage(1, request, [(f"waf-{shard}", 1, 0, True)]))


@scenario
async def test_different_pages_are_asked_for_one_after_another(loop: Loop) -> None:
    shards = Shards()
    pages = [asyncio.create_task(shards.lists.page(after, 10)) for after in ("a", "b", "a")]
    for number, after in ((1, "a"), (2, "b")):
        await loop.until(lambda wanted=2 * number: len(shards.asked) == wanted, "the next question")  # type: ignore[misc]
        await loop.turns(20)
        assert [(shard, what) for shard, _, what, _ in shards.asked[-2:]] == [(0, after), (1, after)]
        shards.answer()
    found = [await page for page in pages]
    assert [[row.agent_id for row in page.agents] for page in found] == [["waf-0", "waf-1"]] * 3
    assert found[0] is found[2]


@scenario
async def test_no_more_pages_wait_than_a_few(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents, "ANSWER_SECONDS", 3600.0)
    monkeypatch.setattr(agents, "MOST_PAUSE_SECONDS", 0.0)
    shards = Shards()
    pages = []
    for number in range(40):
        pages.append(asyncio.create_task(shards.lists.page(str(number), 10)))
        await loop.turns(3)

    def all_told() -> bool:
        shards.answer()
        return all(page.done() for page in pages)

    await loop.until(all_told, "all pages")
    found = await asyncio.gather(*pages, return_exceptions=True)
    assert sum(isinstance(page, Busy) for page in found) == 40 - agents.MOST_WAITING
    assert all(page.complete for page in found if not isinstance(page, BaseException))
