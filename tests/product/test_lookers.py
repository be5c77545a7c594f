"""Users who may only look: what they ask, and how, costs no agent anything, and no process its life."""

import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.agents import Agent
from support.child import Child
from support.fences import descriptors
from support.product import Product, StartProduct, short_folder
from support.waiting import wait_for

from ipc import query
from ipc.rundir import RuntimeDir

LIMITED = ("sh", "-c", 'ulimit -n 400; exec "$@"', "sh")

CROWD = """
import socket, sys
held = []
for _ in range(500):
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(sys.argv[1])
    held.append(sock)
print("connected", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path, for sockets, that others may enter."""
    with short_folder() as folder:
        folder.chmod(0o755)
        yield folder


@pytest.fixture
def looked_at(start_product: StartProduct, folder: Path) -> Callable[..., Product]:
    """Start a product with a status directory for everybody, at *folder*/look."""

    def start(*nodes: str, **keywords: Any) -> Product:
        file = folder / "a.kdl"
        lines = "\n    ".join((f'status-dir "{folder}/look"', 'status-mode "0755"', *nodes))
        file.write_text(f"reverse-listener {{\n    {lines}\n}}\n")
        return start_product("--config", str(file), **keywords)

    return start


def test_more_connections_than_descriptors_end_no_process_and_cut_no_agent(
    looked_at: Callable[..., Product], folder: Path
) -> None:
    product = looked_at(prefix=LIMITED)
    look = RuntimeDir(folder / "look")
    pids = product.pids()
    crowds = []
    try:
        with Agent(product.socket) as agent:
            assert agent.register("before").accepted
            crowds += [Child(CROWD, p) for p in (look.supervisor_query, look.shard_query(0), look.shard_query(1))]
            for crowd in crowds:
                assert crowd.line() == "connected"

            assert product.pids() == pids
            for pid in pids:
                assert len(descriptors(pid)) < 200
            with Agent(product.socket) as other:
                assert other.register("after").accepted
                assert sum(product.counts()) == 2
            for path in (look.supervisor_query, look.shard_query(0), look.shard_query(1)):
                assert query.ask(path, "status", timeout=30)
    finally:
        for crowd in crowds:
            crowd.end()


WRONG: list[dict[str, Any]] = [
    {"limit": "many"}, {"limit": None}, {"limit": 1.5}, {"limit": [1]}, {"after": []}, {"after": {}}, {"agent": 7},
    {"agent_id": 7}, {"agent_id": None, "shard": "x"}, {"beginning": None}, {"limit": True},
]  # fmt: skip


def test_questions_with_wrong_arguments_are_refused_and_never_a_defect(
    looked_at: Callable[..., Product], folder: Path
) -> None:
    product = looked_at()
    look = RuntimeDir(folder / "look")
    refused = []
    for directory in (look, RuntimeDir(product.runtime_dir)):
        for path, methods in (
            (directory.shard_query(0), ("agents", "connections", "busiest")),
            (directory.supervisor_query, ("why", "events", "agent_ids")),
        ):
            for method in methods:
                for arguments in WRONG:
                    try:
                        query.ask(path, method, arguments, timeout=30)
                    except query.Refused as refusal:
                        refused.append((method, arguments, str(refusal)))
    assert len(refused) > 50
    assert [told for told in refused if "the log" in told[2]] == []
    # The fixture looks for tracebacks in the log.


def test_no_question_gets_more_entries_than_a_page(looked_at: Callable[..., Product], folder: Path) -> None:
    product = looked_at(shards=1)
    look = RuntimeDir(folder / "look")
    agents = []
    try:
        for number in range(290):
            agents.append(Agent(product.socket))
            assert agents[-1].register(f"waf-{number:03}", metadata={"text": "x" * 3900}).accepted
        wait_for(lambda: sum(product.counts()) == 290, "all agents to be in a pool")
        for directory in (look, RuntimeDir(product.runtime_dir)):
            shard = directory.shard_query(0)
            for limit in (-1, 0):
                assert query.ask(shard, "agents", {"limit": limit}, timeout=30) == []
                assert query.ask(shard, "connections", {"limit": limit}, timeout=30) == []
                assert query.ask(shard, "busiest", {"limit": limit}, timeout=30) == []
            assert len(query.ask(shard, "agents", {"limit": 10**12}, timeout=30)) == 290
            # All of them are more than a page has bytes.
            assert 200 < len(query.ask(shard, "connections", {"limit": 10**12}, timeout=30)) < 290
            events = query.ask(directory.supervisor_query, "events", {"limit": -5}, timeout=30)
            assert events["events"] == []
        assert len(product.connections()) == 290
    finally:
        for agent in agents:
            agent.close()


def test_no_socket_of_zeromq_can_be_reached_by_another_user(looked_at: Callable[..., Product], folder: Path) -> None:
    product = looked_at('admin { listen "./admin.sock"; socket-mode "0666"; }')
    assert stat.S_IMODE(product.runtime_dir.stat().st_mode) == 0o700
    for path in product.runtime_dir.iterdir():
        assert not path.is_socket() or stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    outside = [
        path
        for start in (folder, product.folder)
        for path in start.rglob("*")
        if path.is_socket() and product.runtime_dir not in path.parents
    ]
    assert {path.name for path in outside} == {
        "supervisor.query", "shard-0.query", "shard-1.query", "admin.sock", product.socket.name,
    }  # fmt: skip
    for path in outside:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(30)
            client.connect(os.fspath(path))
            # A greeting of ZeroMQ begins with 0xFF, and comes by itself (ZMTP 3.0). What is no word here has an answer.
            client.sendall(bytes(4) if path.name != "admin.sock" else b"\0\r\n\r\n")
            assert client.recv(1) not in (b"\xff", b""), path
