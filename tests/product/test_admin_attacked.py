"""The admin endpoint under attack: a health check is answered, agents register, and nothing is an exception.

Attackers run in processes of their own: they would take the test's turns.
"""

import contextlib
import http.client
import re
import socket
from collections.abc import Callable, Iterator

import pytest
from support.admin import address, ask
from support.agents import Agent
from support.child import Child
from support.product import Product, shared_product
from support.waiting import wait_for

SLOW = """
import select, socket, sys, time
host, port = sys.argv[1].rsplit(":", 1)


def opened():
    sock = socket.create_connection((host, int(port)))
    sock.sendall(b"G")
    return sock


held = [opened() for _ in range(int(sys.argv[2]))]
print("held", flush=True)
while True:
    # What made room is opened again.
    for lost in select.select(held, [], [], 0.1)[0]:
        held[held.index(lost)] = opened()
        lost.close()
    time.sleep(0.02)
"""

BUSY = """
import asyncio, sys
host, port = sys.argv[1].rsplit(":", 1)
request = f"GET {sys.argv[3]} HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n".encode() * 4
answered = 0


async def ask():
    global answered
    while True:
        try:
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(request)
            while await reader.readuntil(b"HTTP/1.1 200 "):
                answered += 1
                if answered == 100:
                    print("busy", flush=True)
                writer.write(request)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            writer.close()


async def main():
    await asyncio.gather(*(ask() for _ in range(int(sys.argv[2]))))


asyncio.run(main())
"""

UNREAD = """
import socket, sys
host, port = sys.argv[1].rsplit(":", 1)
held = []
for number in range(int(sys.argv[2])):
    sock = socket.create_connection((host, int(port)))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    path = sys.argv[3].replace("@", str(number))
    sock.sendall(f"GET {path} HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n".encode() * 50)
    held.append(sock)
print("asked", flush=True)
sys.stdin.readline()
"""

FLOOD = """
import socket, sys
host, port = sys.argv[1].rsplit(":", 1)
number = 0
while True:
    sock = socket.socket()
    sock.settimeout(1)
    try:
        sock.bind(("127.0.0.2", 0))
        sock.connect((host, int(port)))
    except OSError:
        pass
    sock.close()
    number += 1
    if number == 3000:
        print("flooding", flush=True)
"""

DEADLINE = 2.0
"""Seconds for an answer to a health check: Kubernetes waits one by default, on machines that are less busy."""


@pytest.fixture(scope="module")
def product() -> Iterator[Product]:
    """A shardgate for all tests here: each leaves it as it found it."""
    with shared_product("--admin", "127.0.0.1:0") as one:
        yield one


@pytest.fixture
def attack(product: Product) -> Iterator[Callable[..., None]]:
    """Start an attacker, and wait until it has begun."""
    children: list[Child] = []

    def start(code: str, *arguments: object) -> None:
        children.append(Child(code, address(product), *arguments))
        children[-1].line()

    yield start
    for child in children:
        child.end()


def livez(product: Product) -> int:
    """The status of one health check on a connection of its own; 0 when there is none in time."""
    connection = http.client.HTTPConnection(address(product), timeout=DEADLINE)
    with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("GET", "/livez")
        return connection.getresponse().status
    return 0


def said(product: Product, request: bytes) -> bytes:
    """What is answered to bytes, until the end."""
    host, port = address(product).rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=30) as client:
        client.sendall(request)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while data := client.recv(65536):
                answer += data
        return answer


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        pytest.param(SLOW, (40,), id="40 slow headers"),
        pytest.param(BUSY, (30, "/metrics"), id="30 busy with metrics"),
        pytest.param(BUSY, (40, "/livez"), id="40 busy with checks"),
        pytest.param(BUSY, (30, "/status.json"), id="30 busy with status"),
        pytest.param(UNREAD, (40, "/metrics"), id="40 that read nothing"),
        pytest.param(UNREAD, (40, "/agents.json?after=@"), id="40 pages of agents"),
        pytest.param(UNREAD, (40, "/live"), id="40 that watch"),
        pytest.param(FLOOD, (), id="a flood of connections"),
    ],
)
def test_health_check_is_answered_and_agents_register(
    product: Product, attack: Callable[..., None], code: str, arguments: tuple[object, ...]
) -> None:
    attack(code, *arguments)
    statuses = [livez(product) for _ in range(20)]
    assert statuses.count(200) >= 19
    for number in range(20):
        with Agent(product.socket) as agent:
            assert agent.register(f"waf-{number}").accepted
    wait_for(lambda: sum(product.counts()) == 0, "the agents to be gone")


@pytest.mark.parametrize("target", ["//[/", "//[", "/[", "http://[/", "http://[::1/livez", "*", "x", "/%", "/?%=&&;["])
def test_wrong_target_is_answered_and_no_defect(product: Product, target: str) -> None:
    # The fixture looks for tracebacks in the log.
    answer = said(product, f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    assert re.match(rb"HTTP/1\.1 (200|4\d\d) ", answer)


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics"])
def test_check_without_a_host_is_answered_and_one_with_another_is_not(product: Product, path: str) -> None:
    assert said(product, f"GET {path} HTTP/1.0\r\n\r\n".encode()).startswith(b"HTTP/1.1 200 ")
    assert said(product, f"OPTIONS {path} HTTP/1.0\r\n\r\n".encode()).startswith(b"HTTP/1.1 200 ")
    for host in ("evil.example", ""):
        told = said(product, f"GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
        assert told.startswith(b"HTTP/1.1 421 ")
    # RFC 9112, 3.2: without a Host it is no request of HTTP/1.1.
    assert said(product, f"GET {path} HTTP/1.1\r\n\r\n".encode()).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    "accept",
    [
        "application/openmetrics-text; version=1.0.0; escaping=underscores", "application/openmetrics-text; version=x",
        "application/openmetrics-text; version=1.0.0.\u00b2", "text/plain; version=1.0.0; escaping=allow-utf-8",
        "text/plain; version=1.0.0;escaping=\u00e9", "*/*", ";,;=",
    ],
)  # fmt: skip
def test_every_accept_header_gets_metrics(product: Product, accept: str) -> None:
    assert ask(product, "/metrics", Accept=accept).status == 200
