"""The manager keeps connections there, against proxies that come, go and misbehave: with real sockets."""

import asyncio
import logging
import signal
import threading
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from support.deciding import allows
from support.fences import descriptors, new_descriptors
from support.product import short_folder
from support.scripted_proxy import Peer, run, scripted_proxy
from support.waiting import until

from dialout import (
    ALLOWED,
    Agent,
    AgentConnectionManager,
    AuthFailed,
    Backoff,
    ConnectionState,
    Decision,
    Dialect,
    ErrorCode,
    LocalProtocolError,
    Phase,
    ProxyUnreachable,
    RequestHeaders,
    encode_frame,
)

QUICK = Backoff(0.02, 0.1)


@pytest.fixture(autouse=True)
def no_descriptor_is_left() -> object:
    before = descriptors()
    yield
    assert new_descriptors(before) == []


@asynccontextmanager
async def managed(
    address: str, agent: Agent | None = None, **options: Any
) -> AsyncIterator[tuple[AgentConnectionManager, list[ConnectionState]]]:
    """A running manager with short waits, and all states that it went through."""
    states: list[ConnectionState] = []
    chosen: dict[str, Any] = {"backoff": QUICK, "target_connections": 1, "ping_interval": 0} | options
    manager = AgentConnectionManager(address, "waf-1", agent or allows(), on_state=states.append, **chosen)
    task = asyncio.create_task(manager.run(handle_signals=False))
    try:
        yield manager, states
    finally:
        manager.stop()
        await asyncio.wait({task})
    task.result()


async def serves(peer: Peer) -> None:
    await peer.accept()
    await peer.end()


def test_four_connections_are_kept_and_each_tells_its_states(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with scripted_proxy(serves) as proxy:
            async with managed(proxy.address, target_connections=4) as (manager, states):
                await until(lambda: manager.connected == 4, "four connections")
                proxy.peers[1].writer.close()
                proxy.peers[2].writer.close()
                await until(lambda: len(proxy.peers) == 6 and manager.connected == 4, "two new ones")
                assert manager.reconnects == 2
            for number in range(1, 5):
                own = [state.phase for state in states if state.number == number]
                assert own[:3] == [Phase.CONNECTING, Phase.REGISTERING, Phase.CONNECTED]
                assert own[-2:] == [Phase.DRAINING, Phase.CLOSED]
            assert sum(state.phase is Phase.WAITING for state in states) == 2

    with caplog.at_level(logging.INFO, "dialout.agent"):
        run(main())
    lines = caplog.messages
    assert "waf-1 connection 1: connecting" in lines
    assert "waf-1 connection 1: registering" in lines
    assert any(line.startswith("waf-1 connection 1: connected as waf-1-conn-") for line in lines)
    assert any(line.endswith("s: closed by the proxy") and ": waiting 0.0 s" in line for line in lines)


@pytest.mark.parametrize(
    ("code", "level"),
    [(ErrorCode.CONNECTION_LIMIT, logging.INFO), (ErrorCode.AUTH_FAILED, logging.ERROR),
     (ErrorCode.NOT_ALLOWED, logging.ERROR), (ErrorCode.VERSION_MISMATCH, logging.ERROR),
     (ErrorCode.OVERLOADED, logging.WARNING)],
)  # fmt: skip
def test_refused_agent_waits_as_loudly_as_the_code_deserves_and_gets_in_when_it_may(
    code: ErrorCode, level: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def script(peer: Peer) -> None:
        if peer.number < 4:
            await peer.refuse(code, "be\x1bcause")
        else:
            await peer.accept()
        await peer.end()

    async def main() -> None:
        async with (
            scripted_proxy(script) as proxy,
            managed(proxy.address, auth_token="open sesame") as (manager, states),
        ):
            await until(lambda: manager.connected, "it to be let in")
            assert [state.reason for state in states if state.phase is Phase.WAITING] == [code] * 3

    with caplog.at_level(logging.INFO, "dialout.agent"):
        run(main())
    waiting = [record for record in caplog.records if ": waiting " in record.getMessage()]
    assert {record.levelno for record in waiting} == {level}
    assert all(f" s: {code} (be\\x1bcause" in record.getMessage() for record in waiting)
    assert "sesame" not in caplog.text


def test_proxy_is_left_alone_for_as_long_as_it_asks() -> None:
    async def script(peer: Peer) -> None:
        await peer.refuse(ErrorCode.OVERLOADED, "later", 60_000)
        await peer.end()

    async def main() -> None:
        async with scripted_proxy(script) as proxy, managed(proxy.address) as (_, states):
            await until(lambda: states and states[-1].phase is Phase.WAITING, "the refusal")
            assert 60 <= states[-1].wait <= 60 + QUICK.limit(1)
            assert len(proxy.peers) == 1

    run(main())


async def closes(peer: Peer) -> None:
    await peer.register()


async def talks_nonsense(peer: Peer) -> None:
    await peer.register()
    peer.send(b"220 smtp.example ESMTP\r\n")
    await peer.end()


async def stays_silent(peer: Peer) -> None:
    await peer.register()
    await peer.end()


async def accepts_then_closes(peer: Peer) -> None:
    await peer.accept()


async def accepts_then_talks_nonsense(peer: Peer) -> None:
    await peer.accept()
    peer.send(bytes(8))
    await peer.end()


@pytest.mark.parametrize(
    "bad", [closes, talks_nonsense, stays_silent, accepts_then_closes, accepts_then_talks_nonsense]
)
def test_agent_backs_off_from_a_proxy_that_misbehaves_and_is_back_when_it_behaves(bad: Any) -> None:
    async def script(peer: Peer) -> None:
        await (bad if peer.number <= 5 else serves)(peer)

    async def main() -> None:
        async with scripted_proxy(script) as proxy:
            async with managed(proxy.address, timeout=0.05, backoff=Backoff(0.01, 0.08)) as (manager, states):
                manager._roll = lambda: 1.0
                await until(lambda: len(proxy.peers) == 6 and manager.connected, "the good one")
            waits = [round(state.wait, 3) for state in states if state.phase is Phase.WAITING]
            assert waits == [0.01, 0.02, 0.04, 0.08, 0.08]

    run(main())


def test_back_off_begins_anew_after_a_connection_that_served() -> None:
    async def script(peer: Peer) -> None:
        await peer.accept()
        if peer.number > 3:
            peer.event(RequestHeaders("GET", "/", {}), 1)
            await peer.inbound()

    async def main() -> None:
        async with scripted_proxy(script) as proxy:
            async with managed(proxy.address, backoff=Backoff(0.01, 10)) as (manager, states):
                manager._roll = lambda: 1.0
                await until(lambda: len(proxy.peers) == 6, "six of them")
            waits = [round(state.wait, 3) for state in states if state.phase is Phase.WAITING]
            assert waits[:5] == [0.01, 0.02, 0.04, 0.01, 0.01]

    run(main())


def test_more_than_five_unreadable_events_in_a_row_on_a_connection_make_it_reconnect() -> None:
    async def script(peer: Peer) -> None:
        await peer.accept()
        if peer.number == 1:
            for number in range(1, 7):
                peer.send(encode_frame(0x10, b'{"request_id":%d}' % number))
        await peer.end()

    async def main() -> None:
        async with scripted_proxy(script) as proxy, managed(proxy.address) as (manager, states):
            await until(lambda: len(proxy.peers) == 2 and manager.connected, "the reconnect")
            assert [state.reason for state in states if state.phase is Phase.WAITING] == ["too many errors in a row"]

    run(main())


def test_agent_waits_for_a_proxy_that_is_not_there_yet() -> None:
    async def main(folder: Path) -> None:
        async with managed(str(folder / "s"), target_connections=2) as (manager, states):
            await until(lambda: len([s for s in states if s.phase is Phase.WAITING]) >= 4, "some tries")
            assert "No such file" in next(s.reason for s in states if s.phase is Phase.WAITING)
            async with scripted_proxy(serves, path=folder / "s"):
                await until(lambda: manager.connected == 2, "both")
            await until(lambda: manager.connected == 0, "the end of both")

    with short_folder() as folder:
        run(main(folder))


def test_it_gives_up_only_when_told_to() -> None:
    async def refuses(peer: Peer) -> None:
        await peer.refuse(ErrorCode.AUTH_FAILED)

    async def main() -> None:
        manager = AgentConnectionManager("/nowhere/s", "waf-1", allows(), backoff=QUICK, max_failures=3)
        with pytest.raises(ProxyUnreachable):
            await manager.run(handle_signals=False)
        assert {state.phase for state in manager.states} == {Phase.CLOSED}
        async with scripted_proxy(refuses) as proxy:
            manager = AgentConnectionManager(proxy.address, "waf-1", allows(), backoff=QUICK, max_failures=0)
            with pytest.raises(AuthFailed):
                await manager.run(handle_signals=False)

    run(main())


class Slow(Agent):
    """Works until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.go = asyncio.Event()

    async def on_request_headers(self, event: RequestHeaders, request: object) -> Decision:
        """Wait."""
        await self.go.wait()
        return ALLOWED


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_finishes_what_is_in_flight_and_a_second_one_does_not(number: signal.Signals) -> None:
    answered: list[object] = []

    async def script(peer: Peer) -> None:
        await peer.accept()
        peer.event(RequestHeaders("GET", "/", {}), 1)
        answered.append(await peer.inbound())

    async def main(signals: int) -> None:
        agent = Slow()
        async with scripted_proxy(script) as proxy:
            manager = AgentConnectionManager(proxy.address, "waf-1", agent, target_connections=1, backoff=QUICK)
            running = asyncio.create_task(manager.run())
            await until(lambda: agent.counters.active, "the request")
            for _ in range(signals):
                signal.raise_signal(number)
                await until(lambda: manager.states[0].phase is not Phase.CONNECTED, "the signal")
            if signals == 1:
                assert manager.states[0].phase is Phase.DRAINING
                agent.go.set()
            await running
            await until(lambda: answered, "the proxy to see the end")

    before = signal.getsignal(number)
    run(main(1))
    assert answered.pop() is not None
    run(main(2))
    assert answered.pop() is None
    assert signal.getsignal(number) is before


def test_manager_runs_in_a_thread_that_gets_no_signals() -> None:
    failures: list[BaseException] = []

    async def main() -> None:
        async with scripted_proxy(serves) as proxy:
            manager = AgentConnectionManager(proxy.address, "waf-1", allows())
            running = asyncio.create_task(manager.run())
            await until(lambda: manager.connected == 4, "four connections")
            manager.stop()
            await running

    def in_thread() -> None:
        try:
            run(main())
        except BaseException as error:  # noqa: BLE001 - for the main thread to see
            failures.append(error)

    thread = threading.Thread(target=in_thread)
    thread.start()
    thread.join(30)
    assert failures == []


def test_cancelled_manager_closes_everything() -> None:
    async def main() -> None:
        async with scripted_proxy(serves) as proxy:
            manager = AgentConnectionManager(proxy.address, "waf-1", allows(), backoff=QUICK)
            running = asyncio.create_task(manager.run())
            await until(lambda: manager.connected == 4, "four connections")
            running.cancel()
            await asyncio.wait({running})
            assert running.cancelled()
            for peer in proxy.peers:
                await until(peer.reader.at_eof, "the end of each")

    run(main())


def test_configuration_reaches_the_agent_once() -> None:
    async def script(peer: Peer) -> None:
        await peer.accept({"rules_version": "3.4.0"})
        await peer.end()

    agent, taken = allows(), []

    @agent.hook
    def on_configure(event: Any) -> None:
        taken.append(event.config)

    async def main() -> None:
        async with scripted_proxy(script) as proxy, managed(proxy.address, agent, target_connections=4) as (manager, _):
            await until(lambda: manager.connected == 4, "four connections")
            await until(lambda: taken, "the configuration")

    run(main())
    assert taken == [{"rules_version": "3.4.0"}]


def test_state_callback_that_fails_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    def fail(_: ConnectionState) -> None:
        raise ValueError

    async def main() -> None:
        async with scripted_proxy(serves) as proxy:
            manager = AgentConnectionManager(proxy.address, "waf-1", allows(), on_state=fail, target_connections=1)
            running = asyncio.create_task(manager.run(handle_signals=False))
            await until(lambda: manager.connected, "it to be connected")
            manager.stop()
            await running

    run(main())
    assert "on_state failed" in caplog.messages


@pytest.mark.parametrize(
    "wrong",
    [
        {"agent_id": "bad id"},
        {"address": "nowhere"},
        {"target_connections": 0},
        {"metadata": {"x": object()}},
        {"agent": Agent(failure=Decision.allow().replace_request_chunk(b""))},
    ],
)
def test_what_can_never_register_is_refused_at_once(wrong: dict[str, Any]) -> None:
    good: dict[str, Any] = {"address": "/s", "agent_id": "waf-1", "agent": allows(), "dialect": Dialect.SDK}
    with pytest.raises(LocalProtocolError):
        AgentConnectionManager(**(good | wrong))


def test_manager_runs_once() -> None:
    async def main() -> None:
        manager = AgentConnectionManager("/nowhere/s", "waf-1", allows(), max_failures=0)
        with pytest.raises(ProxyUnreachable):
            await manager.run(handle_signals=False)
        with pytest.raises(LocalProtocolError, match="runs once"):
            await manager.run(handle_signals=False)

    run(main())


def test_two_hundred_managers_that_lose_their_proxy_at_once_come_back_spread_out() -> None:
    managers, connections = 200, 2

    async def main() -> None:
        async with scripted_proxy(serves) as proxy:
            agent = allows()
            # A second of back-off, as they have it by default; nothing is asserted about the clock.
            all_of_them = [
                AgentConnectionManager(
                    proxy.address, f"waf-{n}", agent, target_connections=connections, ping_interval=0
                )
                for n in range(managers)
            ]
            waits: list[float] = []
            for manager in all_of_them:
                manager._on_state = lambda state: waits.append(state.wait) if state.phase is Phase.WAITING else None
            running = [asyncio.create_task(manager.run(handle_signals=False)) for manager in all_of_them]
            await until(lambda: sum(m.connected for m in all_of_them) == managers * connections, "all of them")
            first, proxy.peers[:] = list(proxy.peers), []
            proxy.arrivals.clear()
            for peer in first:
                peer.writer.transport.abort()
            await until(lambda: len(waits) == managers * connections, "all to be lost")
            await until(lambda: sum(m.connected for m in all_of_them) == managers * connections, "all again")
            assert len(proxy.arrivals) == managers * connections
            begin = min(proxy.arrivals)
            tenths = Counter(int((arrival - begin) * 10) for arrival in proxy.arrivals)
            print("arrivals in each 100 ms:", dict(sorted(tenths.items())))
            planned = Counter(int(wait * 10) for wait in waits)
            assert set(planned) == set(range(10))
            assert max(planned.values()) < 2 * managers * connections / 10
            for manager in all_of_them:
                manager.stop()
            await asyncio.gather(*running)

    run(main(), 50)
