"""Configurations of one agent that come over several connections, with hooks that take their time."""

import asyncio
import logging
from contextlib import AsyncExitStack

import pytest
from support.deciding import allows
from support.scripted_proxy import Peer, run
from support.waiting import until

from dialout import (
    ALLOW,
    ALLOWED,
    Agent,
    Answer,
    Block,
    ConfigUpdate,
    Configure,
    Decision,
    Dialect,
    Health,
    HealthState,
    RequestHeaders,
)
from dialout.agent.configuring import Configuring
from dialout.agent.hooks import Hooks
from dialout.agent.request import Request

from .test_serving import answer, headers, serving


class Slow(Agent):
    """Takes a configuration when it is let go; ``begun`` are those that it was asked to take, ``done`` those taken."""

    def __init__(self, **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self.begun: list[object] = []
        self.done: list[object] = []
        self.go = asyncio.Semaphore(0)

    async def on_configure(self, event: Configure) -> None:  # type: ignore[override]
        """Wait, and refuse what says so."""
        self.begun.append(event.config)
        await self.go.acquire()
        if event.config == "bad":
            raise ValueError("bad rules")
        self.done.append(event.config)

    def on_request_headers(self, event: RequestHeaders) -> Decision:  # type: ignore[override]
        """Allow, and say by what."""
        return ALLOWED.set_request_header("x-by", str(self.configuration))


async def verdict(peer: Peer) -> object:
    return (await answer(peer)).response.verdict


def test_of_two_reloads_in_a_row_the_newer_one_wins_and_the_hook_runs_once_for_each() -> None:
    async def main() -> None:
        agent = Slow()
        async with AsyncExitStack() as stack:
            peers = [(await stack.enter_async_context(serving(agent, Dialect.CORE)))[0] for _ in range(4)]
            for number, config in enumerate(("old", "new"), start=1):
                for peer in peers:
                    peer.event(Configure(config), number)
            await until(lambda: agent.begun == ["old"], "the first to begin")
            agent.go.release()
            await until(lambda: agent.begun == ["old", "new"], "the second to begin")
            agent.go.release()
            for peer in peers:
                assert [await verdict(peer) for _ in range(2)] == [ALLOW, ALLOW]
            assert (agent.done, agent.configuration) == (["old", "new"], "new")

    run(main())


def test_of_many_reloads_while_one_is_applied_only_the_last_follows() -> None:
    async def main() -> None:
        agent = Slow()
        async with serving(agent, Dialect.CORE) as (peer, _, _):
            for number in range(6):
                peer.event(Configure(number), number + 1)
            await until(lambda: agent.begun == [0] and len(agent.configuring._known) == 6, "all to be there")
            agent.go.release()
            agent.go.release()
            assert [await verdict(peer) for _ in range(6)] == [ALLOW] * 6
            assert (agent.done, agent.configuration) == ([0, 5], 5)

    run(main())


def test_late_copy_of_an_older_one_does_not_bring_it_back_and_a_revert_does() -> None:
    async def main() -> None:
        agent = Slow()
        for _ in range(9):
            agent.go.release()
        async with serving(agent, Dialect.CORE) as (quick, _, _), serving(agent, Dialect.CORE) as (late, _, _):
            for number, config in enumerate(("a", "b"), start=1):
                quick.event(Configure(config), number)
                assert await verdict(quick) == ALLOW
            for number, config in enumerate(("a", "b"), start=1):
                late.event(Configure(config), number)
                assert await verdict(late) == ALLOW
            assert agent.done == ["a", "b"]
            for peer in (late, quick):
                peer.event(Configure("a"), 3)
                assert await verdict(peer) == ALLOW
            assert agent.done == ["a", "b", "a"]

    run(main())


def test_equal_means_equal_as_json() -> None:
    async def main() -> None:
        agent = Slow()
        for _ in range(9):
            agent.go.release()
        async with serving(agent, Dialect.CORE) as (peer, _, _):
            for number, config in enumerate((1, True, {"a": 1, "b": 2}, {"b": 2, "a": 1}), start=1):
                peer.event(Configure(config), number)
                assert await verdict(peer) == ALLOW
            assert [repr(one) for one in agent.done] == ["1", "True", "{'a': 1, 'b': 2}"]

    run(main())


def test_refusal_is_a_block_with_its_reason_whatever_the_failure_answer_and_the_older_one_stays(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        agent = Slow(failure=Decision.allow())
        for _ in range(9):
            agent.go.release()
        async with (
            serving(agent, Dialect.CORE, {"good": 1}) as (first, _, _),
            serving(agent, Dialect.CORE, {"good": 1}) as (second, _, _),
        ):
            for peer in (first, second):
                peer.event(Configure("bad"), 1)
                assert await verdict(peer) == Block(500, "ValueError: bad rules")
            assert agent.begun == [{"good": 1}, "bad"]
            first.event(headers(), 2)
            assert (await answer(first)).response.request_headers[0].value == "{'good': 1}"
            first.event(Configure("bad"), 3)
            assert await verdict(first) == Block(500, "ValueError: bad rules")
            assert agent.begun[2:] == ["bad"]

    with caplog.at_level(logging.ERROR, "dialout.agent"):
        run(main())
    assert len(caplog.records) == 2


def test_refusal_of_what_came_with_the_registration_is_reported_by_core_agents() -> None:
    agent = allows()

    @agent.hook
    def on_configure(event: Configure) -> Decision:
        return Decision.block(500, "rule 7 is broken")

    async def main() -> None:
        async with serving(agent, Dialect.CORE, {"rules": 7}) as (peer, _, _):
            told = await peer.inbound()
            assert isinstance(told, ConfigUpdate)
            assert (told.kind, told.fields["error"]) == ("config_error", "rule 7 is broken")
            peer.event(headers(), 1)
            assert await verdict(peer) == ALLOW
        async with serving(agent, Dialect.SDK, {"rules": 7}) as (peer, _, _):
            peer.event(headers(), 1)
            assert await verdict(peer) == ALLOW

    run(main())


def test_connections_that_register_at_once_share_one_refusal_and_a_later_one_tries_again() -> None:
    agent, begun = allows(), []

    @agent.hook
    def on_configure(event: Configure) -> None:
        begun.append(event.config)
        raise ValueError

    async def main() -> None:
        event, now = Configure({"rules": 1}), asyncio.get_running_loop().time()
        hook = Hooks(agent).by_event[Configure]
        queue = Configuring(agent)
        for place in [queue.join(hook, "c", now, lambda: None) for _ in range(4)]:
            refusal = place.bring(event, Request(None, None))
            assert isinstance(refusal, Decision)
            assert isinstance(refusal.verdict, Block)
        assert len(begun) == 1
        queue.join(hook, "c", now + 1, lambda: None).bring(event, Request(None, None))
        assert len(begun) == 2

    run(main())


@pytest.mark.parametrize("dialect", list(Dialect))
def test_agent_that_requires_a_configuration_serves_nothing_before_its_first(dialect: Dialect) -> None:
    async def main() -> None:
        agent = Slow(require_configuration=True, failure=Decision.block(503))
        async with AsyncExitStack() as stack:
            peer, _, _ = await stack.enter_async_context(serving(agent, dialect))
            if dialect is Dialect.CORE:
                told = await peer.inbound()
                assert isinstance(told, Health)
                assert told.state is HealthState.UNHEALTHY
            peer.event(headers(), 1)
            assert await verdict(peer) == Block(503)
            agent.go.release()
            if dialect is Dialect.CORE:
                peer.event(Configure({"rules": 1}), 2)
                found = [await peer.inbound(), await peer.inbound()]
                assert {type(one) for one in found} == {Answer, Health}
            else:
                await stack.enter_async_context(serving(agent, dialect, {"rules": 1}))
                await until(lambda: agent.done, "the configuration")
            peer.event(headers(), 3)
            assert await verdict(peer) == ALLOW

    run(main())


def test_connection_that_ends_while_its_configuration_is_applied_ends_at_once() -> None:
    async def main() -> None:
        agent = Slow()
        async with serving(agent, config={"rules": 1}) as (_, connection, task):
            await until(lambda: agent.begun, "it to begin")
            assert await connection.drain(5)
            await task
        # It is given up with the last connection, and begun again with the next one.
        agent.go.release()
        async with serving(agent, config={"rules": 1}) as (peer, _, _):
            peer.event(headers(), 1)
            assert await verdict(peer) == ALLOW
        assert len(agent.begun) == 2
        assert agent.configuration == {"rules": 1}

    run(main())
