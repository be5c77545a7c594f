"""Contacts that are no agents: health checks, what stands in front of agents, and ourselves."""

import json
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.agents import Agent
from support.product import Product, StartProduct, environment
from support.waiting import wait_for


def supervisor(product: Product) -> dict[str, Any]:
    found: dict[str, Any] = product.query("status")["supervisor"]
    return found


def contact(address: str | tuple[str, int], *, reset: bool = False, said: bytes = b"") -> None:
    """Connect, say something or nothing, and go."""
    with socket.socket(socket.AF_UNIX) if isinstance(address, str) else socket.socket() as sock:
        sock.connect(address)
        sock.sendall(said)
        if reset:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def test_silent_contacts_are_counted_apart_and_are_nobody_refused(product: Product) -> None:
    before = supervisor(product)
    address = product.tcp_address()
    for _ in range(5):
        contact(address)
        contact(address, reset=True)
        contact(str(product.socket))
    wait_for(lambda: supervisor(product)["silent_total"] - before["silent_total"] == 15, "15 silent contacts")

    after = supervisor(product)
    assert after["reset_total"] - before["reset_total"] == 5
    assert after["rejected_total"] == before["rejected_total"]
    assert not [line for line in product.log.read_text().splitlines() if "refused" in line]
    events = product.command("events", "--json").stdout.splitlines()
    assert not [line for line in events if json.loads(line).get("kind") == "refused"]
    with Agent(product.socket) as agent:
        assert agent.register("waf-after").accepted


def test_contact_that_only_closes_its_own_side_gets_an_answer(product: Product) -> None:
    before = supervisor(product)
    with Agent(product.tcp_address()) as agent:
        agent.sock.shutdown(socket.SHUT_WR)
        assert agent.answer().error_code == "bad_registration"
        assert agent.at_end()
    after = supervisor(product)
    assert after["silent_total"] == before["silent_total"] + 1
    assert after["rejected_total"] == before["rejected_total"]


def test_registration_that_is_reset_half_way_is_counted_and_not_silent(product: Product) -> None:
    before = supervisor(product)
    contact(product.tcp_address(), reset=True, said=b"\0\0\1\0\3{")
    wait_for(lambda: supervisor(product)["reset_total"] == before["reset_total"] + 1, "the reset to be counted")
    after = supervisor(product)
    assert (after["silent_total"], after["rejected_total"]) == (before["silent_total"], before["rejected_total"])


def test_doctor_and_a_second_start_are_not_refused_agents(start_product: StartProduct, tmp_path: Path) -> None:
    product = start_product("--tcp", "127.0.0.1:0", shards=1)
    before = supervisor(product)
    product.command("doctor")
    second = subprocess.run(
        [sys.executable, "-P", "-m", "shardgate", "run", "--uds", str(product.socket), "--runtime-dir", str(tmp_path)],
        capture_output=True, env=environment(), check=False, timeout=30,
    )  # fmt: skip
    assert second.returncode not in (0, 78)
    after = supervisor(product)
    assert after["silent_total"] > before["silent_total"]
    assert sum(after["rejected_total"].values()) == 0


@pytest.mark.parametrize(
    "header", [b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + bytes(12)]
)
def test_header_of_the_proxy_protocol_is_named_in_the_refusal(product: Product, header: bytes) -> None:
    with Agent(product.tcp_address()) as agent:
        agent.send(header)
        answer = agent.answer()
        assert answer.error_code == "bad_registration"
        assert "PROXY protocol" in (answer.error or "")
