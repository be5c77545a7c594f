"""Whatever there may be of something, all processes can carry it: in a takeover, in custody, and at the start."""

import contextlib
import socket
import sys
from collections.abc import Iterator

import pytest
from support.agents import Agent, registration
from support.product import StartProduct
from support.waiting import wait_for

from ipc.messages import MAX_BATCH

ADDRESSES = MAX_BATCH + 6


@contextlib.contextmanager
def free_ports(number: int) -> Iterator[list[int]]:
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in held:
            one.bind(("127.0.0.1", 0))
        yield [one.getsockname()[1] for one in held]


def accepting(ports: list[int]) -> int:
    found = 0
    for port in ports:
        with contextlib.suppress(OSError), Agent(("127.0.0.1", port)) as agent:
            found += agent.register(f"agent-{port}").accepted
    return found


def test_more_addresses_than_a_message_carries_outlive_takeover_and_crash(start_product: StartProduct) -> None:
    with free_ports(ADDRESSES) as ports:
        pass
    product = start_product("--tcp", ",".join(f"127.0.0.1:{port}" for port in ports), shards=1)
    assert accepting(ports) == ADDRESSES
    product.take_over()
    assert accepting(ports) == ADDRESSES
    product.process.kill()
    product.process.wait()
    # They wait in the queues of the sockets that the shard keeps: each connects, and none is refused.
    with contextlib.ExitStack() as stack:
        agents = [stack.enter_context(Agent(("127.0.0.1", port), 20)) for port in ports]
        for port, agent in zip(ports, agents, strict=True):
            agent.send(registration(f"agent-{port}"))
        product.start()
        product.wait_until_running()
        assert all(agent.answer().accepted for agent in agents)


def test_registration_longer_than_a_message_goes_on_at_the_new_supervisor(start_product: StartProduct) -> None:
    product = start_product("--max-registration-bytes", "1048576", "--handshake-timeout", "60s", shards=1)
    frame = registration("slow", metadata={"x": "y" * 900_000})
    with Agent(product.socket, 20) as slow, Agent(product.socket) as quick:
        quick.send(registration("quick")[:20])
        slow.send(frame[:700_000])
        wait_for(lambda: product.query("status")["supervisor"]["handshakes"] == 2, "both handshakes to begin")
        product.take_over()
        slow.send(frame[700_000:])
        assert slow.answer().accepted
        quick.send(registration("quick")[20:])
        assert quick.answer().accepted


@pytest.mark.parametrize("shards", [1, 2])
def test_too_few_descriptors_are_said_at_the_start(shards: int, start_product: StartProduct) -> None:
    limited = (sys.executable, "-P", "-c", LIMITED, "90")
    product = start_product(shards=shards, wait=False, prefix=limited)
    assert product.process.wait(20) == 1
    text = product.log.read_text()
    assert "the open files limit is 90" in text
    needed = int(text.partition(" needs at least ")[2].split()[0])
    assert not product.socket.exists()
    # What it says is enough.
    enough = start_product(shards=shards, prefix=(*limited[:-1], str(needed)))
    with Agent(enough.socket) as agent:
        assert agent.register("a").accepted
    enough.process.terminate()
    assert enough.process.wait(20) == 0


LIMITED = """
import os, resource, sys
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
os.execv(sys.argv[2], sys.argv[2:])
"""
