"""dialout's agents against the real product: they come back from whatever dies, and the counts are exact."""

import asyncio
import contextlib
import itertools
import logging
import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.product import Product, StartProduct
from support.sending import decided
from support.waiting import wait_for

from dialout import (
    Agent,
    AgentConnectionManager,
    Decision,
    Dialect,
    Phase,
    PoolClient,
    PoolError,
    RequestHeaders,
    agent_metadata,
)
from dialout.agent.agent import Counters


class InThread:
    """A coroutine in a loop and a thread of its own, so that the test may block."""

    def __init__(self, name: str, main: Any) -> None:
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(main,), name=name)
        self._thread.start()

    def _run(self, main: Any) -> None:
        try:
            asyncio.run(main())
        except BaseException as error:  # noqa: BLE001 - for the test to see
            self.error = error

    def join(self) -> None:
        """Wait for its end, which must be a good one."""
        self._thread.join(40)
        assert not self._thread.is_alive()
        assert self.error is None


class Running:
    """An agent with a manager that runs, and where its connections stand."""

    def __init__(self, address: str | Path, agent_id: str, agent: Agent, **options: Any) -> None:
        self.manager = AgentConnectionManager(address, agent_id, agent, **options)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = InThread(agent_id, self._main)

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        await self.manager.run()

    def wait_for(self, connected: int) -> None:
        """Wait until exactly so many are registered."""
        wait_for(lambda: self.manager.connected == connected, f"{connected} connections", timeout=60)

    def stop(self) -> None:
        """End it gently."""
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # The loop has ended: the test stopped it by itself.
            self._loop.call_soon_threadsafe(self.manager.stop)
        self._thread.join()


@contextlib.contextmanager
def running(address: str | Path, agent_id: str, agent: Agent, **options: Any) -> Iterator[Running]:
    """A running agent, ended in the end."""
    found = Running(address, agent_id, agent, **options)
    try:
        yield found
    finally:
        found.stop()


class Traffic:
    """Proxies that ask the agent without a pause; ``outcome`` counts answers, and failures by name."""

    def __init__(self, product: Product, agent_id: str, at_once: int = 8) -> None:
        self.outcome: Counter[str] = Counter()
        self._product, self._agent_id, self._at_once = product, agent_id, at_once
        self._stop = threading.Event()
        self._thread = InThread("traffic", self._main)

    async def _main(self) -> None:
        async with PoolClient(self._product.runtime_dir) as client:
            await asyncio.gather(*(self._ask(client) for _ in range(self._at_once)))

    async def _ask(self, client: PoolClient) -> None:
        while not self._stop.is_set():
            try:
                answer = await client.send_request_headers(
                    self._agent_id, RequestHeaders("GET", "/admin", {}), timeout=10
                )
                self.outcome["answered" if "Block" in repr(answer.verdict) else "wrong"] += 1
            except PoolError as error:
                self.outcome[type(error).__name__] += 1
            await asyncio.sleep(0.005)

    def pass_by(self, answers: int) -> None:
        """Wait until so many more requests were answered."""
        goal = self.outcome["answered"] + answers
        wait_for(lambda: self.outcome["answered"] >= goal, f"{answers} more answers", timeout=60)

    def stop(self) -> None:
        """Ask no more."""
        self._stop.set()
        self._thread.join()


def no_admin() -> Agent:
    agent = Agent()

    @agent.hook
    def on_request_headers(event: RequestHeaders) -> Decision:
        return Decision.block(403) if event.uri.startswith("/admin") else Decision.allow()

    return agent


def held(product: Product) -> int:
    """Connections that the shards hold, by their own word."""
    return sum(product.counts())


def kill_a_shard(product: Product, rng: random.Random) -> None:
    """Kill one of the shards that run, and wait until the supervisor knows."""

    def victims() -> list[tuple[int, int]]:
        rows = product.query("status")["shards"]
        return [(row["id"], row["pid"]) for row in rows if row["state"] == "running" and row["pid"]]

    shard, pid = rng.choice(wait_for(victims, "a shard that runs", timeout=60))
    os.kill(pid, signal.SIGKILL)

    def is_known() -> bool:
        return bool(next(row["pid"] for row in product.query("status")["shards"] if row["id"] == shard) != pid)

    wait_for(is_known, "the supervisor to notice", timeout=20)


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("dialect", [Dialect.SDK, Dialect.CORE])
def test_manager_has_exactly_its_connections_again_after_every_restart(
    dialect: Dialect, start_product: StartProduct, caplog: pytest.LogCaptureFixture
) -> None:
    """SHARDGATE_RESTARTS says how many shards and supervisors are killed: ``50/5``; SHARDGATE_SEED when."""
    shards, supervisors = map(int, os.environ.get("SHARDGATE_RESTARTS", "3/1").split("/"))
    rng = random.Random(int(os.environ.get("SHARDGATE_SEED", "4")))
    victims = ["shard"] * shards + ["supervisor"] * supervisors
    rng.shuffle(victims)
    caplog.set_level(logging.INFO, "dialout.agent")
    product = start_product()
    with running(product.socket, "waf-1", no_admin(), dialect=dialect, metadata=agent_metadata("1.0")) as agent:
        agent.wait_for(4)
        traffic = Traffic(product, "waf-1")
        try:
            for victim in victims:
                traffic.pass_by(rng.randrange(1, 200))
                if victim == "shard":
                    kill_a_shard(product, rng)
                else:
                    product.process.kill()
                    product.process.wait()
                    product.start()
                    product.wait_until_running()
                wait_for(lambda: (agent.manager.connected, held(product)) == (4, 4), "exactly 4 connections", 60)
        finally:
            traffic.stop()
    wait_for(lambda: held(product) == 0, "the end of all")
    # A shard that was killed leaves socket files, which its successor takes over; it may be late by now.
    wait_for(lambda: {row["state"] for row in product.query("status")["shards"]} == {"running"}, "all shards", 60)
    print(dict(traffic.outcome), "reconnects:", agent.manager.reconnects)
    assert traffic.outcome["wrong"] == 0
    check_story(caplog.messages, agent.manager.reconnects)


def check_story(lines: list[str], reconnects: int) -> None:
    """Each connection's lines tell what became of it, in an order that makes sense."""
    connected = 0
    for number in range(1, 5):
        begin = f"waf-1 connection {number}: "
        phases = [line.removeprefix(begin).split()[0].strip(":") for line in lines if line.startswith(begin)]
        assert phases[:3] == ["connecting", "registering", "connected"]
        assert phases[-2:] == ["draining", "closed"]
        follows = {
            "connecting": {"registering", "waiting"},
            "registering": {"connected", "waiting"},
            "connected": {"waiting", "draining"},
            "waiting": {"connecting"},
            "draining": {"closed"},
        }
        for before, after in itertools.pairwise(phases):
            assert after in follows[before], phases
        connected += phases.count("connected")
    assert connected == 4 + reconnects
    waits = [line for line in lines if ": waiting " in line]
    assert len(waits) >= reconnects
    assert all(" s: " in line for line in waits)


def test_agent_with_more_connections_than_it_may_have_waits_for_the_limit(start_product: StartProduct) -> None:
    product = start_product("--max-connections-per-agent", "2")
    with running(product.socket, "waf-1", no_admin(), target_connections=3) as agent:
        agent.wait_for(2)
        waiting = wait_for(
            lambda: [state for state in agent.manager.states if state.phase is Phase.WAITING], "the third one"
        )
        assert str(waiting[0]).endswith("s: connection_limit")
        assert held(product) == 2


def test_agent_that_may_not_is_told_so_loudly_and_slowly(
    start_product: StartProduct, caplog: pytest.LogCaptureFixture
) -> None:
    product = start_product("--allowed-agents", "auth-*")
    with running(product.socket, "waf-1", no_admin(), target_connections=1) as agent:
        state = wait_for(
            lambda: agent.manager.states[0].phase is Phase.WAITING and agent.manager.states[0], "the refusal"
        )
        assert state
        assert (state.reason, state.wait >= 30) == ("not_allowed", True)
    assert [record.levelname for record in caplog.records if "not_allowed" in record.getMessage()] == ["ERROR"]


@pytest.mark.parametrize("dialect", list(Dialect))
def test_agent_serves_over_tcp_in_every_dialect(dialect: Dialect, start_product: StartProduct) -> None:
    product = start_product("--tcp", "127.0.0.1:0", uds=False)
    address = product.query("status")["supervisor"]["listeners"][0]["address"]
    with running(address, "waf-1", no_admin(), dialect=dialect) as agent:
        agent.wait_for(4)
        assert decided(product, "waf-1", "--uri", "/admin")["decision"] == {"block": {"status": 403}}


def test_configuration_and_its_changes_reach_the_agent(start_product: StartProduct, tmp_path: Path) -> None:
    file = tmp_path / "shardgate.kdl"
    file.write_text('reverse-listener {\n agent-config "waf-*" { rules_version "1" }\n}\n')
    taken: list[object] = []
    agent = no_admin()

    @agent.hook
    def on_configure(event: Any) -> None:
        taken.append(event.config)

    product = start_product("--config", str(file))
    with running(product.socket, "waf-1", agent, dialect=Dialect.CORE) as one:
        one.wait_for(4)
        wait_for(lambda: taken == [{"rules_version": "1"}], "the configuration, once")
        file.write_text('reverse-listener {\n agent-config "waf-*" { rules_version "2" }\n}\n')
        assert product.command("reload").returncode == 0
        wait_for(lambda: taken[1:], "the change")
        assert product.command("status").returncode == 0
        # It came over four connections, and was applied once.
        file.write_text('reverse-listener {\n agent-config "waf-*" { rules_version "3" }\n}\n')
        assert product.command("reload").returncode == 0
        wait_for(lambda: len(taken) > 2, "the next change")
        assert taken == [{"rules_version": version} for version in "123"]


def test_gentle_end_loses_no_request(start_product: StartProduct) -> None:
    product = start_product()

    class Slow(Agent):
        async def on_request_headers(self, event: RequestHeaders, request: object) -> Decision:
            await go.wait()
            return Decision.block(451)

    agent, answers = Slow(), []
    with running(product.socket, "waf-1", agent, target_connections=1) as one:
        one.wait_for(1)
        assert one._loop is not None
        go = asyncio.Event()

        async def ask() -> None:
            async with PoolClient(product.runtime_dir) as client:
                answers.append(await client.send_request_headers("waf-1", RequestHeaders("GET", "/", {})))

        asking = InThread("asking", ask)
        wait_for(lambda: agent.counters.active == 1, "the request")
        one._loop.call_soon_threadsafe(one.manager.stop)
        wait_for(lambda: one.manager.states[0].phase is Phase.DRAINING, "the drain")
        one._loop.call_soon_threadsafe(go.set)
        asking.join()
    assert "451" in repr(answers[0].verdict)


def busy(counters: Counters) -> bool:
    return counters.requests > 20


@pytest.mark.parametrize("kind", ["plain", "async"])
@pytest.mark.parametrize("dialect", list(Dialect))
def test_agent_that_ends_under_load_loses_no_request(dialect: Dialect, kind: str, start_product: StartProduct) -> None:
    product = start_product()

    class Slow(Agent):
        async def on_request_headers(self, event: RequestHeaders, request: object) -> Decision:
            # So that something is in flight at any time, as long as requests come.
            await asyncio.sleep(random.uniform(0.02, 0.2))
            return Decision.block(403)

    def agent() -> Agent:
        return no_admin() if kind == "plain" else Slow()

    # Another process of the same agent, which stays: nothing may fail while the first one goes.
    with running(product.socket, "waf-1", agent(), target_connections=2, dialect=dialect) as stays:
        stays.wait_for(2)
        for _ in range(2):
            leaving = agent()
            goes = Running(product.socket, "waf-1", leaving, target_connections=2, dialect=dialect, drain_timeout=300.0)
            goes.wait_for(2)
            traffic = Traffic(product, "waf-1", at_once=32)
            try:
                traffic.pass_by(50)
                wait_for(partial(busy, leaving.counters), "requests for the one that goes")
                # Long before the end of its drain: its connections are not chosen any more.
                goes.stop()
                traffic.pass_by(100)
            finally:
                traffic.stop()
            assert set(traffic.outcome) == {"answered"}
