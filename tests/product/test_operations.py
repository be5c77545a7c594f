"""``drain``, ``restart``, ``scale`` and ``rebalance`` as an operator meets them, and what travels with a connection."""

import fcntl
import struct
import termios
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import pytest
from support.agents import Agent, registration
from support.product import Product, StartProduct
from support.sending import send
from support.serving import ServingAgent
from support.waiting import wait_for

from dialout import ALLOWED, Dialect, encode_frame


@contextmanager
def agents(product: Product, count: int, prefix: str = "agent") -> Iterator[list[Agent]]:
    """So many connected agents, of all dialects in turn."""
    with ExitStack() as stack:
        found = [stack.enter_context(Agent(product.socket)) for _ in range(count)]
        for number, agent in enumerate(found):
            assert agent.register(f"{prefix}-{number}", list(Dialect)[number % len(Dialect)]).accepted
        yield found


def is_there(agent: Agent, number: int) -> bool:
    """Whether the agent's connection works."""
    return agent.ping(list(Dialect)[number % len(Dialect)]) is not None


def test_drained_shard_has_nobody_gets_nobody_and_comes_back(start_product: StartProduct) -> None:
    product = start_product()
    with agents(product, 10) as ours:
        assert product.counts() == [5, 5]
        done = product.command("drain", "0")
        assert (done.returncode, "; 5 connections moved" in done.stdout) == (0, True)
        assert product.counts() == [0, 10]
        assert product.query("status")["shards"][0]["state"] == "draining"
        with agents(product, 2, "new") as new:
            assert product.counts() == [0, 12]
            assert product.command("drain", "0", "--undo").returncode == 0
            assert all(is_there(agent, number) for number, agent in enumerate([*ours, *new][:10]))
            plan = product.ask("rebalance", "--dry-run")
            assert {(move["from"], move["to"]) for move in plan} == {(1, 0)}
            assert len(plan) == 6
            assert product.counts() == [0, 12]
            assert product.command("rebalance").returncode == 0
            assert product.counts() == [6, 6]
        assert all(is_there(agent, number) for number, agent in enumerate(ours))


def test_what_cannot_be_done_is_refused_and_changes_nothing(start_product: StartProduct) -> None:
    product = start_product(shards=1)
    for arguments, reason in (
        (("drain", "0"), "is the only one"),
        (("drain", "7"), "there is no shard 7"),
        (("restart", "7"), "there is no shard 7"),
    ):
        done = product.command(*arguments)
        assert (done.returncode, reason in done.stderr) == (5, True), done.stderr
    assert product.command("restart").returncode == 2
    with Agent(product.socket) as agent:
        assert agent.register("served").accepted


def test_restarted_shard_is_another_process_and_scaled_ones_come_and_go(start_product: StartProduct) -> None:
    product = start_product()
    before = [product.shard_pid(0), product.shard_pid(1)]
    with agents(product, 6) as ours:
        assert product.command("restart", "1").returncode == 0
        assert product.shard_pid(0) == before[0]
        assert product.shard_pid(1) != before[1]
        assert product.command("scale", "3").returncode == 0
        assert product.counts() == [2, 2, 2]
        assert product.command("scale", "1").returncode == 0
        assert product.counts() == [6]
        assert [row["id"] for row in product.query("status")["shards"]] == [0]
        assert all(is_there(agent, number) for number, agent in enumerate(ours))


@pytest.mark.parametrize("forced", [False, True], ids=["drain", "restart"])
def test_busy_connection_stays_or_goes_with_its_request_failed(start_product: StartProduct, forced: bool) -> None:
    product = start_product()
    may_answer = threading.Event()

    def decide(_event: object) -> object:
        assert may_answer.wait(30)
        return ALLOWED

    busy = ServingAgent(product.socket, "busy", decide=decide)  # type: ignore[arg-type]
    shard = product.counts().index(1)
    results = []
    asking = threading.Thread(target=lambda: results.append(product.command("send", "busy", "--json")))
    asking.start()
    try:
        wait_for(lambda: busy.seen, "the request to be in flight")
        done = product.command("restart" if forced else "drain", str(shard), "--timeout", "300ms")
        if forced:
            assert done.returncode == 0, done.stderr
            asking.join()
            assert results[0].returncode == 1
            assert "connection_lost" in results[0].stdout + results[0].stderr
        else:
            assert (done.returncode, "1 left" in done.stdout) == (6, True), done.stdout
            [told] = [line for line in product.log.read_text().splitlines() if '"operation done"' in line]
            assert '"level":"warning"' in told, "not all was done that was asked for"
            # It is not chosen any less for that.
            assert product.counts()[shard] == 1
        may_answer.set()
        wait_for(lambda: product.in_flight() == [0, 0], "nothing in flight")
        assert send(product, "busy").returncode == 0
    finally:
        may_answer.set()
        asking.join()
        busy.close()
    assert forced or results[0].returncode == 0


def test_one_operation_at_a_time(start_product: StartProduct) -> None:
    product = start_product()
    may_answer = threading.Event()
    busy = ServingAgent(product.socket, "busy", decide=lambda _: ALLOWED if may_answer.wait(30) else None)
    shard = product.counts().index(1)
    asking = threading.Thread(target=lambda: send(product, "busy"))
    draining = threading.Thread(target=lambda: product.command("drain", str(shard)))
    asking.start()
    wait_for(lambda: busy.seen, "the request to be in flight")
    draining.start()
    try:
        wait_for(lambda: product.query("status")["supervisor"]["operation"], "the drain to begin")
        done = product.command("scale", "3")
        assert (done.returncode, f"'drain {shard}' is under way" in done.stderr) == (5, True), done.stderr
    finally:
        may_answer.set()
        asking.join()
        draining.join()
        busy.close()


def test_command_says_so_when_the_supervisor_dies_under_an_operation(start_product: StartProduct) -> None:
    product = start_product()
    may_answer = threading.Event()
    busy = ServingAgent(product.socket, "busy", decide=lambda _: ALLOWED if may_answer.wait(30) else None)
    shard = product.counts().index(1)
    results = []
    asking = threading.Thread(target=lambda: send(product, "busy"))
    draining = threading.Thread(target=lambda: results.append(product.command("drain", str(shard))))
    asking.start()
    wait_for(lambda: busy.seen, "the request to be in flight")
    draining.start()
    try:
        wait_for(lambda: product.query("status")["supervisor"]["operation"], "the drain to begin")
        product.process.kill()
        product.process.wait()
        product.start()
        draining.join()
        assert results[0].returncode == 1
        assert "the supervisor" in results[0].stderr
        assert "Traceback" not in results[0].stderr
        product.wait_until_running()
    finally:
        may_answer.set()
        asking.join()
        busy.close()


@pytest.mark.parametrize("dialect", Dialect)
def test_bytes_on_their_way_in_both_directions_travel_with_the_connection(
    start_product: StartProduct, dialect: Dialect
) -> None:
    product = start_product()
    with Agent(product.socket) as agent:
        assert agent.register("talkative", dialect).accepted
        shard = product.counts().index(1)
        # Long numbers: a pong has nothing else.
        number, first = b"sequence" if dialect is Dialect.CORE else b"timestamp", 10**18
        pings = [encode_frame(dialect.ping_type, b'{"%s":%d}' % (number, first + n)) for n in range(20_000)]
        pongs = [encode_frame(dialect.pong_type, ping[5:]) for ping in pings]
        sent = 0
        # The agent reads nothing: its own buffer fills up, and the shard keeps what does not fit.
        while unread(agent) >= sum(map(len, pongs[:sent])):
            agent.send(b"".join(pings[sent : sent + 200]))
            sent += 200
            wait_for(partial(has_served, product, shard, sent), "all whole frames to be served")
            # What a turn of the loop has to write is written at its end; this is another turn.
            assert has_served(product, shard, sent)
        agent.send(pings[sent][:10])
        done = product.command("drain", str(shard))
        assert done.returncode == 0, done.stderr
        assert product.counts()[shard] == 0
        agent.send(pings[sent][10:])
        assert [encode_frame(*(agent.frame() or (0, b""))) for _ in range(sent + 1)] == pongs[: sent + 1]


def has_served(product: Product, shard: int, frames: int) -> bool:
    """Whether so many frames of the shard's only connection have been served."""
    return bool(product.query_connections(shard)[0]["frames"] == frames)


def unread(agent: Agent) -> int:
    """Bytes that the kernel keeps for the agent."""
    (waiting,) = struct.unpack("i", fcntl.ioctl(agent.sock, termios.FIONREAD, b"\0" * 4))
    return int(waiting)


def test_registration_that_is_under_way_is_not_lost_when_its_shard_is_drained(start_product: StartProduct) -> None:
    product = start_product()
    with ExitStack() as stack:
        ours = [stack.enter_context(Agent(product.socket)) for _ in range(40)]
        for number, agent in enumerate(ours):
            agent.send(registration(f"agent-{number}"))
        done = product.command("drain", "1")
        assert done.returncode == 0, done.stderr
        assert all(agent.answer().accepted for agent in ours)
        wait_for(lambda: product.counts() == [40, 0], "all to be on the other shard")
