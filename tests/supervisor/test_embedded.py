"""The listener inside another program: real agents, and a real pool beside it."""

import asyncio
import gc
import socket
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from support.agents import Agent, registration
from support.fences import descriptors, new_descriptors
from support.product import short_folder
from support.serving import EVERYTHING, ServingAgent

from dialout import Capabilities, Dialect, ErrorCode, RegistrationResponse, RequestHeaders, encode_frame
from dialout.proxy.errors import AgentNotFound, CannotReceive, ShuttingDown
from ipc.client import AcceptedClient, ClientGone, WrongAgent
from shards.pool import AgentPool
from supervisor import embedded
from supervisor.embedded import (
    ConfigError,
    ListenerClosed,
    ListenError,
    ReverseConnectionConfig,
    ReverseConnectionListener,
    Token,
    hash_token,
)

EVENT = RequestHeaders("GET", "/", {})


@pytest.fixture
def path() -> Iterator[Path]:
    """Where the listener listens; nothing is open any more afterwards, and the socket is gone."""
    before = descriptors()
    with short_folder() as folder:
        yield folder / "s"
        assert list(folder.iterdir()) == []
    gc.collect()
    assert new_descriptors(before) == []


class Calm:
    """Agents' blocking ends, each call in a thread; closed at the end."""

    def __init__(self) -> None:
        self.agents: list[Agent] = []

    async def register(
        self, address: Path | tuple[str, int], agent_id: str, dialect: Dialect = Dialect.SDK, **fields: Any
    ) -> Agent:
        """An agent that has sent its registration and has not read the answer."""
        agent = await asyncio.to_thread(Agent, address)
        self.agents.append(agent)
        agent.send(registration(agent_id, dialect, **fields))
        return agent

    async def serve(self, address: Path, agent_id: str, **fields: Any) -> "asyncio.Task[ServingAgent]":
        """An agent that serves once it is accepted."""

        def start() -> ServingAgent:
            agent = ServingAgent(address, agent_id, **fields)
            self.agents.append(agent)
            return agent

        return asyncio.create_task(asyncio.to_thread(start))

    def close(self) -> None:
        """Close all of them."""
        for agent in self.agents:
            agent.close()


async def answer(agent: Agent) -> RegistrationResponse:
    """What an agent reads as the answer to its registration."""
    return await asyncio.to_thread(agent.answer)


@asynccontextmanager
async def listening(
    path: Path, config: ReverseConnectionConfig | None = None, **keywords: Any
) -> AsyncIterator[tuple[ReverseConnectionListener, AgentPool, Calm]]:
    """A listener, a pool, and agents; closed in the order in which a program would."""
    pool, calm = AgentPool(), Calm()
    listener = await ReverseConnectionListener.bind_uds(path, config or ReverseConnectionConfig(), **keywords)
    try:
        async with listener:
            yield listener, pool, calm
            calm.close()
    finally:
        calm.close()
        pool.close()


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run it with a limit."""
    asyncio.run(asyncio.wait_for(test(), 30))


def test_agent_reads_its_acceptance_only_once_it_is_in_the_pool(path: Path) -> None:
    async def test() -> None:
        async with listening(path) as (listener, pool, agents):
            agent = await agents.register(path, "waf-1", metadata={"version": "1.2.0"})
            client, registered = await listener.accept()
            assert (registered.agent_id, registered.metadata) == ("waf-1", b'{"version":"1.2.0"}')
            assert listener.connections == 1
            agent.sock.setblocking(False)
            with pytest.raises(BlockingIOError):
                agent.sock.recv(1)
            agent.sock.settimeout(10)

            connection_id = await pool.add_reverse_connection("waf-1", client, registered.capabilities)
            accepted = await answer(agent)
            assert accepted.accepted
            assert accepted.assigned_id == connection_id == client.connection_id
            assert [*pool.agents] == ["waf-1"]

    run(test)


@pytest.mark.parametrize("dialect", Dialect)
def test_agent_serves_what_the_pool_sends_over_both_kinds_of_listener(path: Path, dialect: Dialect) -> None:
    async def test() -> None:
        async with (
            listening(path) as (uds, pool, agents),
            await ReverseConnectionListener.bind_tcp("127.0.0.1:0") as tcp,
        ):
            host, _, port = tcp.address.rpartition(":")
            for listener, address in ((uds, path), (tcp, (host, int(port)))):
                serving = await agents.serve(address, "waf-1", dialect=dialect)  # type: ignore[arg-type]
                client, registered = await listener.accept()
                await pool.add_reverse_connection("waf-1", client, registered.capabilities)
                await serving
            assert len(pool.connections) == 2  # Two listeners never give one number twice.
            seen = {(await pool.send_request_headers("waf-1", EVENT)).connection_id for _ in range(4)}
            assert seen == {connection.connection_id for connection in pool.connections.values()}
            agents.close()

    run(test)


def test_accept_goes_on_waiting_while_agents_are_refused_and_counts_them(path: Path) -> None:
    async def test() -> None:
        config = ReverseConnectionConfig(
            require_auth=True, allowed_agents=("waf-*",), max_connections_per_agent=1, handshake_timeout=0.3
        )
        tokens = [Token(("*",), hash_token("open sesame"))]
        async with listening(path, config, tokens=tokens) as (listener, pool, agents):
            accepting = asyncio.create_task(listener.accept())
            silent = await asyncio.to_thread(Agent, path)
            refused = {
                ErrorCode.TIMEOUT: silent,
                ErrorCode.AUTH_FAILED: await agents.register(path, "waf-1", auth_token="guessed"),
                ErrorCode.NOT_ALLOWED: await agents.register(path, "auth-1", auth_token="open sesame"),
                ErrorCode.VERSION_MISMATCH: await agents.register(path, "waf-1", protocol_version=1),
            }
            garbage = refused[ErrorCode.BAD_REGISTRATION] = await asyncio.to_thread(Agent, path)
            garbage.send(encode_frame(0x03, b"{"))
            agents.agents += [silent, garbage]
            for code, agent in refused.items():
                assert (await answer(agent)).error_code == code
            assert not accepting.done()

            first = await agents.register(path, "waf-1", auth_token="open sesame")
            client, registered = await accepting
            await pool.add_reverse_connection("waf-1", client, registered.capabilities)
            assert (await answer(first)).accepted
            second = await agents.register(path, "waf-1", auth_token="open sesame")
            over = await answer(second)
            assert (over.error_code, over.retry_after_ms) == (ErrorCode.CONNECTION_LIMIT, 1000)
            assert listener.rejected_total == dict.fromkeys([*refused, ErrorCode.CONNECTION_LIMIT], 1) | {
                "overloaded": 0,
                "shutting_down": 0,
            }
            assert (listener.accepted_total, listener.connections) == (1, 1)

    run(test)


def test_limit_counts_from_accept_until_close_in_a_pool_or_not(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with listening(path, ReverseConnectionConfig(max_connections_per_agent=2)) as (listener, pool, agents):
            in_pool = await agents.register(path, "waf-1")
            client, registered = await listener.accept()
            await pool.add_reverse_connection("waf-1", client, registered.capabilities)
            await agents.register(path, "waf-1")
            waiting, _ = await listener.accept()
            refused = await agents.register(path, "waf-1")
            assert (await answer(refused)).error_code == ErrorCode.CONNECTION_LIMIT

            # One that hung up is not counted, although nobody has noticed yet: not in the pool, not before it.
            monkeypatch.setattr(embedded, "SECOND_LOOK", 3600)
            # No turn of the loop in between, and the newcomer is seen first.
            agents.agents.append(Agent(path))
            agents.agents[-1].send(registration("waf-1"))
            in_pool.close()
            third, _ = await listener.accept()
            assert listener.connections == 2
            agents.agents[1].close()
            fourth = await agents.register(path, "waf-1")
            client, registered = await listener.accept()
            await pool.add_reverse_connection("waf-1", client, registered.capabilities)
            assert (await answer(fourth)).accepted
            assert listener.connections == 2
            with pytest.raises(ClientGone):
                await pool.add_reverse_connection("waf-1", waiting)
            del third

    run(test)


def test_cancelled_accept_loses_nobody(path: Path) -> None:
    async def test() -> None:
        async with listening(path) as (listener, _, agents):
            for number in range(20):
                accepting = asyncio.create_task(listener.accept())
                for _turn in range(number % 4):
                    await asyncio.sleep(0)
                agent = await agents.register(path, f"waf-{number}")
                for _turn in range(number % 5):
                    await asyncio.sleep(0)
                accepting.cancel()
                try:
                    client, _registered = await accepting
                except asyncio.CancelledError:
                    client, _registered = await listener.accept()
                assert client.agent_id == f"waf-{number}"
                client.close()
                assert (await answer(agent)).error_code == ErrorCode.OVERLOADED

    run(test)


def test_client_that_is_dropped_closed_or_forgotten_is_refused_with_a_frame(path: Path) -> None:
    async def test() -> None:
        async with listening(path, ReverseConnectionConfig(handshake_timeout=1.0)) as (listener, pool, agents):
            dropped = await agents.register(path, "waf-1")
            task = asyncio.create_task(listener.accept())
            await asyncio.wait({task})
            del task  # Nobody looked at its result.
            assert (await answer(dropped)).error == "the proxy did not take the connection"

            elsewhere = await agents.register(path, "waf-1")
            client, _ = await listener.accept()
            thread = threading.Thread(target=lambda held: held.clear(), args=([client],))
            del client
            thread.start()  # The last reference may go in any thread.
            assert (await answer(elsewhere)).error == "the proxy did not take the connection"
            thread.join()

            closed = await agents.register(path, "waf-1")
            client, _ = await listener.accept()
            client.close(ErrorCode.NOT_ALLOWED, "not today")
            refusal = await answer(closed)
            assert (refusal.error_code, refusal.error) == (ErrorCode.NOT_ALLOWED, "not today")
            assert refusal.retry_after_ms is None

            kept = await agents.register(path, "waf-1")
            client, _ = await listener.accept()
            never_accepted = await agents.register(path, "waf-1")
            for agent in (kept, never_accepted):
                refusal = await answer(agent)
                assert (refusal.error_code, refusal.retry_after_ms) == (ErrorCode.OVERLOADED, 1000)
                assert "in time" in (refusal.error or "")
            with pytest.raises(ClientGone):
                await pool.add_reverse_connection("waf-1", client)
            client.close()
            assert (listener.connections, len(pool.connections)) == (0, 0)

    run(test)


def test_client_is_added_once_and_under_its_own_id_only(path: Path) -> None:
    async def test() -> None:
        async with listening(path) as (listener, pool, agents):
            agent = await agents.register(path, "waf-1")
            client, registered = await listener.accept()
            with pytest.raises(WrongAgent):
                await pool.add_reverse_connection("waf-2", client, registered.capabilities)
            assert pool.connections == {}
            await pool.add_reverse_connection("waf-1", client, registered.capabilities)
            assert (await answer(agent)).accepted
            with pytest.raises(ClientGone):
                await pool.add_reverse_connection("waf-1", client, registered.capabilities)
            client.close()
            del client
            gc.collect()
            await asyncio.sleep(0)
            assert len(pool.connections) == 1

    run(test)


def test_agent_that_hung_up_is_a_typed_error_and_frees_its_slot(path: Path) -> None:
    async def test() -> None:
        async with listening(path) as (listener, pool, agents):
            agent = await agents.register(path, "waf-1")
            client, registered = await listener.accept()
            agent.close()
            with pytest.raises(ClientGone):
                await pool.add_reverse_connection("waf-1", client, registered.capabilities)
            assert (listener.connections, pool.connections) == (0, {})

    run(test)


def test_pool_sends_what_the_capabilities_given_to_it_allow(path: Path) -> None:
    async def test() -> None:
        async with listening(path) as (listener, pool, agents):
            serving = await agents.serve(path, "waf-1", capabilities=EVERYTHING)
            client, _ = await listener.accept()
            await pool.add_reverse_connection("waf-1", client, Capabilities(events=0))
            await serving
            with pytest.raises(CannotReceive):
                await pool.send_request_headers("waf-1", EVENT)

    run(test)


def test_closing_the_listener_refuses_everybody_outside_the_pool_and_ends_every_accept(path: Path) -> None:
    async def test() -> None:
        async with listening(path) as (listener, pool, agents):
            serving = await agents.serve(path, "waf-1")
            client, registered = await listener.accept()
            await pool.add_reverse_connection("waf-1", client, registered.capabilities)
            await serving
            accepted = await agents.register(path, "waf-2")
            client, _ = await listener.accept()
            silent = await asyncio.to_thread(Agent, path)
            agents.agents.append(silent)
            silent.send(b"\0")
            waiting = [asyncio.create_task(listener.accept()) for _ in range(3)]
            await asyncio.sleep(0)
            queued = await agents.register(path, "waf-3")
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)

            listener.close()
            listener.close()
            for agent in (accepted, silent):
                assert (await answer(agent)).error_code == ErrorCode.SHUTTING_DOWN
            results = await asyncio.gather(*waiting, return_exceptions=True)
            assert [type(result) for result in results if not isinstance(result, tuple)] == [ListenerClosed] * 2
            with pytest.raises(ListenerClosed):
                await listener.accept()
            assert (await answer(queued)).error_code == ErrorCode.SHUTTING_DOWN
            with pytest.raises(ClientGone):
                await pool.add_reverse_connection("waf-2", client)
            assert (await pool.send_request_headers("waf-1", EVENT)).agent_id == "waf-1"
            agents.close()
            await listener.wait_closed()

    run(test)


def test_closed_pool_takes_nobody_and_sends_nothing(path: Path) -> None:
    async def test() -> None:
        async with listening(path) as (listener, pool, agents):
            agent = await agents.register(path, "waf-1")
            client, _ = await listener.accept()
            with pytest.raises(AgentNotFound):
                await pool.send_request_headers("waf-1", EVENT)
            pool.close()
            with pytest.raises(ShuttingDown):
                await pool.add_reverse_connection("waf-1", client)
            with pytest.raises(ShuttingDown):
                await pool.send_request_headers("waf-1", EVENT)
            client.close()
            assert (await answer(agent)).error_code == ErrorCode.OVERLOADED

    run(test)


@pytest.mark.parametrize(
    ("config", "keywords", "said"),
    [
        (ReverseConnectionConfig(require_auth=True), {}, "require_auth: no agent could register"),
        (ReverseConnectionConfig(allowed_agents=()), {}, "allowed_agents: an empty list"),
        (ReverseConnectionConfig(allowed_agents=("waf 1",)), {}, "allowed_agents: a pattern is made of"),
        (ReverseConnectionConfig(max_connections_per_agent=0), {}, "max_connections_per_agent: expected 1"),
        (ReverseConnectionConfig(handshake_timeout="10s"), {}, "config: Expected `float`"),  # type: ignore[arg-type]
    ],
)
def test_bad_configuration_is_refused_with_the_name_of_what_is_wrong(
    path: Path, config: ReverseConnectionConfig, keywords: dict[str, Any], said: str
) -> None:
    async def test() -> None:
        with pytest.raises(ConfigError) as caught:
            await ReverseConnectionListener.bind_uds(path, config, **keywords)
        assert str(caught.value).startswith(said)

    run(test)


def test_address_that_cannot_be_listened_at_is_a_typed_error(path: Path) -> None:
    async def test() -> None:
        with pytest.raises(ConfigError, match="did you mean"):
            await ReverseConnectionListener.bind_tcp("localhost:9090")
        with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ListenError):
            await ReverseConnectionListener.bind_tcp(f"127.0.0.1:{taken.getsockname()[1]}")
        async with await ReverseConnectionListener.bind_uds(path):
            with pytest.raises(ListenError, match="a running process listens there"):
                await ReverseConnectionListener.bind_uds(path)

    run(test)


def test_client_outlives_its_loop_without_harm(path: Path) -> None:
    kept: list[AcceptedClient] = []

    async def test() -> None:
        async with listening(path) as (listener, _, agents):
            await agents.register(path, "waf-1")
            client, _registered = await listener.accept()
            kept.append(client)

    run(test)
    kept.clear()
