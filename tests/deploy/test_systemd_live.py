"""The units keep their word under a real systemd: crash, watchdog, takeover, reload and stop."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.product import environment, short_folder

LIVE = Path(__file__).parent / "live.py"


@pytest.mark.skipif(os.geteuid() != 0, reason="a systemd of its own, in a mount namespace of its own, takes root")
@pytest.mark.timeout(600)
def test_units_keep_their_word_under_a_real_systemd(tool: Callable[[str], str]) -> None:
    tool("systemctl")
    variables = environment()
    variables["PYTHONPATH"] += f":{LIVE.parents[1]}"
    with short_folder() as folder:
        done = subprocess.run(
            [tool("unshare"), "--mount", "--propagation=private", sys.executable, "-P", str(LIVE), str(folder)],
            env=variables, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=140,
        )  # fmt: skip
    if done.returncode == 77 or "unshare failed" in done.stderr or "mount" in done.stderr.partition("\n")[0]:
        pytest.skip(f"no systemd can be run here: {done.stderr[-300:]}")
    assert done.returncode == 0, done.stdout + done.stderr
