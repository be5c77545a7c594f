"""How ready a host is, graded."""

from itertools import product

import pytest

from ipc.status import ListenerRow, ShardRow, ShardState
from supervisor.admin.readiness import Readiness, grade

LISTENERS = [ListenerRow("uds", "/run/agents.sock")]
RUNNING = ShardState.RUNNING


def rows(*states: ShardState) -> list[ShardRow]:
    return [ShardRow(id=i, pid=100 + i, state=state) for i, state in enumerate(states)]


def graded(
    *states: ShardState, wanted: int = 2, state: str = "running", takers: list[int] | None = None, full: bool = False
) -> Readiness:
    shards = rows(*states)
    running = [row.id for row in shards if row.state is RUNNING] if takers is None else takers
    return grade(state=state, wanted=wanted, rows=shards, takers=running, listeners=LISTENERS, out_of_descriptors=full)


def test_all_shards_are_ready() -> None:
    found = graded(RUNNING, RUNNING)

    assert (found.status, found.shards.ready, found.shards.wanted) == ("ready", 2, 2)
    assert found.reasons == []
    assert found.listeners == LISTENERS


@pytest.mark.parametrize("state", sorted(set(ShardState) - {RUNNING}))
def test_one_of_two_is_degraded_and_says_why(state: ShardState) -> None:
    found = graded(RUNNING, state)

    assert (found.status, found.shards.ready, found.shards.wanted) == ("degraded", 1, 2)
    assert found.reasons == [f"shard 1 takes no connections: it is {state.value}"]


def test_running_shard_without_a_channel_is_not_ready() -> None:
    found = graded(RUNNING, RUNNING, takers=[0])

    assert found.status == "degraded"
    assert found.reasons == ["shard 1 takes no connections: it is running, and its channel is not there yet"]


def test_place_without_a_shard_is_missed() -> None:
    assert graded(RUNNING).reasons == ["1 of 2 shards are not there"]
    assert graded(RUNNING).status == "degraded"


def test_host_is_ready_while_a_spare_shard_stands_in() -> None:
    found = graded(RUNNING, ShardState.DRAINING, RUNNING)

    assert (found.status, found.reasons) == ("ready", [])


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (graded(ShardState.DOWN, ShardState.STARTING), "no shard takes connections"),
        (graded(RUNNING, RUNNING, state="stopping"), "the supervisor is stopping"),
        (graded(RUNNING, RUNNING, state="starting"), "the supervisor is starting"),
        (graded(RUNNING, RUNNING, full=True), "out of descriptors: new agents are refused; raise the open files limit"),
        (grade(state="running", wanted=1, rows=rows(RUNNING), takers=[0], listeners=[]), "no listener is open"),
    ],
)
def test_host_that_takes_nobody_is_not_ready(found: Readiness, reason: str) -> None:
    assert found.status == "not ready"
    assert found.reasons[0] == reason


def test_grade_and_reasons_always_agree() -> None:
    for states in product(ShardState, repeat=3):
        for wanted in (1, 2, 3, 4):
            found = graded(*states, wanted=wanted)
            ready = states.count(RUNNING)
            assert (found.status == "ready") == (ready >= wanted) == (not found.reasons)
            assert (found.status == "not ready") == (ready == 0)
