"""What a process does to itself at start."""

import json
from typing import Any

import pytest

RAISE = """
import json, resource, sys
from ipc.process import raise_descriptor_limit

soft, hard = map(int, sys.argv[1:3])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
if sys.argv[3] == "ordinary":
    become_ordinary()
before = open_descriptors()
result = raise_descriptor_limit()
table = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("FDSize"))
print(json.dumps({
    "result": result, "limits": resource.getrlimit(resource.RLIMIT_NOFILE), "table": table,
    "left": open_descriptors() - before,
}), flush=True)
"""


@pytest.mark.parametrize("user", ["same", "ordinary"])
@pytest.mark.parametrize(("soft", "hard"), [(256, 4096), (4096, 4096), (64, 1000)])
def test_the_descriptor_limit_is_raised_as_far_as_allowed_and_the_table_grown(
    start: Any, soft: int, hard: int, user: str
) -> None:
    result = json.loads(start(RAISE, soft, hard, user).line())
    assert result["result"] == hard
    assert result["limits"] == [hard, hard]
    assert result["table"] >= hard
    assert result["left"] == 0


FULL = """
import os, resource
from ipc.process import raise_descriptor_limit

limit = open_descriptors()
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
become_ordinary()
print(raise_descriptor_limit() - limit, flush=True)
"""


def test_a_process_without_a_descriptor_to_spare_is_told_its_limit(start: Any) -> None:
    assert start(FULL).line() == "0"


SETTLE = """
import gc, json
from ipc.process import settle_memory

cycle = []
cycle.append(cycle)
del cycle
settle_memory()
print(json.dumps([gc.get_freeze_count(), gc.get_threshold(), gc.collect(), gc.isenabled()]), flush=True)
"""


def test_settled_memory_is_out_of_the_collectors_sight(start: Any) -> None:
    frozen, threshold, found, enabled = json.loads(start(SETTLE).line())
    assert frozen > 1000
    assert threshold == [50_000, 20, 100]
    assert found == 0
    assert enabled
