"""Signals of a process in which managers run, and something else as well."""

import asyncio
import contextlib
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from support.deciding import allows
from support.scripted_proxy import Peer, ScriptedProxy, run, scripted_proxy
from support.waiting import until

from dialout import AgentConnectionManager

NUMBERS = [signal.SIGTERM, signal.SIGINT]


@pytest.fixture(autouse=True)
def handlers_are_as_before() -> Iterator[None]:
    before = [signal.getsignal(number) for number in NUMBERS]
    yield
    assert [signal.getsignal(number) for number in NUMBERS] == before


@contextlib.contextmanager
def restored(number: signal.Signals) -> Iterator[None]:
    before = signal.getsignal(number)
    try:
        yield
    finally:
        signal.signal(number, before)


async def serves(peer: Peer) -> None:
    await peer.accept()
    await peer.end()


def manager_of(proxy: ScriptedProxy) -> AgentConnectionManager:
    return AgentConnectionManager(proxy.address, "waf-1", allows(), target_connections=1, ping_interval=0)


async def begun(proxy: ScriptedProxy, **options: Any) -> tuple[AgentConnectionManager, "asyncio.Task[None]"]:
    manager = manager_of(proxy)
    running = asyncio.create_task(manager.run(**options))
    await until(lambda: manager.connected == 1, "the connection")
    return manager, running


@pytest.mark.parametrize("number", NUMBERS)
def test_one_signal_ends_all_managers_of_a_loop_and_the_handlers_are_back_behind_the_last(
    number: signal.Signals,
) -> None:
    async def main() -> None:
        before = [signal.getsignal(one) for one in NUMBERS]
        async with scripted_proxy(serves) as proxy:
            first, running_first = await begun(proxy)
            second, running_second = await begun(proxy)
            first.stop()
            await running_first
            assert [signal.getsignal(one) for one in NUMBERS] != before
            third, running_third = await begun(proxy)
            signal.raise_signal(number)
            await asyncio.wait_for(asyncio.gather(running_second, running_third), 20)
            assert (second.connected, third.connected) == (0, 0)
        # Those of asyncio.run, and no others.
        assert [signal.getsignal(one) for one in NUMBERS] == before

    run(main())


@pytest.mark.parametrize("how", ["loop", "signal"])
@pytest.mark.parametrize("number", NUMBERS)
def test_signals_of_a_framework_stay_its_own(number: signal.Signals, how: str) -> None:
    async def main() -> None:
        told: list[int] = []
        loop = asyncio.get_running_loop()
        if how == "loop":
            loop.add_signal_handler(number, told.append, int(number))
        else:
            before = signal.signal(number, lambda number, _frame: told.append(number))
        try:
            async with scripted_proxy(serves) as proxy:
                manager, running = await begun(proxy)
                signal.raise_signal(number)
                await until(lambda: told == [number], "the framework to be told")
                assert manager.connected == 1
                # Its lifespan ends the agent.
                manager.stop()
                await running
                signal.raise_signal(number)
                await until(lambda: told == [number] * 2, "the framework to be told again")
        finally:
            if how == "loop":
                loop.remove_signal_handler(number)
            else:
                signal.signal(number, before)

    with restored(number):
        run(main())


@pytest.mark.parametrize("number", NUMBERS)
def test_signals_that_are_asked_for_are_taken_from_a_framework_which_learns_of_them_and_has_them_back(
    number: signal.Signals,
) -> None:
    told: list[int] = []

    def handler(number: int, _frame: object) -> None:
        told.append(number)

    async def main() -> None:
        before = signal.signal(number, handler)
        try:
            async with scripted_proxy(serves) as proxy:
                _, running = await begun(proxy, handle_signals=True)
                signal.raise_signal(number)
                await asyncio.wait_for(running, 20)
            assert told == [number]
            assert signal.getsignal(number) is handler
        finally:
            signal.signal(number, before)

    with restored(number):
        run(main())


def test_handler_that_was_set_meanwhile_is_left_alone() -> None:
    def handler(_number: int, _frame: object) -> None:
        raise NotImplementedError

    async def main() -> None:
        async with scripted_proxy(serves) as proxy:
            manager, running = await begun(proxy)
            signal.signal(signal.SIGTERM, handler)
            manager.stop()
            await running
        assert signal.getsignal(signal.SIGTERM) is handler

    with restored(signal.SIGTERM):
        run(main())


def test_ignored_signals_stay_ignored_and_those_not_wanted_are_not_touched() -> None:
    async def main() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        async with scripted_proxy(serves) as proxy:
            manager, running = await begun(proxy)
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
            manager.stop()
            await running
            before = signal.getsignal(signal.SIGINT)
            manager, running = await begun(proxy, handle_signals=False)
            assert signal.getsignal(signal.SIGINT) is before
            manager.stop()
            await running

    with restored(signal.SIGTERM):
        run(main())
