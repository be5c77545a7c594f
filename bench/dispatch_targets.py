"""What the dispatch benchmark measures: routes of a request to an agent and back, each with agents of its own."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from bench import loadgen
from bench.children import Child, ChildError
from bench.closed_loop import RUN_TIMEOUT_S, Report
from bench.targets import START_TIMEOUT_S, Shardgate, TargetError, shardgate, wait_for_connections

__all__ = ["CONNECTIONS", "Processes", "Route", "client_route", "pool_route", "streams_route"]

#: Of the one agent that every route has.
CONNECTIONS = 4
REPORT_TIMEOUT_S = 30.0


class Processes(msgspec.Struct, frozen=True):
    """Who serves a route at a moment, and what the product counts if it is in the route."""

    pids: frozenset[int]
    restarts: int = 0
    requests_total: int = 0
    answered_total: int = 0


class Route:
    """A route from whoever makes requests to agents that answer them.

    `driver` makes them; `product` is the running shardgate between the two, or None where the driver holds the
    connections itself. `cancels` says that the product tells the agent after each request to forget it.
    """

    def __init__(
        self,
        name: str,
        driver: Child,
        agents: loadgen.LoadGenerator,
        *,
        cancels: bool,
        product: Shardgate | None = None,
    ) -> None:
        self.name = name
        self.agents = agents
        self.cancels = cancels
        self.has_product = product is not None
        self._driver = driver
        self._product = product
        self._last: Processes | None = None

    @property
    def address(self) -> str:
        """The Unix socket of the product that agents dial. Raises `TargetError` where there is no product."""
        if self._product is None:
            raise TargetError(f"{self.name} has no product")
        return self._product.address

    @property
    def driver_pid(self) -> int:
        """The process that makes the requests."""
        return self._driver.pid

    def processes_before(self) -> Processes:
        """What `processes` found last, so that whatever changes between two rounds shows in the second."""
        return self._last or self.processes()

    def processes(self) -> Processes:
        """Every process of ours in the route, the agents' excepted. Raises `TargetError`."""
        self._last = self._look()
        return self._last

    def _look(self) -> Processes:
        if self._product is None:
            return Processes(frozenset({self._driver.pid}))
        pool = self._product.pool()
        pids = pool.pids | {self._driver.pid}
        return Processes(pids, pool.restarts, pool.requests_total, pool.answered_total)

    def run(self, requests: int, in_flight: int) -> None:
        """Make so many requests and wait for their answers. Raises `TargetError` when the driver dies."""
        self._ask(f"run {requests} {in_flight}", RUN_TIMEOUT_S + REPORT_TIMEOUT_S)

    def report(self) -> Report:
        """What came of the last run. Raises `TargetError`."""
        return msgspec.json.decode(self._ask("report", REPORT_TIMEOUT_S), type=Report)

    def _ask(self, line: str, timeout_s: float) -> str:
        try:
            return self._driver.ask(line, timeout_s)
        except ChildError as silent:
            raise TargetError(str(silent)) from silent


@contextlib.contextmanager
def pool_route(directory: Path, *, cancels: bool) -> Iterator[Route]:
    """The pool of a shard, driven in its own process."""
    name = "pool, with cancels" if cancels else "pool"
    address = str(directory / f"pool-{cancels:d}.sock")
    with _driver("pool_driver", "--uds", address) as driver, _agents(address, cancellation=cancels) as agents:
        yield Route(name, driver, agents, cancels=cancels)


@contextlib.contextmanager
def client_route(directory: Path, *, cancels: bool) -> Iterator[Route]:
    """The product with one shard, asked through `PoolClient` by another process."""
    name = "PoolClient, with cancels" if cancels else "PoolClient"
    folder = directory / f"product-{cancels:d}"
    folder.mkdir()
    with shardgate(folder, shards=1) as product, _agents(product.address, cancellation=cancels) as agents:
        if wait_for_connections(product, CONNECTIONS).connections != CONNECTIONS:
            raise TargetError("the agent's connections are not in the product's pool")
        with _driver("client_driver", "--loop", "uvloop", "--runtime-dir", str(product.runtime_dir)) as driver:
            yield Route(name, driver, agents, cancels=cancels, product=product)


@contextlib.contextmanager
def streams_route(directory: Path, loop: Literal["asyncio", "uvloop"]) -> Iterator[Route]:
    """The plain pool on asyncio streams; it sends no cancels."""
    address = str(directory / f"streams-{loop}.sock")
    with (
        _driver("streams_pool", "--loop", loop, "--uds", address) as driver,
        _agents(address, cancellation=False) as agents,
    ):
        yield Route(f"streams on {loop}", driver, agents, cancels=False)


@contextlib.contextmanager
def _driver(module: str, *options: str) -> Iterator[Child]:
    with Child.start(module, [sys.executable, "-m", f"bench.{module}", *options]) as child:
        try:
            child.read_line(START_TIMEOUT_S)
        except ChildError as failed:
            raise TargetError(str(failed)) from failed
        yield child


@contextlib.contextmanager
def _agents(address: str, *, cancellation: bool) -> Iterator[loadgen.LoadGenerator]:
    """One agent with all its connections registered, answering."""
    with loadgen.start(address, per_id=CONNECTIONS, serve=True, cancellation=cancellation) as agents:
        registered = agents.register(CONNECTIONS, CONNECTIONS)
        if registered.accepted != CONNECTIONS:
            raise TargetError(f"{registered.accepted} of {CONNECTIONS} registrations were accepted")
        yield agents
