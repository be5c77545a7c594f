"""A supervisor replaces another one, and agents do not notice; whatever goes wrong, one of the two goes on."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.agents import Agent, registration
from support.fences import sockets
from support.product import Product, StartProduct, environment
from support.serving import ServingAgent
from support.waiting import wait_for

from dialout import ALLOWED, Dialect, ErrorCode, PoolClient, RequestHeaders
from ipc.rundir import RuntimeDir
from supervisor.cli import asking
from supervisor.cli.errors import CommandError

TAKEOVERS = int(os.environ.get("SHARDGATE_TEST_TAKEOVERS", "4"))
AGENTS = int(os.environ.get("SHARDGATE_TEST_AGENTS", "300"))


def patched(code: str) -> tuple[str, ...]:
    """What stands in front of ``python -P -m shardgate …`` to run it with *code* before: faults at named steps."""
    script = (
        "import os, sys, signal\nimport supervisor.takeover as takeover, ipc.messages as messages\n"
        f"{code}\nimport shardgate\nsys.argv = sys.argv[4:]\nsys.exit(shardgate.main())"
    )
    return (sys.executable, "-P", "-c", script)


def new_one(product: Product, *options: str, code: str | None = None) -> "subprocess.Popen[str]":
    """Start another supervisor that is to take over; its output is kept apart."""
    command = [sys.executable, "-P", "-m", "shardgate", *product._arguments, "--takeover", *options]
    return subprocess.Popen(
        [*(patched(code) if code else ()), *command],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment(),
    )  # fmt: skip


def supervisor_pid(product: Product) -> int:
    return int(product.query("status")["supervisor"]["pid"])


class Load:
    """Requests through the proxies' sockets, and agents that register and leave, until it is stopped."""

    def __init__(self, product: Product, agent_id: str) -> None:
        self.outcomes: Counter[str] = Counter()
        self.refused: list[object] = []
        self.registered = 0
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=lambda: asyncio.run(self._ask(product.runtime_dir, agent_id))),
            threading.Thread(target=self._register, args=(product.socket, "churn-a")),
            threading.Thread(target=self._register, args=(product.socket, "churn-b")),
        ]
        for thread in self._threads:
            thread.start()

    def wait_for_more(self) -> None:
        """Wait until some more agents have registered, and some more requests were answered."""
        registered, answered = self.registered + 10, self.outcomes["answered"] + 10
        wait_for(lambda: self.registered > registered and self.outcomes["answered"] > answered, "the load to go on")

    def stop(self) -> None:
        """Stop, and wait for what is under way."""
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    async def _ask(self, runtime_dir: Path, agent_id: str) -> None:
        async def one(client: PoolClient) -> None:
            while not self._stop.is_set():
                try:
                    await client.send_request_headers(agent_id, RequestHeaders("GET", "/", {"host": ["a"]}))
                    self.outcomes["answered"] += 1
                except Exception as error:  # noqa: BLE001 - counted, whatever it is
                    self.outcomes[repr(error)] += 1
                await asyncio.sleep(0.002)

        async with PoolClient(runtime_dir) as client, asyncio.TaskGroup() as group:
            for _ in range(8):
                group.create_task(one(client))

    def _register(self, address: Path, agent_id: str) -> None:
        while not self._stop.is_set():
            try:
                with Agent(address, 20) as agent:
                    answer = agent.register(agent_id, list(Dialect)[self.registered % len(Dialect)])
            except Exception as error:  # noqa: BLE001 - noted, whatever it is
                self.refused.append(error)
                continue
            if answer.accepted:
                self.registered += 1
            else:
                self.refused.append(answer)


@pytest.fixture
def agents(start_product: StartProduct) -> Iterator[tuple[Product, list[Agent]]]:
    """A product with hundreds of agents."""
    product = start_product("--tcp", "127.0.0.1:0")
    with ExitStack() as stack:
        agents = []
        for number in range(AGENTS):
            agents.append(stack.enter_context(Agent(product.socket)))
            assert agents[-1].register(f"agent-{number}", list(Dialect)[number % len(Dialect)]).accepted
        yield product, agents


@pytest.mark.timeout(600)
def test_agents_notice_nothing_of_many_takeovers_under_load(agents: tuple[Product, list[Agent]]) -> None:
    product, idle = agents
    serving = [ServingAgent(product.socket, "waf", Dialect.SDK) for _ in range(4)]
    shards = [product.shard_pid(0), product.shard_pid(1)]
    listeners = product.query("status")["supervisor"]["listeners"]
    ids = {row["connection_id"] for shard in (0, 1) for row in product.query_connections(shard)}
    load = Load(product, "waf")
    try:
        load.wait_for_more()
        for _ in range(TAKEOVERS):
            product.take_over()
            load.wait_for_more()
    finally:
        load.stop()
    assert load.refused == []
    assert set(load.outcomes) == {"answered"}
    # The same shards, the same sockets, the same connections.
    assert [product.shard_pid(0), product.shard_pid(1)] == shards
    assert product.query("status")["supervisor"]["listeners"] == listeners
    for number, agent in enumerate(idle):
        assert agent.ping(list(Dialect)[number % len(Dialect)]) is not None
    still = {row["connection_id"] for shard in (0, 1) for row in product.query_connections(shard)}
    assert still >= ids
    for agent in serving:
        agent.close()
    wait_for(lambda: sum(product.counts()) == AGENTS, "the connections to be exactly those of the agents")
    wait_for(
        lambda: product.query("status")["supervisor"]["held_descriptors"] == 0, "the supervisor to hold no descriptor"
    )
    # A limit of 4 counts over all supervisors.
    with ExitStack() as stack:
        four = [stack.enter_context(Agent(product.socket)) for _ in range(5)]
        answers = [agent.register("agent-x") for agent in four]
        assert [answer.accepted for answer in answers] == [True] * 4 + [False]


def test_signal_starts_the_new_code_in_place_of_the_old(start_product: StartProduct) -> None:
    product = start_product()
    with Agent(product.socket) as agent:
        assert agent.register("a").accepted
        first = product.process
        for _ in range(2):
            old = supervisor_pid(product)
            os.kill(old, signal.SIGUSR2)
            wait_for(partial(_is_replaced, product, old), "the new supervisor")
        assert first.wait(10) == 0
        assert agent.ping(Dialect.SDK) is not None
        # Ours to end again.
        last = supervisor_pid(product)
        product.start("--takeover")
        product.wait_until_running()
        wait_for(lambda: not Path(f"/proc/{last}").exists() or _is_zombie(last), "the last one to end")
        assert agent.ping(Dialect.SDK) is not None
    assert product.log.read_text().count("handed over") == 3


def test_operators_who_ask_notice_nothing_of_a_takeover(start_product: StartProduct) -> None:
    product = start_product()
    over, seen = threading.Event(), Counter[str]()

    def look() -> None:
        rundir = RuntimeDir(product.runtime_dir)
        while not over.is_set():
            status = asking.collect_status(rundir, 5.0).status
            seen["status" if status.supervisor else "no supervisor"] += 1
            try:
                asking.ask_supervisor(rundir, "agent_ids", list[str], 5.0, {"beginning": ""})
                seen["agents"] += 1
            except CommandError as error:
                seen[str(error)] += 1

    looking = threading.Thread(target=look)
    looking.start()
    try:
        for _ in range(3):
            product.take_over()
    finally:
        over.set()
        looking.join(30)
    assert set(seen) == {"status", "agents"}


def _is_replaced(product: Product, old: int) -> bool:
    try:
        row = product.query("status")["supervisor"]
    except Exception:  # noqa: BLE001 - between the two
        return False
    return bool(row["pid"] != old and row["state"] == "running")


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_handshakes_under_way_go_on_at_the_new_supervisor(start_product: StartProduct) -> None:
    product = start_product("--tcp", "127.0.0.1:0", "--handshake-timeout", "6s")
    host, _, port = product.query("status")["supervisor"]["listeners"][1]["address"].rpartition(":")
    with ExitStack() as stack:
        addresses: list[Path | tuple[str, int]] = [product.socket, (host, int(port))]
        begun = [stack.enter_context(Agent(address, 20)) for address in addresses for _ in range(70)]
        frames = [registration(f"begun-{number}", list(Dialect)[number % 2]) for number in range(len(begun))]
        for number, (agent, frame) in enumerate(zip(begun, frames, strict=True)):
            agent.send(frame[: number % len(frame)])
        wait_for(lambda: product.query("status")["supervisor"]["handshakes"] == len(begun), "the handshakes to begin")
        product.take_over()
        assert product.query("status")["supervisor"]["handshakes"] == len(begun)
        for number, (agent, frame) in enumerate(zip(begun[1:], frames[1:], strict=True), 1):
            agent.send(frame[number % len(frame) :])
            assert agent.answer().accepted
        # The one that says nothing has no more time than before, and gets an answer.
        assert begun[0].answer().error_code == ErrorCode.TIMEOUT


def test_handoffs_under_way_are_finished_before_the_old_one_ends(start_product: StartProduct) -> None:
    product = start_product()
    old = product.process
    shards = [product.shard_pid(0), product.shard_pid(1)]
    with ExitStack() as stack:
        for pid in shards:
            os.kill(pid, signal.SIGSTOP)
            stack.callback(os.kill, pid, signal.SIGCONT)
        newcomers = [stack.enter_context(Agent(product.socket, 20)) for _ in range(20)]
        for number, agent in enumerate(newcomers):
            agent.send(registration(f"newcomer-{number}"))
        wait_for(lambda: product.query("status")["supervisor"]["held_descriptors"] == 20, "the offers")
        new = product.start("--takeover")
        wait_for(lambda: "handing over" in product.log.read_text(), "the old one to be asked")
        # It is still the one that has them, and goes on being it.
        assert [supervisor_pid(product) for _ in range(30)] == [old.pid] * 30
        for pid in shards:
            os.kill(pid, signal.SIGCONT)
        assert all(agent.answer().accepted for agent in newcomers)
        assert old.wait(20) == 0
        product.wait_until_running()
        assert supervisor_pid(product) == new.pid
        assert sum(product.counts()) == 20


def test_new_configuration_holds_after_a_takeover(start_product: StartProduct, tmp_path: Path) -> None:
    config = tmp_path / "shardgate.kdl"
    product = start_product("--config", str(config), uds=False, wait=False)
    product.process.wait()
    config.write_text(f'reverse-listener {{\npath "{product.socket}"\ntcp-address "127.0.0.1:0"\n}}\n')
    product.start()
    product.wait_until_running()
    kept = product.query("status")["supervisor"]["listeners"][1]["address"]
    assert product.command("drain", "1").returncode == 0
    other = product.folder / "other.sock"
    config.write_text(f'reverse-listener {{\npath "{other}"\nsocket-mode "0600"\ntcp-address "{kept}"\n}}\n')
    old = product.process
    product.start("--takeover")
    assert old.wait(20) == 0
    wait_for(partial(_is_replaced, product, old.pid), "the new supervisor")
    assert not product.socket.exists(), "nobody listens there any more"
    assert other.stat().st_mode & 0o777 == 0o600
    assert [row["address"] for row in product.query("status")["supervisor"]["listeners"]] == [str(other), kept]
    with ExitStack() as stack:
        for number in range(10):
            assert stack.enter_context(Agent(other)).register(f"a-{number}").accepted
        # The drained shard is drained still.
        assert product.query_connections(1) == []


def test_takeover_without_a_supervisor_is_a_start(start_product: StartProduct) -> None:
    product = start_product()
    shards = [product.shard_pid(0), product.shard_pid(1)]
    with Agent(product.socket) as agent:
        assert agent.register("a").accepted
        product.process.kill()
        product.process.wait()
        product.start("--takeover")
        product.wait_until_running()
        assert [product.shard_pid(0), product.shard_pid(1)] == shards
        assert agent.ping(Dialect.SDK) is not None


# What goes wrong. The old supervisor goes on each time, with everything that it had.


@pytest.fixture
def held(start_product: StartProduct) -> Iterator[tuple[Product, Callable[[], None]]]:
    """A product, and a check that the same supervisor serves on with all that it had before."""
    product = start_product()
    pid, shards = product.process.pid, [product.shard_pid(0), product.shard_pid(1)]
    with Agent(product.socket) as member, Agent(product.socket, 20) as begun:
        assert member.register("member").accepted
        frame = registration("begun")
        begun.send(frame[:9])
        wait_for(lambda: product.query("status")["supervisor"]["handshakes"] == 1, "the handshake to begin")

        def check() -> None:
            product.wait_until_running()
            assert (supervisor_pid(product), product.process.poll()) == (pid, None)
            assert [product.shard_pid(0), product.shard_pid(1)] == shards
            assert member.ping(Dialect.SDK) is not None
            begun.send(frame[9:])
            assert begun.answer().accepted
            with Agent(product.socket) as agent:
                assert agent.register("newcomer").accepted
            wait_for(lambda: sum(product.counts()) == 2, "the counts")
            # It can be replaced still.
            product.take_over()
            assert member.ping(Dialect.SDK) is not None

        yield product, check


def ended(process: "subprocess.Popen[str]") -> tuple[int, str]:
    output, _ = process.communicate(timeout=120)
    return process.returncode, output


def test_bad_configuration_never_gets_as_far_as_asking(
    held: tuple[Product, Callable[[], None]], tmp_path: Path
) -> None:
    product, check = held
    (tmp_path / "bad.kdl").write_text("reverse-listener { sharts 2 }\n")
    status, output = ended(new_one(product, "--config", str(tmp_path / "bad.kdl")))
    assert (status, "shards" in output) == (78, True)
    assert "handing over" not in product.log.read_text()
    check()


def test_shards_that_the_new_code_cannot_adopt_are_no_takeover(held: tuple[Product, Callable[[], None]]) -> None:
    product, check = held
    status, output = ended(new_one(product, code="messages.VERSION = b'\\xfe'"))
    assert (status, "version 254" in output) == (5, True), output
    assert "handing over" not in product.log.read_text()
    check()


def test_address_that_cannot_be_opened_is_no_takeover(held: tuple[Product, Callable[[], None]]) -> None:
    product, check = held
    with socket.create_server(("127.0.0.1", 0)) as occupied:
        status, output = ended(new_one(product, "--tcp", f"127.0.0.1:{occupied.getsockname()[1]}"))
    assert (status, "cannot listen" in output) == (1, True), output
    wait_for(lambda: "the new supervisor has ended, going on" in product.log.read_text(), "the old one to go on")
    check()


@pytest.mark.parametrize(
    "step",
    [
        "takeover.Predecessor.estate = lambda self: os._exit(9)",
        "takeover.Predecessor._on_message = lambda *_: os.kill(os.getpid(), signal.SIGKILL)",
        "import supervisor.serve; supervisor.serve.open_all = lambda *_: os.kill(os.getpid(), signal.SIGKILL)",
        "takeover.Predecessor.say_taken = lambda self: os.kill(os.getpid(), signal.SIGKILL)",
    ],
    ids=["before it asks", "with the first answer", "with everything", "when it would serve"],
)
def test_new_supervisor_that_dies_is_as_if_it_had_never_come(
    held: tuple[Product, Callable[[], None]], step: str
) -> None:
    product, check = held
    status, _ = ended(new_one(product, code=step))
    assert status in (9, -9)
    check()


def test_new_supervisor_that_hangs_is_ended(start_product: StartProduct) -> None:
    product = start_product(prefix=patched("takeover.TAKE_LIMIT = 0.5"))
    pid = product.process.pid
    with Agent(product.socket) as member:
        assert member.register("member").accepted
        new = new_one(
            product, code="takeover.Predecessor.say_taken = lambda self: os.kill(os.getpid(), signal.SIGSTOP)"
        )
        assert new.wait(30) == -signal.SIGKILL
        new.communicate()
        product.wait_until_running()
        assert supervisor_pid(product) == pid
        assert member.ping(Dialect.SDK) is not None
        with Agent(product.socket) as agent:
            assert agent.register("newcomer").accepted
    product._prefix = ()


def test_old_supervisor_that_does_not_answer_is_left_alone(held: tuple[Product, Callable[[], None]]) -> None:
    product, check = held
    os.kill(product.process.pid, signal.SIGSTOP)
    try:
        status, output = ended(new_one(product, code="takeover.ANSWER_LIMIT = 1.0"))
    finally:
        os.kill(product.process.pid, signal.SIGCONT)
    assert status == 6
    assert f"the supervisor (pid {product.process.pid}) did not hand over within 1 s" in output
    check()


def test_of_many_at_once_one_takes_over_at_a_time(start_product: StartProduct) -> None:
    product = start_product()
    with Agent(product.socket) as agent:
        assert agent.register("a").accepted
        rivals = [new_one(product) for _ in range(4)]
        everybody: list[Any] = [product.process, *rivals]
        try:
            wait_for(
                lambda: [one.poll() for one in everybody].count(None) == 1 and _is_replaced(product, 0),
                "one to be left", timeout=40,
            )  # fmt: skip
            assert {one.returncode for one in everybody} <= {None, 0, 5}
            assert agent.ping(Dialect.SDK) is not None
            (winner,) = (one for one in everybody if one.poll() is None)
            assert supervisor_pid(product) == winner.pid
            product.start("--takeover")
            assert winner.wait(20) == 0
            product.wait_until_running()
            assert agent.ping(Dialect.SDK) is not None
        finally:
            for one in rivals:
                if one.poll() is None:
                    one.kill()
                one.communicate()


def test_running_operation_is_not_interrupted(start_product: StartProduct) -> None:
    product = start_product()
    asked, may_answer = threading.Event(), threading.Event()

    def decide(_event: object) -> object:
        asked.set()
        may_answer.wait(30)
        return ALLOWED

    busy = ServingAgent(product.socket, "busy", decide=decide)  # type: ignore[arg-type]
    asking = subprocess.Popen(
        [sys.executable, "-P", "-m", "shardgate", "send", "busy", "--runtime-dir", str(product.runtime_dir)],
        env=environment(), stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert asked.wait(20)
        shard = next(shard for shard in (0, 1) if product.query_connections(shard))
        draining = subprocess.Popen(
            [sys.executable, "-P", "-m", "shardgate", "drain", str(shard), "--runtime-dir", str(product.runtime_dir)],
            env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        wait_for(lambda: product.query("status")["supervisor"]["operation"], "the drain to begin")
        status, output = ended(new_one(product))
        assert (status, f"is busy with 'drain {shard}'" in output) == (5, True), output
    finally:
        may_answer.set()
        assert "allow" in asking.communicate(timeout=120)[0]
        assert draining.wait(30) == 0
        draining.communicate()
        busy.close()


# The end, asked for in the middle.


def test_stop_during_a_takeover_ends_both(start_product: StartProduct) -> None:
    product = start_product()
    rundir = RuntimeDir(product.runtime_dir)
    new = new_one(
        product,
        code="say = takeover.Predecessor.say_taken\n"
        "takeover.Predecessor.say_taken = lambda self: (os.kill(os.getpid(), signal.SIGSTOP), say(self))",
    )
    wait_for(lambda: _is_stopped(new.pid), "the new one to hang with everything in its hands", timeout=20)
    product.process.terminate()
    # It cannot end before it knows what becomes of the other one.
    os.kill(new.pid, signal.SIGCONT)
    assert product.process.wait(20) == 0
    assert new.wait(20) == 0
    new.communicate()
    assert list(rundir.recorded_shards()) == []
    assert not product.socket.exists()


def test_stop_while_a_new_one_fails_is_a_stop(start_product: StartProduct) -> None:
    product = start_product()
    rundir = RuntimeDir(product.runtime_dir)
    new = new_one(product, code="takeover.Predecessor.say_taken = lambda self: os.kill(os.getpid(), signal.SIGSTOP)")
    wait_for(lambda: _is_stopped(new.pid), "the new one to hang with everything in its hands", timeout=20)
    product.process.terminate()
    new.kill()
    new.communicate()
    assert product.process.wait(20) == 0
    assert list(rundir.recorded_shards()) == []


def _is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def test_stopping_supervisor_hands_nothing_over(start_product: StartProduct) -> None:
    product = start_product()
    shard = product.shard_pid(0)
    os.kill(shard, signal.SIGSTOP)
    try:
        product.process.terminate()
        wait_for(lambda: '"event":"stopping"' in product.log.read_text(), "the stop to begin")
        status, output = ended(new_one(product, code="takeover.ANSWER_LIMIT = 1.0"))
    finally:
        os.kill(shard, signal.SIGCONT)
    assert status in (5, 6), output
    assert product.process.wait(20) == 0


def test_takeovers_leave_no_descriptor_behind(start_product: StartProduct) -> None:
    product = start_product()
    with Agent(product.socket) as agent:
        assert agent.register("a").accepted
        product.take_over()
        before = {pid: sockets(pid) for pid in product.pids()[1:]}
        product.take_over()
        wait_for(lambda: {pid: sockets(pid) for pid in product.pids()[1:]} == before, "the shards' sockets as before")
