"""One fault at a named step of what supervisor and shards tell each other, and then what must always hold.

A step is a message of a handoff channel, right before it is passed on or right after; see `support.interposer`. A few
cases run always, all of them with ``SHARDGATE_FAULTS=full``, and one with its name there, as in
``SHARDGATE_FAULTS=move-Commit-after-kill-target``.
"""

import contextlib
import os
import resource
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import pytest
from support.interposer import BusFaults, Interposer, Seen

from bench.kernel import descriptors, ends_by_process
from bench.world import Account, World
from ipc import query
from ipc.messages import Commit, Message, MoveOut, Moving, Prepare, Prepared, Revoke
from ipc.process import DescriptorBudget

ALL = os.environ.get("SHARDGATE_FAULTS", "")
AGENTS = 300 if ALL == "full" else 40
PAUSE_S = 1.2
"""How long a stopped process does not run: longer than an answer may take, shorter than until it is replaced."""

SOURCE = 0
"""The shard that is drained in cases about moves."""

pytestmark = pytest.mark.timeout(1800)


class Case(NamedTuple):
    """*deed* is what goes on (agents come and go, or connections move), *fault* is done to *victim* at the step."""

    deed: str
    message: type[Message]
    when: str
    fault: str
    victim: str

    def __str__(self) -> str:
        return f"{self.deed}-{self.message.__name__}-{self.when}-{self.fault}-{self.victim}"


STEPS: dict[str, tuple[type[Message], ...]] = {
    "register": (Prepare, Prepared, Commit),
    "move": (MoveOut, Moving, Prepare, Prepared, Commit, Revoke),
}
FAULTS = {
    "register": (("kill", "target"), ("kill", "supervisor"), ("stop", "target"), ("stop", "supervisor")),
    "move": (
        ("kill", "source"), ("kill", "target"), ("kill", "supervisor"),
        ("stop", "source"), ("stop", "target"), ("stop", "supervisor"),
    ),
}  # fmt: skip
STARVED = ("register", "target"), ("move", "source"), ("move", "target"), ("move", "supervisor")

CASES = [
    *(
        Case(deed, message, when, fault, victim)
        for deed, messages in STEPS.items()
        for message in messages
        for when in ("before", "after")
        for fault, victim in FAULTS[deed]
    ),
    *(Case(deed, Prepare, "before", "hold", "target") for deed in STEPS),
    *(Case(deed, MoveOut if deed == "move" else Prepare, "before", "starve", victim) for deed, victim in STARVED),
]
ALWAYS = {
    "register-Prepared-before-kill-target",
    "register-Commit-before-kill-supervisor",
    "move-Moving-after-kill-source",
    "move-Commit-before-kill-source",
    "move-Prepared-before-kill-target",
    "move-Moving-before-kill-supervisor",
    "move-Commit-before-kill-supervisor",
    "move-Prepare-before-stop-target",
    "move-MoveOut-before-starve-supervisor",
}
CHOSEN = [case for case in CASES if ALL == "full" or str(case) in ([ALL] if ALL in map(str, CASES) else ALWAYS)]


def kill(pid: int) -> None:
    """SIGKILL a process and wait until all its threads are over, and with them what it had open."""
    pidfd = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGKILL)
        select.select([pidfd], [], [], 10)
    finally:
        os.close(pidfd)


class Injection:
    """Waits for a case's step, does its fault there once, and knows whose end was meant."""

    def __init__(self, world: World, between: Interposer, case: Case) -> None:
        self.world, self.between, self.case = world, between, case
        self.done = threading.Event()
        self.lost: set[str] = set()
        self._undo: list[Callable[[], object]] = []
        self._target = 1
        between.watch = self._look

    def _look(self, seen: Seen, when: str) -> None:
        case = self.case
        is_offer = isinstance(seen.message, Prepare) and (case.deed == "register" or seen.message.offers[0].state)
        if is_offer:
            self._target = seen.shard
        if self.done.is_set() or when != case.when or type(seen.message) is not case.message:
            return
        if case.deed == "move" and case.message in (Prepare, Prepared, Commit) and seen.shard == SOURCE:
            return
        if isinstance(seen.message, Prepare) and not is_offer:
            return
        self._inject(seen.shard if case.message in (Prepared, Commit) else self._target)
        self.done.set()

    def _inject(self, target: int) -> None:
        case, world = self.case, self.world
        shard = SOURCE if case.victim == "source" else target
        pid = world.supervisor.pid if case.victim == "supervisor" else world.pids()[shard]
        if case.fault == "kill":
            os.kill(pid, signal.SIGSTOP)
            if case.victim != "supervisor":
                # What the supervisor holds as well is on its way, and must get through.
                held = ends_by_process([pid, world.supervisor.pid])
                self.lost = set(held[pid]) - set(held[world.supervisor.pid])
            kill(pid)  # Nothing may pass before it is over.
        elif case.fault == "stop":
            os.kill(pid, signal.SIGSTOP)
            self._undo.append(lambda: os.kill(pid, signal.SIGCONT))
        elif case.fault == "starve":
            # None for agents. The reserve for everything else is there: without it libzmq ends the process.
            limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            limit = len(descriptors(pid)) + DescriptorBudget.RESERVE // 2
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, limits[1]))
            self._undo.append(lambda: resource.prlimit(pid, resource.RLIMIT_NOFILE, limits))
        elif case.fault == "hold":
            self.between.held.add((shard, True))
            self._undo.append(lambda: self.between.held.discard((shard, True)))
        else:
            raise AssertionError(case.fault)

    def undo(self) -> None:
        """Let what was stopped, starved or held go on."""
        self.between.watch = None
        for undo in self._undo:
            undo()


def put_between(world: World, between: Interposer) -> None:
    """Start each shard again that the interposer does not see, so that it does."""
    world.wait_until_running()
    for shard in world.pids():
        if between.is_between(shard):
            continue
        os.kill(world.pids()[shard], signal.SIGKILL)
        world.wait_for(partial(_is_back, world, between, shard), "the shard")
    world.wait_until_exact()
    world.operate("rebalance")
    world.wait_until_exact()
    world.collect()


def _is_back(world: World, between: Interposer, shard: int) -> bool:
    return between.is_between(shard) and shard in world.running()


@contextmanager
def interposed(shards: int, connections: int = 2) -> Iterator[tuple[World, Interposer]]:
    """A world of which nothing passes unseen."""
    options = ("--tcp", "127.0.0.1:0")
    with (
        World.begin(shards=shards, agents=AGENTS, limit=connections, connections=connections, options=options) as world,
        Interposer(world.rundir) as between,
    ):
        put_between(world, between)
        yield world, between


def do(world: World, between: Interposer, case: Case) -> Account:
    """Have the deed done with its fault, mend everything, and return what agents and proxy have met."""
    injection = Injection(world, between, case)
    if case.deed == "register":
        world.pace(100, 50)
    # The supervisor may be stopped before it answers.
    asking = threading.Thread(target=_drain, args=(world,))
    if case.deed == "move":
        asking.start()
    world.wait_for(injection.done.is_set, f"the step of {case}", 20)
    at = time.monotonic()
    if case.fault == "kill" and case.victim == "supervisor":
        world.supervisor.wait()
        world.start_supervisor()
    elif case.fault != "kill":
        # What happens in that time is the case's very point.
        time.sleep(PAUSE_S)
    injection.undo()
    world.wait_until_running()
    world.pace(0, 0)
    if case.deed == "move":
        asking.join()
    operation = world.operation()
    if case.deed == "move" and operation is not None:
        world.wait_for(lambda: world.operation().is_done, "the drain to end")  # type: ignore[union-attr]
    if case.deed == "move":
        world.operate("undrain", number=SOURCE)
    exact_s = world.wait_until_exact()
    new = world.collect()
    print(
        f"{case}: {len(new.closed)} of {len(injection.lost)} lost, {len(new.failed)} failed, {new.cut} cut,"
        f" exact {time.monotonic() - at:.2f} s after it (looked for {exact_s:.2f} s)",
        flush=True,
    )
    world.check_never()
    strangers = [closed for closed in new.closed if closed.end not in injection.lost]
    assert strangers == [], "connections were lost that the fault does not explain"
    if injection.lost:
        # Those in flight on it, and those for an agent that is not back yet.
        assert {failed.code for failed in new.failed} <= {"connection_lost", "agent_not_found"}
    else:
        assert new.failed == []
    return new


def _drain(world: World) -> None:
    with contextlib.suppress(query.QueryError):
        world.begin_operation("drain", 10.0, number=SOURCE)


def test_fault_at_a_step_costs_nobody_else_anything() -> None:
    assert CHOSEN
    with interposed(3) as (world, between):
        for case in CHOSEN:
            do(world, between, case)
            put_between(world, between)


def test_agents_that_have_just_moved_are_found_though_nobody_is_there_to_tell_where() -> None:
    with interposed(3, connections=1) as (world, between):
        for message in (Commit, Prepared):
            injection = Injection(world, between, Case("move", message, "after", "kill", "supervisor"))
            _drain(world)
            world.wait_for(injection.done.is_set, "the step", 20)
            world.supervisor.wait()
            # Longer than word of an agent is waited for.
            time.sleep(PAUSE_S)
            new = world.collect()
            assert (new.closed, new.failed) == ([], [])
            assert new.answered > 0
            world.start_supervisor()
            injection.undo()
            world.wait_until_exact()
            new = world.collect()
            assert (new.closed, new.failed) == ([], [])
            put_between(world, between)


def test_counts_are_exact_again_after_the_bus_lost_doubled_and_delayed_messages() -> None:
    with interposed(2) as (world, between):
        each = (BusFaults(lost=0.3), BusFaults(twice=0.3), BusFaults(late=0.3))
        for faults in (*(each if ALL == "full" else ()), BusFaults(0.2, 0.2, 0.2)):
            between.faults = faults
            world.pace(100, 50)
            time.sleep(10.0 if ALL == "full" else 1.0)
            between.faults = BusFaults()
            world.pace(0, 0)
            exact_s = world.wait_until_exact()
            new = world.collect()
            print(f"{faults}: {new.left_by_themselves} closed, exact after {exact_s:.2f} s, {len(new.refused)} refused")
            world.check_never()
            assert new.closed == []
            assert new.failed == []
