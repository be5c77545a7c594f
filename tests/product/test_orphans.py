"""A supervisor that is given orphans, as process 1 of an image without an init is."""

import os
import signal
import sys
import threading
from pathlib import Path

from support.product import StartProduct
from support.waiting import wait_for

MOST = 20

GIVEN_ORPHANS = f"""
import ctypes, os, sys, time
PR_SET_CHILD_SUBREAPER = 36
assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
with open(sys.argv[1], "w") as pids:
    for number in range({MOST}):
        parent = os.fork()
        if parent == 0:
            orphan = os.fork()
            if orphan == 0:
                os.closerange(0, 3)
                time.sleep(300)
                os._exit(0)
            pids.write(f"{{orphan}}\\n")
            pids.close()
            os._exit(0)
os.execv(sys.argv[2], sys.argv[2:])
"""


def state(pid: int) -> str:
    """The letter for the state of a process; nothing when there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def children(pid: int) -> list[int]:
    """The children of a process, those included that were not collected."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and (entry / "stat").read_text().rpartition(")")[2].split()[1] == str(pid):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def test_orphans_are_collected_and_the_status_of_a_shard_is_not_taken_with_them(
    start_product: StartProduct, tmp_path: Path
) -> None:
    prefix = (sys.executable, "-c", GIVEN_ORPHANS, str(tmp_path / "pids"))
    product = start_product(shards=1, prefix=prefix)
    orphans = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    try:
        assert len(orphans) == MOST
        assert set(orphans) < set(children(product.process.pid)), "they were given to it"
        shard = product.shard_pid(0)
        assert set(children(product.process.pid)) == {*orphans, shard}, "those that had ended before are collected"
        # All at once, so that the shard's end is looked at among the others.
        threads = [threading.Thread(target=os.kill, args=(pid, signal.SIGKILL)) for pid in [*orphans[:10], shard]]
        threads += [threading.Thread(target=os.kill, args=(pid, signal.SIGKILL)) for pid in orphans[10:]]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wait_for(lambda: not any(map(state, [*orphans, shard])), "all of them to be collected")
        wait_for(lambda: "killed by SIGKILL" in product.log.read_text(), "how the shard has ended")
        wait_for(lambda: product.query("status")["shards"][0]["state"] == "running", "the next process")
    finally:
        for pid in filter(state, orphans):
            os.kill(pid, signal.SIGKILL)
