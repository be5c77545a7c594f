"""What an operator sees of the real product, and what changes by its commands."""

import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from support.agents import Agent
from support.fences import descriptors
from support.product import Product, StartProduct, environment
from support.waiting import wait_for

from dialout import Dialect

CTRL_C = b"\x03"


def on_terminal(product: Product, *arguments: str, until: str, then: bytes) -> tuple[str, int]:
    """Run a command in a terminal, type *then* once *until* is shown; what was shown, and the exit code."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (50, 200))
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "shardgate", *arguments, "--runtime-dir", str(product.runtime_dir)],
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        env=environment() | {"TERM": "xterm", "COLUMNS": "200"},
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    deadline = time.monotonic() + 30
    try:
        while time.monotonic() < deadline and select.select([ours], [], [], 30)[0]:
            try:
                got = os.read(ours, 65536)
            except OSError:  # EIO: the other end is closed
                break
            shown += got
            if until and until.encode() in shown:
                # Not the terminal's own Ctrl-C: it is nobody's controlling one.
                if then == CTRL_C:
                    process.send_signal(signal.SIGINT)
                else:
                    os.write(ours, then)
                until = ""
        return shown.decode(), process.wait(10)
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def test_status_agrees_with_the_kernel_about_descriptors_and_memory(product: Product) -> None:
    held = [Agent(product.socket) for _ in range(8)]
    for number, agent in enumerate(held):
        assert agent.register(f"waf-{number}").accepted
    told = product.status()
    assert told["schema"] == 1
    for row in (told["supervisor"], *told["shards"]):
        # A command that asks takes a descriptor or two while it does.
        assert abs(row["descriptors"] - len(descriptors(row["pid"]))) <= 3, row
        assert row["descriptor_limit"] >= row["descriptors"]
        resident = int(Path(f"/proc/{row['pid']}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        assert abs(row["rss_bytes"] - resident) < 8 << 20
    assert told["supervisor"]["log_level"] == "info"
    for agent in held:
        agent.close()


@pytest.mark.parametrize("then", [b"q", CTRL_C])
def test_top_shows_shards_and_the_busiest_agents_until_q_or_ctrl_c(start_product: StartProduct, then: bytes) -> None:
    product = start_product()
    with Agent(product.socket) as busy, Agent(product.socket) as idle:
        assert busy.register("waf-busy").accepted
        assert idle.register("waf-idle").accepted
        stop = threading.Event()

        def chatter() -> None:
            while not stop.is_set():
                busy.ping(Dialect.SDK)

        talker = threading.Thread(target=chatter)
        talker.start()
        try:
            shown, code = on_terminal(product, "top", "--interval", "300ms", until="waf-idle", then=then)
        finally:
            stop.set()
            talker.join()
    assert code == 0
    assert "LAST EVENT" in shown
    assert "FRAMES/S" in shown
    assert shown.index("waf-busy") < shown.index("waf-idle")


def test_top_needs_a_terminal(product: Product) -> None:
    done = product.command("top")
    assert done.returncode == 2
    assert "status --watch" in done.stderr


def test_lists_are_filtered_by_shard_transport_and_health(product: Product) -> None:
    wait_for(lambda: product.counts() == [0, 0], "the agents of other tests to be gone")
    with Agent(product.socket) as local, Agent(product.tcp_address()) as remote:
        assert local.register("waf-uds").accepted
        assert remote.register("waf-tcp").accepted
        rows = product.connections()
        for row in rows:
            [there] = product.ask("connections", "--transport", row["transport"])
            assert there["agent_id"] == f"waf-{row['transport']}"
            assert [a["agent_id"] for a in product.ask("agents", "--shard", str(row["shard"]))] == [row["agent_id"]]
        done = product.command("agents", "--unhealthy")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "no unhealthy agent is connected\n")
        missing = product.command("agents", "--shard", "9")
        assert missing.returncode == 4
        assert "running shards: 0, 1" in missing.stderr


def test_events_follow_what_happens_from_one_supervisor_to_the_next_until_the_end(start_product: StartProduct) -> None:
    product = start_product()
    with Agent(product.socket) as before:
        assert before.register("waf-before").accepted
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "shardgate", "events", "--follow", "--json", "--agent", "waf-after",
             "--runtime-dir", str(product.runtime_dir)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(), text=True,
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        with process, process.stdout as stdout, process.stderr as stderr:
            with Agent(product.socket) as after:
                assert after.register("waf-after").accepted
                event = json.loads(stdout.readline())
            assert (event["schema"], event["kind"], event["agent_id"]) == (1, "registered", "waf-after")
            assert json.loads(stdout.readline())["kind"] == "closed"
            product.process.send_signal(signal.SIGKILL)
            product.process.wait()
            assert "2 of its shards still serve" in stderr.readline()
            product.start()
            with Agent(product.socket) as late:
                assert late.register("waf-after").accepted
                assert json.loads(stdout.readline())["kind"] == "registered"
            assert json.loads(stdout.readline())["kind"] == "closed"
            assert product.command("stop").returncode == 0
            assert stdout.readline() == ""
            assert process.wait(10) == 4
            told = stderr.read()
    assert "another supervisor has begun" in told
    assert "no shardgate is running" in told


def test_events_follow_says_how_many_came_too_fast(start_product: StartProduct) -> None:
    product = start_product("--allowed-agents", "waf-*")
    page = product.query("events")
    for _ in range(3000):
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.connect(str(product.socket))
            stranger.sendall(b"\0\0\0\0")
            assert stranger.recv(10)
    from ipc import query
    from ipc.rundir import RuntimeDir

    path = RuntimeDir(product.runtime_dir).supervisor_query
    later = query.ask(path, "events", {"after": page["next"], "limit": 1000}, timeout=5.0)
    assert later["lost"] >= 3000 - 2048
    assert later["began"] == page["began"]


def test_config_show_tells_where_values_come_from_and_what_waits_for_a_restart(
    start_product: StartProduct, tmp_path: Path
) -> None:
    file = tmp_path / "a.kdl"
    digest = "ab" * 32
    (tmp_path / "tokens").write_text(f"waf-* sha256:{digest}\n* sha256:{'cd' * 32}\n")
    text = 'reverse-listener {\n max-connections-per-agent 3\n require-auth true\n auth { token-file "tokens"; }\n}\n'
    file.write_text(text)
    product = start_product("--config", str(file), "--placement", "affinity")

    def shown(*options: str) -> dict[str, Any]:
        rows = product.ask("config", "show", *options)["settings"]
        return {row["node"]: row for row in rows}

    short = shown()
    assert short["max-connections-per-agent"]["origin"] == f"{file}:2"
    assert short["placement"] == {
        "node": "placement", "values": ['"affinity"'], "origin": "--placement", "pending": False,
    }  # fmt: skip
    assert short["auth > token in a file"]["values"] == ['"*"', f'sha256="{"cd" * 6}..."']
    assert "pool > strategy" not in short
    everything = shown("--effective")
    assert everything["pool > strategy"]["origin"] == "default"
    assert digest not in product.command("config", "show", "--effective").stdout

    file.write_text(text.replace("agent 3", "agent 5").replace("}\n}", '}\n pool { ping-interval "1m"; }\n}'))
    (tmp_path / "tokens").write_text(f"waf-* sha256:{digest}\n")
    dry = product.ask("reload", "--dry-run")
    assert dry["dry_run"] is True
    assert dry["changed"] == ["max-connections-per-agent", "auth > token in a file"]
    assert dry["restart_needed"] == ["pool > ping-interval"]
    assert product.query("status")["supervisor"]["max_connections_per_agent"] == 3

    done = product.command("reload")
    assert "  max-connections-per-agent: 3 -> 5\n" in done.stdout
    assert done.stdout.endswith('needs a restart:\n  pool > ping-interval: "15s" -> "1m"\n')
    assert product.query("status")["supervisor"]["max_connections_per_agent"] == 5
    assert '"1m"' in product.command("config", "show").stdout
    assert 'after a restart, until then "15s"' in product.command("config", "show").stdout
    assert product.ask("reload", "--dry-run")["changes"] == []


def test_config_show_of_a_file_needs_no_supervisor(start_product: StartProduct, tmp_path: Path) -> None:
    file = tmp_path / "a.kdl"
    file.write_text("reverse-listener {\n shards 2\n}\n")
    command = [sys.executable, "-P", "-m", "shardgate", "config", "show", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0
    [line] = [line.split() for line in done.stdout.splitlines() if "shards" in line]
    assert line == ["shards", "2", "//", f"{file}:2"]
    file.write_text("reverse-listener {\n shrads 2\n}\n")
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 78
    assert f"{file}:2: " in done.stderr


def test_doctor_looks_at_this_host_and_finds_shards_without_a_supervisor(start_product: StartProduct) -> None:
    product = start_product("--tcp", "0.0.0.0:0")
    done = product.command("doctor", "--json")
    found = {row["about"]: row for row in json.loads(done.stdout)["findings"]}
    # It is the running one's configuration that is looked at, options and all.
    assert done.returncode == 1
    assert found["registration"]["level"] == "problem"
    assert "can be reached over the network" in found["registration"]["found"]
    assert found["import names"]["level"] == "ok"
    assert found["left over"]["level"] == "ok"
    assert found["runtime directory"]["level"] == "ok"
    assert "descriptors" in found
    assert "clock" in found

    product.process.kill()
    product.process.wait()
    done = product.command("doctor")
    assert done.returncode == 1
    assert "2 shards serve on without one" in done.stdout
    assert "problem  left over" in done.stdout
    product.start()
    product.wait_until_running()
    (product.runtime_dir).chmod(0o750)
    assert f"chmod 700 {product.runtime_dir}" in product.command("doctor").stdout


def test_kick_waits_for_what_is_in_flight_and_with_now_it_does_not(start_product: StartProduct) -> None:
    product = start_product(shards=1)
    command = [sys.executable, "-P", "-m", "shardgate"]
    here = ["--runtime-dir", str(product.runtime_dir)]
    with Agent(product.socket) as agent:
        assert agent.register("waf-1").accepted
        asking = subprocess.Popen(
            [*command, "send", "waf-1", "--uri", "/", *here], env=environment(),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        wait_for(lambda: product.in_flight() == [1], "the request to be in flight")
        kicking = subprocess.Popen(
            [*command, "kick", "waf-1", "--timeout", "20s", *here],
            env=environment(), stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        wait_for(lambda: product.query("status")["supervisor"]["kicked_total"] == 1, "the order")
        assert product.in_flight() == [1]
        assert len(product.connections()) == 1
        assert product.command("kick", "waf-1", "--now").returncode == 0
        shown, _ = kicking.communicate(timeout=120)
        assert shown == "closed 1 connection of waf-1; it may register again at once\n"
        assert asking.wait(20) != 0


def test_a_shell_completes_the_ids_of_connected_agents(product: Product) -> None:
    def completed(words: str) -> list[str]:
        env = {"_SHARDGATE_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        env |= environment() | {"SHARDGATE_RUNTIME_DIR": str(product.runtime_dir)}
        command = [sys.executable, "-P", "-m", "shardgate"]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=120)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.split()

    with Agent(product.socket) as one, Agent(product.socket) as two:
        assert one.register("waf-eu").accepted
        assert two.register("auth").accepted
        assert completed("shardgate why w") == ["plain,waf-eu"]
        assert completed("shardgate kick ") == ["plain,auth", "plain,waf-eu"]
