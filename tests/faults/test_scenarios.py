"""What the README promises, under load: shards and supervisor die, are replaced, drained and scaled.

Each test takes seconds with a few agents; ``SHARDGATE_FAULTS=full`` makes it the real thing with a thousand, which
takes minutes, and ``middle`` something between.
"""

import os
import random
import time
from functools import partial
from typing import Any, NamedTuple

import pytest

from bench.world import Account, World
from supervisor import respawn

TCP = ("--tcp", "127.0.0.1:0")


class Size(NamedTuple):
    """How much of it."""

    agents: int
    supervisor_kills: int
    rolling_restarts: int
    shard_kills: int
    pause_s: float


SIZES = {
    "": Size(60, 2, 1, 2, 0.02),
    "middle": Size(400, 20, 10, 20, 0.02),
    "full": Size(1000, 100, 100, 200, 0.05),
}
CHOSEN = os.environ.get("SHARDGATE_FAULTS", "")
SIZE = SIZES.get(CHOSEN, SIZES[""])

pytestmark = pytest.mark.timeout(3600 if CHOSEN else 600)


def oldest(world: World) -> int:
    """The shard that has run for longest, once that is long enough for its next death to be the first one again."""
    rows = world.ask("status")["shards"]
    world.wait_for(lambda: len(world.running()) == len(rows), "all shards to be back", 60)

    def found() -> dict[str, Any]:
        return max(world.ask("status")["shards"], key=lambda row: row["uptime_s"])

    if CHOSEN:
        world.wait_for(lambda: found()["uptime_s"] >= respawn.STABLE_AFTER, "a shard that is not new", 60)
    return int(found()["id"])


def assert_nobody_noticed(new: Account) -> None:
    """No connection was lost, and no request failed."""
    assert new.closed == []
    assert new.failed == []


def test_nobody_notices_that_the_supervisor_is_killed() -> None:
    random.seed(1)
    exact = []
    with World.begin(agents=SIZE.agents, connections=2, limit=2, pause_s=SIZE.pause_s, options=TCP) as world:
        world.wait_until_exact()
        for number in range(SIZE.supervisor_kills):
            world.pace(40, 20)
            time.sleep(random.uniform(0, 0.5))
            world.kill_supervisor()
            time.sleep(random.choice([0, 0, 0.2]))
            world.start_supervisor()
            killed_at = time.monotonic()
            world.wait_until_running()
            running_s = time.monotonic() - killed_at
            world.pace(0, 0)
            exact.append(world.wait_until_exact())
            new = world.collect()
            print(
                f"kill {number}: running after {running_s:.2f} s, exact after {exact[-1]:.3f} s,"
                f" {new.answered} answered, {new.accepted} accepted, {new.cut} cut, {len(new.refused)} refused",
                flush=True,
            )
            assert_nobody_noticed(new)
        world.check_never()


def test_nobody_notices_a_rolling_restart() -> None:
    with World.begin(shards=4, agents=SIZE.agents, pause_s=SIZE.pause_s, options=TCP) as world:
        before = world.pids()
        for number in range(SIZE.rolling_restarts):
            row = world.operate("restart")
            assert row.error is None, row
            after = world.pids()
            assert not set(before.values()) & set(after.values())
            assert sorted(after) == [0, 1, 2, 3]
            before = after
            new = world.collect()
            print(
                f"restart {number}: {row.moved} moved in {row.seconds:.1f} s, each within {row.p50_ms} ms (median),"
                f" {row.p99_ms} ms (p99), {row.longest_ms} ms (longest); {new.answered} answered,"
                f" the longest within {new.longest_ms:.0f} ms",
                flush=True,
            )
            assert_nobody_noticed(new)
        world.wait_until_exact()
        assert world.total.accepted == 0, "nobody has registered again"


def test_agents_of_a_killed_shard_are_back_and_its_requests_fail_at_once() -> None:
    random.seed(3)
    with World.begin(shards=4, agents=SIZE.agents, pause_s=SIZE.pause_s, options=TCP) as world:
        for number in range(SIZE.shard_kills):
            at, ends = world.kill_shard(oldest(world))
            back_s = world.wait_for(partial(world.everybody_is_connected, but=ends), "everybody to be back", 30)
            exact_s = time.monotonic() - at - back_s + world.wait_until_exact()
            new = world.collect()
            codes = sorted({failed.code for failed in new.failed})
            print(
                f"kill {number}: {len(new.closed)} lost, back after {back_s:.2f} s, exact after {exact_s:.2f} s;"
                f" {len(new.failed)} of {new.answered + len(new.failed)} failed ({', '.join(codes)}),"
                f" the last {max((f.at - at for f in new.failed), default=0):.2f} s after it",
                flush=True,
            )
            strangers = [closed for closed in new.closed if closed.end not in ends]
            assert strangers == [], "connections of other shards were lost"
            # Those in flight, and until the agent is back those for it.
            assert set(codes) <= {"connection_lost", "agent_not_found"}
            world.wait_until_running()
            world.operate("rebalance")
            assert_nobody_noticed(world.collect())


def test_nobody_notices_that_shards_are_added_and_removed() -> None:
    with World.begin(shards=1, agents=SIZE.agents, pause_s=SIZE.pause_s, options=TCP) as world:
        for shards in (4, 2):
            row = world.operate("scale", number=shards)
            assert row.error is None, row
            time.sleep(1.0)
            world.wait_until_exact()
            counts = [status["connections"] for status in world.ask("status")["shards"]]
            new = world.collect()
            print(f"scale {shards}: {row.moved} moved in {row.seconds:.1f} s, {counts}, {new.answered} answered")
            assert_nobody_noticed(new)
            assert len(counts) == shards
            assert max(counts) - min(counts) <= 0.1 * sum(counts) / shards + 1
        assert world.total.accepted == 0, "nobody has registered again"
