"""Processes die, hang and run out of descriptors while agents register."""

import os
import resource
import signal
import threading
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
from support.agents import Agent, registration
from support.fences import descriptors, sockets
from support.product import Product, StartProduct
from support.waiting import wait_for

from dialout import Dialect, encode_frame, parse_registration_response
from ipc.process import DescriptorBudget


class Crowd:
    """Agents that register from several threads; what each one met is kept."""

    def __init__(self, product: Product, count: int, threads: int = 8) -> None:
        self.product = product
        self.accepted: list[Agent] = []
        self.told: list[str] = []
        self.closed_bare = 0
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._register, args=(range(first, count, threads),)) for first in range(threads)
        ]

    def __enter__(self) -> "Crowd":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.join()
        for agent in self.accepted:
            agent.close()

    def join(self) -> None:
        """Wait until everybody has an answer."""
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "an agent got no answer"

    @property
    def done(self) -> int:
        """How many have met their fate so far."""
        return len(self.accepted) + len(self.told) + self.closed_bare

    def _register(self, numbers: range) -> None:
        for number in numbers:
            agent = Agent(self.product.socket, timeout=20)
            try:
                agent.send(registration(f"agent-{number}"))
                frame = agent.frame()
            except OSError:
                frame = None
            with self._lock:
                if frame is None:
                    self.closed_bare += 1
                elif b'"accepted":true' in frame[1]:
                    self.accepted.append(agent)
                    continue
                else:
                    self.told.append(frame[1].decode())
            agent.close()


def alive(agents: list[Agent]) -> list[Agent]:
    """Those whose connection has not been closed by the other side."""
    living = []
    for agent in agents:
        agent.sock.setblocking(False)
        try:
            if agent.sock.recv(4096):
                living.append(agent)
        except BlockingIOError:
            living.append(agent)
        except OSError:
            pass
    return living


def at_rest(product: Product) -> dict[int, int]:
    """Open sockets of each process when nobody is connected."""
    wait_for(lambda: product.query("status")["supervisor"]["held_descriptors"] == 0, "nothing to be held")
    wait_for(lambda: product.counts() == [0, 0], "empty pools")
    # The listener may take a moment to close the connection of the last query, so the fewest of many looks count.
    looks = [product.sockets() for _ in range(50)]
    return {pid: min(look[pid] for look in looks) for pid in looks[0]}


def test_agents_are_accepted_or_told_why_when_a_shard_is_killed_as_they_register(start_product: StartProduct) -> None:
    product = start_product()
    with Crowd(product, 40) as warm:
        warm.join()
    rest = at_rest(product)
    supervisor_rest = rest[product.process.pid]
    victim = product.shard_pid(0)
    with Crowd(product, 500) as crowd:
        wait_for(lambda: crowd.done > 100, "a hundred registrations")
        os.kill(victim, signal.SIGKILL)
        killed_at = time.monotonic()
        crowd.join()
        assert crowd.told == [], "there was a shard to take each of them"
        # Those whose shard died between its commit and its answer: at most what is in flight from eight threads.
        assert crowd.closed_bare <= 8
        print(f"closed without an answer: {crowd.closed_bare} of 500")

        def exact() -> bool:
            living = len(alive(crowd.accepted))
            counts = product.counts()
            load = product.query("status")["shards"]
            return sum(counts) == living and sum(row["connections"] for row in load) <= living + 1

        wait_for(exact, "exact counts", timeout=10)
        print(f"counts exact {time.monotonic() - killed_at:.2f} s after the kill")
        wait_for(
            lambda: [row["state"] for row in product.query("status")["shards"]] == ["running", "running"],
            "the shard to be back",
        )
        row = product.query("status")["shards"][0]
        assert row["restarts"] == 1
        assert row["pid"] != victim
        # The ledger agrees: every agent that lost its connection can fill its limit again, and not more.
        lost = [f"agent-{n}" for n in range(500)][:3]
        for agent_id in lost:
            have = sum(row["agent_id"] == agent_id for row in product.connections())
            extra = [Agent(product.socket) for _ in range(5 - have)]
            answers = [agent.register(agent_id) for agent in extra]
            assert [answer.accepted for answer in answers] == [True] * (4 - have) + [False]
            for agent in extra:
                agent.close()
    wait_for(lambda: at_rest(product)[product.process.pid] == supervisor_rest, "the supervisor's sockets")
    wait_for(lambda: max(at_rest(product).values()) <= max(rest.values()), "the shards' sockets")


def test_agents_feel_nothing_when_the_other_shard_is_killed(start_product: StartProduct) -> None:
    product = start_product()
    with Crowd(product, 40) as crowd:
        crowd.join()
        rows = {row["agent_id"]: row["shard"] for row in product.connections()}
        os.kill(product.shard_pid(1), signal.SIGKILL)
        on_first = sum(shard == 0 for shard in rows.values())
        wait_for(lambda: len(alive(crowd.accepted)) == on_first, "only the shard's own connections to close")
        assert on_first == 20


def test_stopped_shard_is_passed_over_and_serves_again(start_product: StartProduct) -> None:
    product = start_product()
    stopped = product.shard_pid(0)
    os.kill(stopped, signal.SIGSTOP)
    try:
        with Crowd(product, 60) as crowd:
            crowd.join()
            assert (len(crowd.accepted), crowd.told, crowd.closed_bare) == (60, [], 0)
            rows = product.query_connections(1)
            assert len(rows) == 60
            wait_for(
                lambda: product.query("status")["shards"][0]["state"] == "unhealthy", "the shard to be found silent"
            )
            os.kill(stopped, signal.SIGCONT)
            wait_for(
                lambda: product.query("status")["shards"][0]["state"] == "running", "the shard to be found running"
            )
            # What it had been offered was revoked: it closed its copies and never spoke to an agent.
            wait_for(lambda: product.counts() == [0, 60], "no connection twice")
            assert len(alive(crowd.accepted)) == 60
            with Agent(product.socket) as agent:
                assert agent.register("newcomer").accepted
                assert product.counts() == [1, 60]
    finally:
        os.kill(stopped, signal.SIGCONT)
    assert product.shard_pid(0) == stopped


def test_shard_at_its_descriptor_limit_is_passed_over(start_product: StartProduct) -> None:
    product = start_product("--max-connections-per-agent", "1000")
    pid = product.shard_pid(0)
    limit = len(descriptors(pid)) + DescriptorBudget.RESERVE + 4
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, limit))
    with Crowd(product, 60) as crowd:
        crowd.join()
        assert (len(crowd.accepted), crowd.told, crowd.closed_bare) == (60, [], 0)
        counts = product.counts()
        assert sum(counts) == 60
        assert counts[0] <= 16
        assert [row["restarts"] for row in product.status()["shards"]] == [0, 0]
        assert len(alive(crowd.accepted)) == 60
    wait_for(lambda: product.counts() == [0, 0], "all slots to be free")


def test_agents_are_told_when_no_shard_has_a_descriptor_left(start_product: StartProduct) -> None:
    product = start_product()
    for shard in (0, 1):
        pid = product.shard_pid(shard)
        limit = len(descriptors(pid)) + DescriptorBudget.RESERVE - 16
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, limit))
    with Agent(product.socket) as agent:
        answer = agent.register("hopeful")
    assert not answer.accepted
    assert answer.error_code == "overloaded"
    assert answer.retry_after_ms
    assert product.counts() == [0, 0]
    assert [row["restarts"] for row in product.status()["shards"]] == [0, 0]


def test_listener_out_of_descriptors_answers_and_recovers(start_product: StartProduct) -> None:
    product = start_product()
    pid = product.process.pid
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (len(descriptors(pid)) + DescriptorBudget.RESERVE, hard))
    silent = [Agent(product.socket) for _ in range(20)]
    wait_for(lambda: product.query("status")["supervisor"]["rejected_total"]["overloaded"], "the limit to be reached")
    for _ in range(20):
        with Agent(product.socket) as agent:
            assert agent.register("unlucky").error_code == "overloaded"
            assert product.query("status")["supervisor"]["state"] == "running"
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
    for agent in silent:
        agent.close()
    with Agent(product.socket) as agent:
        assert agent.register("lucky").accepted


@pytest.mark.parametrize(
    "first", [b"", registration("slow")[:20], encode_frame(0x03, b"no registration")], ids=["silent", "half", "refused"]
)
def test_contacts_that_hold_all_descriptors_make_room_for_an_agent(start_product: StartProduct, first: bytes) -> None:
    product = start_product()
    pid = product.process.pid
    _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (len(descriptors(pid)) + DescriptorBudget.RESERVE + 40, hard))
    with ExitStack() as stack:
        for number in range(20):
            for _ in range(10):
                stack.enter_context(Agent(product.socket)).send(first)
            with Agent(product.socket) as agent:
                assert agent.register(f"agent-{number}").accepted


def has_restarted(product: Product, times: int) -> bool:
    """Whether shard 1 has been started again so many times."""
    return bool(product.query("status")["shards"][1]["restarts"] == times)


def test_shard_that_dies_again_and_again_is_started_with_growing_delays(start_product: StartProduct) -> None:
    product = start_product()
    for restarts in (1, 2, 3):
        os.kill(product.shard_pid(1), signal.SIGKILL)
        wait_for(partial(has_restarted, product, restarts), "the death to be noticed")
        with Agent(product.socket) as agent:
            assert agent.register(f"meanwhile-{restarts}").accepted
        wait_for(lambda: product.query("status")["shards"][1]["state"] == "running", "the shard to be back")


def test_next_supervisor_adopts_living_shards_and_what_they_hold(start_product: StartProduct) -> None:
    product = start_product()
    with Crowd(product, 30) as crowd:
        crowd.join()
        held = [Agent(product.socket) for _ in range(4)]
        assert all(agent.register("full").accepted for agent in held)
        shards = [product.shard_pid(0), product.shard_pid(1)]
        names = {row["connection_id"] for row in product.connections()}
        product.process.kill()
        product.process.wait()
        assert len(alive(crowd.accepted)) == 30
        down = product.status()
        assert down["supervisor"] is None
        assert sum(shard["connections"] for shard in down["shards"]) == 34
        assert product.command("status").returncode == 3
        product.start()
        product.wait_until_running()
        assert [product.shard_pid(0), product.shard_pid(1)] == shards
        assert len(alive(crowd.accepted)) == 30
        # The ledger was rebuilt: the agent is at its limit, and numbers go on.
        with Agent(product.socket) as fifth:
            assert fifth.register("full").error_code == "connection_limit"
        held.pop().close()
        with Agent(product.socket) as fourth:
            answer = fourth.register("full")
            assert answer.accepted
            assert answer.assigned_id not in names
        for agent in held:
            agent.close()


def test_next_supervisor_admits_nobody_before_it_knows_what_the_shards_hold(start_product: StartProduct) -> None:
    product = start_product("--max-connections-per-agent", "2")
    stopped = product.shard_pid(1)
    with ExitStack() as stack:
        for _ in range(2):
            assert stack.enter_context(Agent(product.socket)).register("full").accepted
        assert product.counts() == [1, 1]
        product.process.kill()
        product.process.wait()
        try:
            os.kill(stopped, signal.SIGSTOP)
            product.start()
            wait_for(lambda: product.status()["supervisor"], "the next supervisor")
            third = stack.enter_context(Agent(product.socket))
            third.send(registration("full"))

            def is_read() -> bool:
                supervisor = product.query("status")["supervisor"]
                return (supervisor["held_descriptors"], supervisor["handshakes"]) == (1, 0)

            wait_for(is_read, "its registration to be read")
        finally:
            os.kill(stopped, signal.SIGCONT)
        assert third.answer().error_code == "connection_limit"


@pytest.mark.parametrize("dialect", Dialect)
@pytest.mark.parametrize("limit", [4, 3])
def test_next_supervisor_answers_whom_a_shard_holds_prepared(
    start_product: StartProduct, tmp_path: Path, limit: int, dialect: Dialect
) -> None:
    config = tmp_path / "shardgate.kdl"
    config.write_text("reverse-listener {\nmax-connections-per-agent 4\n}\n")
    product = start_product("--config", str(config))
    shards = [product.shard_pid(0), product.shard_pid(1)]
    with ExitStack() as stack:
        for _ in range(3):
            assert stack.enter_context(Agent(product.socket)).register("half-way", dialect).accepted
        agent = stack.enter_context(Agent(product.socket, timeout=20))
        try:
            for pid in shards:
                os.kill(pid, signal.SIGSTOP)
            agent.send(registration("half-way", dialect))

            def is_offered() -> bool:
                supervisor = product.query("status")["supervisor"]
                return (supervisor["held_descriptors"], supervisor["handshakes"]) == (1, 0)

            wait_for(is_offered, "the offer to a shard that does not run")
            product.process.kill()
            product.process.wait()
        finally:
            for pid in shards:
                os.kill(pid, signal.SIGCONT)
        config.write_text(f"reverse-listener {{\nmax-connections-per-agent {limit}\n}}\n")
        product.start()
        product.wait_until_running()
        assert [product.shard_pid(0), product.shard_pid(1)] == shards
        frame = agent.frame()
        assert frame is not None, "a bare close instead of an answer"
        assert frame[0] == dialect.answer_type
        answer = parse_registration_response(*frame)
        assert (answer.accepted, answer.error_code) == ((True, None) if limit == 4 else (False, "connection_limit"))
        with Agent(product.socket) as fifth:
            assert fifth.register("half-way", dialect).error_code == "connection_limit"
        wait_for(lambda: sum(product.counts()) == limit, "the counts to agree")


def test_stop_is_orderly_and_a_second_one_is_fast(start_product: StartProduct) -> None:
    product = start_product()
    with Crowd(product, 10) as crowd, Agent(product.socket) as waiting:
        crowd.join()
        waiting.send(b"\0")
        wait_for(lambda: product.query("status")["supervisor"]["handshakes"] == 1, "the handshake to begin")
        product.process.send_signal(signal.SIGTERM)
        assert waiting.answer().error_code == "shutting_down"
        assert product.process.wait(15) == 0
        assert alive(crowd.accepted) == []
    # A shard that does not end is killed by the second signal.
    product.start()
    product.wait_until_running()
    os.kill(product.shard_pid(0), signal.SIGSTOP)
    product.process.send_signal(signal.SIGINT)
    wait_for(lambda: not product.socket.exists(), "the listener to be closed")
    product.process.send_signal(signal.SIGINT)
    assert product.process.wait(5) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_open_after_many_connections(start_product: StartProduct, number: signal.Signals) -> None:
    product = start_product()
    with Crowd(product, 100) as crowd:
        crowd.join()
    rest = at_rest(product)
    for _ in range(3):
        with Crowd(product, 100) as crowd:
            crowd.join()
    wait_for(lambda: at_rest(product) == rest, "the same sockets as before")
    if number == signal.SIGKILL:
        os.kill(product.shard_pid(0), number)
        wait_for(lambda: product.query("status")["shards"][0]["state"] == "running", "the shard to be back")
        wait_for(lambda: sockets(product.process.pid) == rest[product.process.pid], "the old channel to be closed")
