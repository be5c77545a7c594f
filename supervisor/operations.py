"""Operations on running shards: drain, restart, scale, rebalance. One operation runs at a time, in small steps.

A shard is emptied before it ends: its connections move to other shards. It is emptied only when another shard can take
them. A connection that does not move before the deadline is lost when its shard ends. A refused operation changes
nothing. A failed one keeps its finished steps, and its error says why.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Literal

import msgspec

from dialout import awake
from ipc.capacity import MAX_SHARDS
from ipc.logs import get_logger
from ipc.status import OperationRow
from supervisor.config.model import Placement
from supervisor.fleet import Fleet
from supervisor.handoffs import Handoffs
from supervisor.journal import Journal
from supervisor.ledger import Ledger
from supervisor.moves import Moves, Order
from supervisor.rebalance import Move, plan

BOOT_LIMIT = 30.0
"""Seconds from the start of a shard until it must take connections."""

END_SECONDS = 5.0
"""Seconds that an emptied shard has to finish the requests that proxies send through it."""

PAUSE = 0.02
"""Seconds between two checks of a condition that an operation waits for."""


class Operate(msgspec.Struct, kw_only=True):
    """Arguments of the query "operate". *number* is the shard to drain or undrain, or the number of shards to scale to.

    *shards* are the shards to restart, none for all. *seconds* is the time for moving connections.
    """

    what: Literal["drain", "undrain", "restart", "scale", "rebalance"]
    number: int = 0
    shards: list[int] = []
    seconds: float = 30.0


class CannotOperate(Exception):
    """The operation cannot be started, or could not be finished. The message says why, and what to do."""


class Operation:
    """One operation, running or over. *row* is its state for status."""

    def __init__(self, name: str) -> None:
        self.row = OperationRow(name=name)
        self.seconds: list[float] = []

    def step(self, text: str) -> None:
        """Set and log the step that begins now."""
        self.row.step = text
        get_logger().info("operation", name=self.row.name, step=text)

    def add(self, order: Order) -> None:
        """Add the result of an order: the moved connections, and the durations of their moves."""
        self.row.moved += order.moved
        self.seconds += order.seconds
        times = sorted(self.seconds)
        if times:
            self.row.p50_ms = round(1000 * times[len(times) // 2], 3)
            self.row.p99_ms = round(1000 * times[min(len(times) - 1, len(times) * 99 // 100)], 3)
            self.row.longest_ms = round(1000 * times[-1], 3)


class Operations:
    """Runs operations on the shards of one supervisor. Each method starts one, or raises CannotOperate."""

    def __init__(self, fleet: Fleet, ledger: Ledger, handoffs: Handoffs, moves: Moves, journal: Journal) -> None:
        self._journal = journal
        self._fleet = fleet
        self._ledger = ledger
        self._handoffs = handoffs
        self._moves = moves
        self._loop = asyncio.get_running_loop()
        self._clock = awake.clock()
        self._log = get_logger()
        self._task: asyncio.Task[None] | None = None
        self.current: Operation | None = None
        """The operation that runs, or the last one that ran."""

    # For operators.

    def drain(self, shard: int, seconds: float, *, undo: bool = False) -> Operation:
        """Move all connections of *shard* to other shards, and give it no new ones. *undo* gives it new ones again."""
        self._check_known(shard)
        if undo:
            return self._start(f"drain {shard} --undo", lambda _: self._undrain(shard))
        if not [other for other in self._takers() if other != shard]:
            raise CannotOperate(f"shard {shard} is the only one that takes connections; 'shardgate scale 2' adds one")
        return self._start(f"drain {shard}", lambda operation: self._drain(operation, shard, seconds))

    def restart(self, shards: list[int], seconds: float) -> Operation:
        """Replace the processes of *shards* one after the other. An empty list stands for all shards."""
        for shard in shards:
            self._check_known(shard)
        if len(self._fleet.shards) >= MAX_SHARDS:
            raise CannotOperate(f"a restart needs a spare shard, and {MAX_SHARDS} are the most that there can be")
        name = f"restart {' '.join(map(str, shards))}" if shards else "restart --rolling"
        return self._start(name, lambda operation: self._restart(operation, shards or self._fleet.shards, seconds))

    def scale(self, shards: int, seconds: float, placement: Placement) -> Operation:
        """Start or end shards until there are *shards* of them, and rebalance the connections."""
        if not 1 <= shards <= MAX_SHARDS:
            raise CannotOperate(f"{shards} is no number of shards: 1 to {MAX_SHARDS}")
        return self._start(f"scale {shards}", lambda operation: self._scale(operation, shards, seconds, placement))

    def rebalance(self, seconds: float, placement: Placement) -> Operation:
        """Move connections to the shards where *placement* would put them, with as few moves as possible."""
        return self._start("rebalance", lambda operation: self._rebalance(operation, seconds, placement))

    def plan(self, placement: Placement) -> list[Move]:
        """The moves that `rebalance` would make."""
        return plan(placement, {shard: self._ledger.live_by_agent(shard) for shard in self._takers()}, self._takers())

    async def close(self) -> None:
        """Cancel the running operation. Its finished steps are not undone."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    # Running.

    def _start(self, name: str, steps: Callable[[Operation], Coroutine[Any, Any, None]]) -> Operation:
        if self._task is not None and not self._task.done():
            assert self.current is not None
            raise CannotOperate(f"'{self.current.row.name}' is under way; wait until it is done ('shardgate status')")
        operation = self.current = Operation(name)
        self._task = self._loop.create_task(self._run(operation, steps(operation)))
        return operation

    async def _run(self, operation: Operation, steps: Awaitable[None]) -> None:
        row = operation.row
        began = self._loop.time()
        try:
            await steps
        except CannotOperate as error:
            row.error = str(error)
        except asyncio.CancelledError:
            row.error = "given up: the supervisor stops"
            raise
        except Exception:
            row.error = "failed unexpectedly; the supervisor's log says why"
            raise
        finally:
            row.seconds = round(self._loop.time() - began, 3)
            row.is_done = True
            outcome = row.error or f"moved {row.moved}, left {row.left}, {row.seconds:.1f} s"
            self._journal.supervisor("operation", f"{row.name}: {outcome}")
            log = self._log.warning if row.error is not None or row.left else self._log.info
            log(
                "operation done",
                name=row.name, moved=row.moved, left=row.left, seconds=row.seconds, error=row.error,
                p50_ms=row.p50_ms, p99_ms=row.p99_ms,
            )  # fmt: skip

    async def _until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Wait until *condition* is true. False after *seconds*."""
        deadline = self._clock.time() + seconds
        while not condition():
            if self._clock.time() >= deadline:
                return False
            await asyncio.sleep(PAUSE)
        return True

    # Steps.

    async def _undrain(self, shard: int) -> None:
        self._fleet.drain(shard, draining=False)

    async def _drain(self, operation: Operation, shard: int, seconds: float) -> None:
        operation.step(f"moving the connections of shard {shard}")
        self._fleet.drain(shard, draining=True)
        operation.row.left += await self._empty(operation, shard, self._clock.time() + seconds, force=False)

    async def _empty(self, operation: Operation, shard: int, deadline: float, *, force: bool) -> int:
        """Move all connections off a draining shard. Returns how many are left on it at the deadline."""
        while True:
            numbers = {number for number, _ in self._ledger.live_numbers(shard)}
            now = self._clock.time()
            if not numbers and not self._handoffs.has_offers(shard):
                return 0
            if now >= deadline or not self._fleet.is_running(shard):
                return len(numbers)
            if numbers:
                order = self._moves.order(shard, sorted(numbers), deadline - now, force=force)
                await order.done.wait()
                operation.add(order)
            # Connections may have been on their way to it, and others may have come back.
            await asyncio.sleep(PAUSE)

    async def _restart(self, operation: Operation, shards: list[int], seconds: float) -> None:
        spare = await self._start_spare(operation)
        renewed = []
        try:
            for shard in shards:
                operation.step(f"moving the connections of shard {shard}")
                self._fleet.drain(shard, draining=True)
                operation.row.left += await self._empty(operation, shard, self._clock.time() + seconds, force=True)
                operation.step(f"starting shard {shard} again")
                await self._renew(shard)
                renewed.append(shard)
        except CannotOperate as error:
            raise CannotOperate(f"{error}; restarted so far: {', '.join(map(str, renewed)) or 'none'}") from None
        operation.step(f"ending the spare shard {spare}")
        await self._retire(operation, [spare], seconds)

    async def _start_spare(self, operation: Operation) -> int:
        """Start one more shard, to take the connections of the others. CannotOperate when it does not come up."""
        spare = self._fleet.free_number()
        operation.step(f"starting the spare shard {spare}")
        self._fleet.add(spare)
        if not await self._comes_up(spare):
            self._fleet.end(spare, 0.0, again=False)
            raise CannotOperate("a new shard does not come up, so everything stays as it is; the log says why")
        return spare

    async def _comes_up(self, shard: int) -> bool:
        await self._until(lambda: self._fleet.is_running(shard) or self._fleet.has_failed(shard), BOOT_LIMIT)
        return self._fleet.is_running(shard)

    async def _renew(self, shard: int) -> None:
        old = self._fleet.pid(shard)
        self._fleet.end(shard, END_SECONDS, again=True)
        await self._until(lambda: self._fleet.pid(shard) not in (None, old), END_SECONDS + BOOT_LIMIT)
        is_up = await self._until(lambda: self._fleet.is_running(shard), BOOT_LIMIT)
        self._fleet.drain(shard, draining=False)
        if not is_up:
            raise CannotOperate(f"shard {shard} does not come up again; its connections are on the other shards")

    async def _retire(self, operation: Operation, shards: list[int], seconds: float) -> None:
        """Empty *shards* and end them; they are not started again."""
        for shard in shards:
            self._fleet.drain(shard, draining=True)
        deadline = self._clock.time() + seconds
        for shard in shards:
            operation.row.left += await self._empty(operation, shard, deadline, force=True)
        for shard in shards:
            self._fleet.end(shard, END_SECONDS, again=False)
        await self._until(lambda: not set(shards) & set(self._fleet.shards), END_SECONDS + BOOT_LIMIT)

    async def _scale(self, operation: Operation, shards: int, seconds: float, placement: Placement) -> None:
        present = self._fleet.shards
        if shards < len(present):
            # One of the remaining shards must be able to take the connections.
            if not any(shard in self._takers() for shard in present[:shards]):
                raise CannotOperate("none of the shards that would stay takes connections now; see 'shardgate status'")
            leaving = present[shards:]
            operation.step(f"moving the connections of shard {', '.join(map(str, leaving))}")
            await self._retire(operation, leaving, seconds)
        new = []
        for _ in range(shards - len(present)):
            shard = self._fleet.free_number()
            operation.step(f"starting shard {shard}")
            self._fleet.add(shard)
            new.append(shard)
        for shard in new:
            if not await self._comes_up(shard):
                self._fleet.end(shard, 0.0, again=False)
                raise CannotOperate(f"shard {shard} does not come up, the log says why; the others serve on")
        await self._rebalance(operation, seconds, placement)

    async def _rebalance(self, operation: Operation, seconds: float, placement: Placement) -> None:
        moves = self.plan(placement)
        operation.step(f"moving {len(moves)} connections")
        orders = []
        for source in {move.source for move in moves}:
            wanted = {move.number: move.target for move in moves if move.source == source}
            orders.append(self._moves.order(source, wanted, seconds, wanted=wanted))
        for order in orders:
            await order.done.wait()
            operation.add(order)
            operation.row.left += len(order.stayed)

    def _takers(self) -> list[int]:
        """The shards that take connections now."""
        fleet = self._fleet
        return [shard for shard in fleet.shards if fleet.is_running(shard) and not fleet.is_draining(shard)]

    def _check_known(self, shard: int) -> None:
        if shard not in self._fleet.shards:
            raise CannotOperate(f"there is no shard {shard}; there are {', '.join(map(str, self._fleet.shards))}")
