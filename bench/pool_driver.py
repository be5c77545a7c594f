"""The pool of a shard, driven in its own process: event → agent → decision, nothing in front of it.

    python -m bench.pool_driver --uds PATH

It listens on `PATH` and puts every agent that registers into a `shards.pool.AgentPool`, as a shard does with what the
supervisor hands over; pool, connections, codec and event loop are the product's. Requests are made from the answers of
those before them, in the callback that the pool calls. See `bench.closed_loop` for the questions that it answers.
"""

import argparse
import asyncio
import socket
import time
from pathlib import Path

import uvloop

from bench.closed_loop import AGENT_ID, NotTheAnswerError, Run, Sample, converse, echo_in
from dialout import Decision, acceptance_frame, parse_registration, scan_first_frame
from ipc import process
from ipc.logs import configure
from ipc.messages import Offer
from ipc.version import __version__
from shards.calls import Call, Exchange, Outcome
from shards.pool import AgentPool

MAX_REGISTRATION_BYTES = 64 * 1024


class PoolDriver:
    """A pool, and whoever registers in it."""

    def __init__(self, pool: AgentPool, listener: socket.socket) -> None:
        self._pool = pool
        self._listener = listener
        self._loop = asyncio.get_running_loop()

    async def accept(self) -> None:
        """Take connections, one after the other, for ever."""
        number = 0
        while True:
            sock, _ = await self._loop.sock_accept(self._listener)
            number += 1
            sock.setblocking(False)
            offer = await self._read_offer(sock, number)
            self._pool.adopt(offer, sock.detach())

    async def _read_offer(self, sock: socket.socket, number: int) -> Offer:
        data = b""
        while isinstance(found := scan_first_frame(data, MAX_REGISTRATION_BYTES), int):
            data += await self._loop.sock_recv(sock, MAX_REGISTRATION_BYTES)
        frame_type, payload, residue = found
        registration = parse_registration(frame_type, payload)
        name = f"{registration.agent_id}-conn-{number}"
        return Offer(
            number=number,
            agent_id=registration.agent_id,
            dialect=registration.dialect,
            capabilities=registration.capabilities,
            transport="uds",
            metadata=registration.metadata,
            residue=residue,
            unsent=acceptance_frame(registration.answer_type, name, proxy_id="bench", proxy_version=__version__),
        )

    async def drive(self, run: Run, in_flight: int) -> None:
        """Make the requests of a run."""
        late = self._pool.requests.late
        slots = [_Slot(self._pool, run, self._loop) for _ in range(in_flight)]
        for slot in slots:
            slot.begin()
        await asyncio.gather(*(slot.ended for slot in slots))
        if late != self._pool.requests.late:
            run.fail(f"{self._pool.requests.late - late} answers came that no request waited for")
        if self._pool.requests.in_flight:
            run.fail(f"the pool believes that {self._pool.requests.in_flight} requests are in flight")


class _Slot:
    """One of those in flight: a request, and the next one when it is answered. After a failure it makes no more."""

    __slots__ = ("_pool", "_run", "_sample", "_started_ns", "ended")

    def __init__(self, pool: AgentPool, run: Run, loop: asyncio.AbstractEventLoop) -> None:
        self._pool = pool
        self._run = run
        self._sample: Sample | None = None
        self._started_ns = 0
        self.ended: asyncio.Future[None] = loop.create_future()

    def begin(self) -> None:
        """Hand the next request to the pool; end when there is none."""
        self._sample = sample = self._run.take()
        if sample is None:
            self.ended.set_result(None)
            return
        self._started_ns = time.perf_counter_ns()
        self._pool.requests.submit(Exchange(AGENT_ID), sample.event, self._done, final=True)

    def _done(self, _: Call, outcome: Outcome) -> None:
        sample, self._sample = self._sample, None
        if sample is None:
            self._run.fail("a request had a second outcome")
        elif isinstance(outcome, Decision):
            try:
                self._run.settle(sample, self._started_ns, echo_in(outcome))
            except NotTheAnswerError as wrong:
                self._fail(str(wrong))
            else:
                self.begin()
        else:
            self._fail(f"{type(outcome).__name__}: {outcome}")

    def _fail(self, why: str) -> None:
        self._run.fail(why)
        self.ended.set_result(None)


async def serve(path: Path) -> None:
    """Listen, and answer questions until stdin ends."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.setblocking(False)
        listener.bind(str(path))
        listener.listen()
        pool = AgentPool()
        driver = PoolDriver(pool, listener)
        # As a shard does when it has started.
        process.settle_memory()
        async with asyncio.TaskGroup() as tasks:
            accepting = tasks.create_task(driver.accept())
            await converse(driver.drive, lambda: len(pool.connections))
            accepting.cancel()
        pool.close("the benchmark is over")
        pool.readiness.close()


def main() -> None:
    """Command line, see the module's docstring."""
    parser = argparse.ArgumentParser(description="The pool of a shard, driven in its own process.")
    parser.add_argument("--uds", type=Path, required=True, help="Unix socket to listen on")
    options = parser.parse_args()
    configure("pool")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(options.uds))


if __name__ == "__main__":
    main()
