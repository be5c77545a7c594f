"""Shards outlive their supervisor, keep its listening sockets meanwhile, and end when no other one comes."""

import array
import asyncio
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from support.agents import Agent, registration
from support.product import Product, StartProduct, environment
from support.sending import send
from support.serving import ServingAgent
from support.waiting import wait_for

from dialout import ALLOWED, Dialect
from ipc import handoff, messages
from ipc.rundir import RuntimeDir
from supervisor import custody
from supervisor.config.model import Config

TCP = ("--tcp", "127.0.0.1:0")


def quiet_port() -> int:
    """A free port that the kernel gives to no other socket, for a test that listens there more than once.

    The range in ``/proc/sys/net/ipv4/ip_local_port_range`` begins at 32768.
    """
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("0.0.0.0", port))
            return port


def kill_supervisor(product: Product) -> None:
    product.process.kill()
    product.process.wait()


def is_refused(address: Path | tuple[str, int]) -> bool:
    """Whether nobody listens there."""
    with socket.socket(socket.AF_UNIX if isinstance(address, Path) else socket.AF_INET) as sock:
        try:
            sock.connect(str(address) if isinstance(address, Path) else address)
        except (ConnectionRefusedError, FileNotFoundError):
            return True
    return False


@contextmanager
def stopped(*pids: int) -> Iterator[None]:
    """These processes do not run."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def test_agents_that_connect_while_there_is_no_supervisor_wait_for_the_next_one(start_product: StartProduct) -> None:
    product = start_product(*TCP)
    tcp = product.tcp_address()
    shards = [product.shard_pid(0), product.shard_pid(1)]
    for round_ in range(3):
        with ExitStack() as stack:
            before = stack.enter_context(Agent(product.socket))
            assert before.register(f"before-{round_}").accepted
            kill_supervisor(product)
            addresses: list[Path | tuple[str, int]] = [product.socket, tcp]
            waiting = [stack.enter_context(Agent(address, 20)) for address in addresses for _ in range(5)]
            for number, agent in enumerate(waiting):
                agent.send(registration(f"waiting-{round_}-{number}", list(Dialect)[number % len(Dialect)]))
            product.start()
            assert all(agent.answer().accepted for agent in waiting)
            product.wait_until_running()
            assert product.tcp_address() == tcp
            assert [product.shard_pid(0), product.shard_pid(1)] == shards
            assert before.ping(Dialect.SDK) is not None
    product.process.terminate()
    assert product.process.wait(15) == 0
    assert is_refused(tcp)
    assert not product.socket.exists()


def test_listener_that_the_next_configuration_does_not_want_is_closed_everywhere(
    start_product: StartProduct, tmp_path: Path
) -> None:
    config = tmp_path / "shardgate.kdl"
    config.write_text(f'reverse-listener {{\ntcp-address "127.0.0.1:{quiet_port()}"\n}}\n')
    product = start_product("--config", str(config))
    tcp = product.tcp_address()
    kill_supervisor(product)
    with Agent(tcp):
        assert not is_refused(tcp)
        config.write_text('reverse-listener {\nsocket-mode "0606"\n}\n')
        with Agent(product.socket) as agent:
            product.start()
            product.wait_until_running()
            assert agent.register("waited").accepted
    assert is_refused(tcp)
    assert product.socket.stat().st_mode & 0o777 == 0o606
    # An address that the old one covers can be listened on.
    kill_supervisor(product)
    config.write_text(f'reverse-listener {{\ntcp-address "0.0.0.0:{tcp[1]}"\n}}\n')
    product.start()
    product.wait_until_running()
    kill_supervisor(product)
    config.write_text(f'reverse-listener {{\ntcp-address "127.0.0.1:{tcp[1]}"\n}}\n')
    product.start()
    product.wait_until_running()
    assert product.tcp_address() == tcp


def test_socket_whose_file_somebody_removed_is_opened_anew(start_product: StartProduct) -> None:
    product = start_product()
    kill_supervisor(product)
    product.socket.unlink()
    product.start()
    product.wait_until_running()
    with Agent(product.socket) as agent:
        assert agent.register("found-it").accepted


def test_shard_that_was_started_anew_keeps_the_sockets_too(start_product: StartProduct) -> None:
    product = start_product(*TCP, shards=1)
    os.kill(product.shard_pid(0), signal.SIGKILL)
    wait_for(lambda: product.query("status")["shards"][0]["restarts"] == 1, "the death to be noticed")
    product.wait_until_running()
    with Agent(product.socket) as agent:
        # A shard that takes a connection has read what was sent to it before.
        assert agent.register("first").accepted
    kill_supervisor(product)
    with Agent(product.socket) as agent:
        agent.send(registration("waiting"))
        product.start()
        assert agent.answer().accepted


def test_next_supervisor_waits_for_shards_that_do_not_run(start_product: StartProduct) -> None:
    product = start_product(*TCP)
    tcp = product.tcp_address()
    pids = [product.shard_pid(0), product.shard_pid(1)]
    kill_supervisor(product)
    with Agent(tcp, 20) as agent, stopped(*pids):
        agent.send(registration("waiting"))
        product.start()
        wait_for(lambda: "waiting for shards that do not answer" in product.log.read_text(), "the new supervisor")
        # One is enough to start: both keep the same sockets. To admit somebody, what the other one holds must be known.
        os.kill(pids[1], signal.SIGCONT)

        def waits() -> bool:
            supervisor = product.query("status")["supervisor"]
            return (supervisor["held_descriptors"], supervisor["handshakes"]) == (1, 0)

        wait_for(lambda: product.log.read_text().count('"listening"') == 2, "the supervisor to listen")
        wait_for(waits, "the registration to be read")
        os.kill(pids[0], signal.SIGCONT)
        assert agent.answer().accepted
    product.wait_until_running()
    assert [product.shard_pid(0), product.shard_pid(1)] == pids


def test_shards_that_never_answer_are_ended_with_what_they_keep(
    start_product: StartProduct, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(custody, "REPLACE_AFTER", custody.ANSWER_TIMEOUT)
    monkeypatch.setattr(custody, "KILL_AFTER", 0.2)
    product = start_product(*TCP)
    tcp = product.tcp_address()
    pids = [product.shard_pid(0), product.shard_pid(1)]
    kill_supervisor(product)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    assert not is_refused(tcp)

    taken = asyncio.run(custody.take_back(Config(path=str(product.socket)), RuntimeDir(product.runtime_dir), Path("/")))

    assert taken == ({}, set())
    assert is_refused(tcp)
    assert is_refused(product.socket)
    product.start()
    product.wait_until_running()


@pytest.mark.parametrize("through", ["its own shard", "the other one"])
def test_orphans_answer_what_is_in_flight_and_end(start_product: StartProduct, through: str) -> None:
    product = start_product("--orphan-timeout", "1s", *TCP)
    tcp = product.tcp_address()
    records = RuntimeDir(product.runtime_dir)
    asked, may_answer = [], False

    def decide(event: object) -> object:
        asked.append(event)
        wait_for(lambda: may_answer, "the test")
        return ALLOWED

    busy = ServingAgent(product.socket, "busy", decide=decide)  # type: ignore[arg-type]
    own = product.connections()[0]["shard"]
    shard = own if through == "its own shard" else 1 - own
    with Agent(product.socket) as idle:
        assert idle.register("idle").accepted
        asking = subprocess.Popen(
            [sys.executable, "-P", "-m", "shardgate", "send", "busy", "--shard", str(shard),
             "--runtime-dir", str(product.runtime_dir)],
            env=environment(), stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        wait_for(lambda: asked, "the request to be in flight")
        kill_supervisor(product)
        assert idle.at_end()
    # Whoever had nothing in flight, or on its way to another shard, is gone, and nobody is let in any more.
    left = {own, shard}
    wait_for(lambda: set(records.recorded_shards()) == left, "the idle shard to end")
    wait_for(lambda: is_refused(tcp), "the listener to be closed everywhere")
    may_answer = True
    assert "allow" in asking.communicate(timeout=120)[0]
    assert asking.returncode == 0
    busy.close()
    wait_for(lambda: not list(records.recorded_shards()), "the busy shard to end")
    assert [path.name for path in product.runtime_dir.iterdir() if path.name.startswith("shard-")] == []
    # The supervisor's own files and the agents' socket wait for the next one.
    product.start()
    product.wait_until_running()
    with Agent(product.socket) as agent:
        assert agent.register("again").accepted


def test_shard_that_has_a_supervisor_is_no_orphan(start_product: StartProduct) -> None:
    # Longer than a supervisor takes to start on a busy host.
    product = start_product("--orphan-timeout", "4s")
    pids = [product.shard_pid(0), product.shard_pid(1)]
    for _ in range(2):
        kill_supervisor(product)
        product.start()
        product.wait_until_running()
    log = product.log.read_text()
    uptime = product.query("status")["supervisor"]["uptime_s"]
    wait_for(lambda: product.query("status")["supervisor"]["uptime_s"] > uptime + 4.5, "longer than the timeout")
    assert [product.shard_pid(0), product.shard_pid(1)] == pids
    assert "no supervisor has come" not in log


def test_stop_ends_orphans_with_what_they_keep(start_product: StartProduct) -> None:
    product = start_product(*TCP)
    tcp = product.tcp_address()
    kill_supervisor(product)
    done = product.command("stop")
    assert (done.returncode, "ending 2 shards" in done.stderr) == (0, True)
    assert is_refused(tcp)
    assert is_refused(product.socket)
    product.socket.unlink()


FOREIGN = """
import runpy, sys
import ipc.messages
ipc.messages.VERSION = b"\\xfe"
runpy.run_module("shards", run_name="__main__")
"""


@pytest.mark.parametrize("found", ["at the start", "later"])
def test_shard_of_another_version_is_drained_and_replaced(start_product: StartProduct, found: str) -> None:
    product = start_product(shards=1)
    assert product.command("stop").returncode == 0
    product.process.wait(15)
    rundir = RuntimeDir(product.runtime_dir)
    foreign = subprocess.Popen(
        [
            sys.executable, "-P", "-c", FOREIGN, "--shard", "0", "--epoch", "other",
            "--runtime-dir", str(product.runtime_dir),
        ],
        env=environment(),
    )  # fmt: skip
    try:
        wait_for(lambda: rundir.read_shard(0), "the shard's record", timeout=20)
        with socket.create_server(("127.0.0.1", 0)) as listener, handoff.connect(rundir.shard_handoff(0)) as channel:
            address = listener.getsockname()
            entrust = messages.Entrust([messages.KeptListener("tcp", f"127.0.0.1:{address[1]}")], 600.0)
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [listener.fileno()]))
            channel.sendmsg([b"\xfe" + messages.encode(entrust)[1:]], [rights])
        assert not is_refused(address)
        if found == "later":
            # It cannot be asked by the one who starts, and is met by the fleet.
            os.kill(foreign.pid, signal.SIGSTOP)
            product.start()
            wait_for(lambda: "waiting for shards" in product.log.read_text(), "the supervisor")
            os.kill(foreign.pid, signal.SIGCONT)
        else:
            product.start()
        assert foreign.wait(20) == 0, "an orderly end"
        product.wait_until_running()
    finally:
        foreign.kill()
        foreign.wait()
    assert is_refused(address)
    record = rundir.read_shard(0)
    assert record is not None
    assert (record.pid, record.epoch != "other") == (product.shard_pid(0), True)
    with Agent(product.socket) as agent:
        assert agent.register("newcomer").accepted


def test_shard_whose_supervisor_died_while_it_started_does_not_stay(start_product: StartProduct) -> None:
    product = start_product(shards=1)
    done = subprocess.run(
        [
            sys.executable, "-P", "-m", "shards", "--shard", "5", "--epoch", "late", "--parent", "1",
            "--runtime-dir", str(product.runtime_dir),
        ],
        env=environment(), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert "is gone" in done.stderr
    assert list(RuntimeDir(product.runtime_dir).recorded_shards()) == [0]
    assert send(product, "nobody").returncode == 1


def test_stop_removes_what_a_shard_left_that_nobody_knows(start_product: StartProduct) -> None:
    product = start_product()
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as sock:
        # As of a spare shard that was killed with its supervisor before it had written its record.
        sock.bind(str(product.runtime_dir / "shard-3.proxy"))
    assert product.command("stop").returncode == 0
    assert [path.name for path in product.runtime_dir.iterdir() if path.name.startswith("shard-")] == []
