"""What a service manager hears from the real thing (sd_notify(3), sd_watchdog_enabled(3))."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.agents import Agent
from support.manager import Manager
from support.product import Product, StartProduct, environment, short_folder
from support.waiting import wait_for

from dialout import Dialect
from supervisor.sd import ServiceManager


@pytest.fixture
def manager() -> Iterator[Manager]:
    """A manager with a socket in the file system."""
    with short_folder() as folder, Manager(str(folder / "notify")) as manager:
        yield manager


def variables(manager: Manager, **more: str) -> dict[str, str]:
    return {"NOTIFY_SOCKET": manager.address, **more}


def test_start_reload_and_stop_are_told(start_product: StartProduct, manager: Manager, tmp_path: Path) -> None:
    config = tmp_path / "shardgate.kdl"
    config.write_text("reverse-listener { max-connections-per-agent 4\n}\n")
    product = start_product("--config", str(config), variables=variables(manager))
    pid = product.process.pid
    manager.wait_for("READY", "1")
    assert manager.values("MAINPID") == [str(pid)]
    manager.wait_for("STATUS", "2 of 2 shards running; connections: 0")
    with Agent(product.socket) as agent:
        assert agent.register("a").accepted
        manager.wait_for("STATUS", "2 of 2 shards running; connections: 1")
        os.kill(product.shard_pid(1), signal.SIGSTOP)
        manager.wait_for("STATUS", "1 of 2 shards running; connections: 1")
        os.kill(product.shard_pid(1), signal.SIGCONT)
        wait_for(lambda: manager.values("STATUS")[-1].startswith("2 of 2"), "both shards to be told")

        # Ready again even when the new configuration is bad: the old one is in force.
        for text in ("reverse-listener { max-connections-per-agent 5\n}\n", "nonsense"):
            config.write_text(text)
            ready, began = len(manager.values("READY")), time.monotonic_ns() // 1000
            os.kill(pid, signal.SIGHUP)
            wait_for(lambda ready=ready: len(manager.values("READY")) > ready, "the end of the reload")  # type: ignore[misc]
            assert began <= int(manager.values("MONOTONIC_USEC")[-1]) <= time.monotonic_ns() // 1000
        assert manager.values("RELOADING") == ["1", "1"]

        # The end is told when it begins, with the shards still there.
        os.kill(product.shard_pid(0), signal.SIGSTOP)
        product.process.terminate()
        manager.wait_for("STOPPING", "1")
        assert product.process.poll() is None
        os.kill(product.shard_pid(0), signal.SIGCONT)
    assert product.process.wait(20) == 0
    assert manager.told[-1][1]["STOPPING"] == "1"
    assert {sender for sender, _ in manager.told} == {pid}


def test_abstract_socket_is_told_too(start_product: StartProduct) -> None:
    with Manager(f"@sg-{secrets.token_hex(8)}") as manager:
        start_product(variables=variables(manager))
        manager.wait_for("READY", "1")


@pytest.mark.parametrize("address", ["/nobody/there", "@nobody-there", "vsock:2:1234", "relative", ""])
def test_manager_that_is_not_there_hurts_nobody(address: str) -> None:
    variables = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "nonsense", "OTHER": "stays"}
    manager = ServiceManager(variables)
    manager.ready("well")
    manager.stopping("well")
    assert (variables, manager.watchdog_seconds) == ({"OTHER": "stays"}, 0.0)
    assert manager.is_there == address.startswith(("/", "@"))
    manager.close()


def test_manager_that_does_not_read_keeps_nobody_waiting(start_product: StartProduct) -> None:
    with short_folder() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        deaf.bind(str(folder / "notify"))
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as filler:
            filler.setblocking(False)
            try:
                while True:
                    filler.sendto(b"x" * 100, str(folder / "notify"))
            except BlockingIOError:
                pass
        product = start_product(variables={"NOTIFY_SOCKET": str(folder / "notify"), "WATCHDOG_USEC": "100000"})
        with Agent(product.socket) as agent:
            assert agent.register("a").accepted
        # What it missed comes, the oldest first, as soon as it reads.
        deaf.settimeout(10)
        heard = b""
        while b"READY=1" not in heard:
            heard = deaf.recv(4096)
        product.process.terminate()
        assert product.process.wait(20) == 0


def test_watchdog_hears_from_a_supervisor_that_works(start_product: StartProduct, manager: Manager) -> None:
    # A shell's pid stays when it becomes another program: that is how a manager names the process that it is to start.
    prefix = ("/bin/sh", "-c", 'WATCHDOG_PID=$$ exec "$@"', "sh")
    product = start_product(prefix=prefix, variables=variables(manager, WATCHDOG_USEC="400000"))
    wait_for(lambda: len(manager.values("WATCHDOG")) > 5, "the watchdog to hear of us")
    os.kill(product.process.pid, signal.SIGSTOP)
    heard = len(manager.values("WATCHDOG"))
    os.kill(product.process.pid, signal.SIGCONT)
    wait_for(lambda: len(manager.values("WATCHDOG")) > heard + 1, "the watchdog to hear of us again")


def test_watchdog_hears_nothing_from_a_loop_that_turns_without_getting_its_work_done(
    start_product: StartProduct, manager: Manager, tmp_path: Path
) -> None:
    flag = tmp_path / "stuck"
    script = (
        "import os, sys\nfrom supervisor.fleet import Fleet\ntick = Fleet._tick\n"
        f"def stuck(self):\n    if not os.path.exists({str(flag)!r}): return tick(self)\n"
        "    self._timer = self._loop.call_later(0.1, self._tick)\n"
        "Fleet._tick = stuck\nimport shardgate\nsys.argv = sys.argv[4:]\nsys.exit(shardgate.main())"
    )

    product = start_product(
        prefix=(sys.executable, "-P", "-c", script), variables=variables(manager, WATCHDOG_USEC="200000")
    )
    wait_for(lambda: len(manager.values("WATCHDOG")) > 2, "the watchdog to hear of the good times")
    flag.touch()
    # The loop still answers, and the status still goes out; but nobody looks after the shards.
    with Agent(product.socket) as agent:
        assert agent.register("a").accepted
        manager.wait_for("STATUS", "2 of 2 shards running; connections: 1")
        wait_for(lambda: _is_silent(manager, 1.0), "the silence")


def _is_silent(manager: Manager, seconds: float) -> bool:
    heard = len(manager.values("WATCHDOG"))
    time.sleep(seconds)
    return len(manager.values("WATCHDOG")) == heard


def test_watchdog_of_another_process_is_none_of_ours(start_product: StartProduct, manager: Manager) -> None:
    product = start_product(variables=variables(manager, WATCHDOG_USEC="100000", WATCHDOG_PID="1"))
    manager.wait_for("READY", "1")
    with Agent(product.socket) as agent:
        assert agent.register("a").accepted
        manager.wait_for("STATUS", "2 of 2 shards running; connections: 1")
    assert manager.values("WATCHDOG") == []


def test_takeover_by_signal_tells_the_manager_which_process_it_is_now(
    start_product: StartProduct, manager: Manager
) -> None:
    # As systemd would: the main process is known by its pid, and messages of others do not count.
    prefix = ("/bin/sh", "-c", 'WATCHDOG_PID=$$ exec "$@"', "sh")
    product = start_product(prefix=prefix, variables=variables(manager, WATCHDOG_USEC="400000"))
    old = product.process.pid
    manager.wait_for("READY", "1", old)
    # Shards have nothing to tell it.
    inherited = Path(f"/proc/{product.shard_pid(0)}/environ").read_bytes()
    assert b"NOTIFY_SOCKET" not in inherited
    assert b"WATCHDOG" not in inherited
    with Agent(product.socket) as agent:
        assert agent.register("a").accepted

        # From outside it would look like the end of the service.
        done = _takeover_by_hand(product)
        assert done.returncode == 5
        assert "systemctl kill --kill-whom=main --signal=USR2" in done.stderr
        assert product.query("status")["supervisor"]["pid"] == old

        os.kill(old, signal.SIGUSR2)
        assert product.process.wait(20) == 0
        (named,) = [int(pid) for pid in manager.values("MAINPID", old) if int(pid) != old]
        manager.wait_for("READY", "1", named)
        # In this order: whoever is not the main process is not heard.
        senders = [sender for sender, told in manager.told if "READY" in told or told.get("MAINPID") == str(named)]
        assert senders == [old, old, named]
        wait_for(lambda: len(manager.values("WATCHDOG", named)) > 2, "the watchdog to hear of the new one")
        assert manager.values("STOPPING") == []
        assert agent.ping(Dialect.SDK) is not None
    assert product.command("stop").returncode == 0
    manager.wait_for("STOPPING", "1", named)


def _takeover_by_hand(product: Product) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-P", "-m", "shardgate", *product._arguments, "--takeover"],
        env=environment(), capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
