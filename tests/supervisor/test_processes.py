"""What is started in place of a supervisor."""

import sys
from pathlib import Path

from supervisor.processes import successor_command


def test_successor_of_a_module_runs_it_with_the_same_interpreter() -> None:
    command = successor_command(["python3", "-P", "-m", "shardgate", "run", "--shards", "2"])
    assert command == [sys.executable, "-P", "-m", "shardgate", "run", "--shards", "2", "--takeover"]


def test_successor_of_a_script_runs_it_with_the_interpreter_that_it_names_now(tmp_path: Path) -> None:
    script = tmp_path / "shardgate"
    script.write_text("#!/opt/new/bin/python\n")
    script.chmod(0o755)
    assert successor_command(["/opt/old/bin/python", str(script), "run"]) == [str(script), "run", "--takeover"]
    # One that cannot be run by itself was given to an interpreter.
    script.chmod(0o644)
    assert successor_command(["python3", str(script), "run"]) == [sys.executable, str(script), "run", "--takeover"]


def test_successor_of_a_successor_is_asked_to_take_over_once() -> None:
    command = successor_command(["python3", "-m", "shardgate", "run", "--takeover", "--shards", "2"])
    assert command.count("--takeover") == 1
