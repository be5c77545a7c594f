"""Addresses of proxies, the keepalive of a connection, and what agents tell about themselves."""

import os
import socket
from datetime import datetime
from pathlib import Path

import pytest

from dialout import ConnectionState, LocalProtocolError, Phase, agent_metadata
from dialout.agent.address import TcpAddress, UnixAddress, keep_alive, parse_address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("/run/agents.sock", UnixAddress("/run/agents.sock")),
        ("./agents.sock:1", UnixAddress("./agents.sock:1")),
        (Path("agents.sock"), UnixAddress("agents.sock")),
        ("proxy.example:9090", TcpAddress("proxy.example", 9090)),
        ("[::1]:9090", TcpAddress("::1", 9090)),
        ("127.0.0.1:65535", TcpAddress("127.0.0.1", 65535)),
    ],
)
def test_address_is_a_path_or_a_host_and_a_port(text: str | Path, address: object) -> None:
    assert parse_address(text) == address
    assert str(parse_address(text)) == str(text)


@pytest.mark.parametrize(
    "text", ["", "agents.sock", "host:", ":9090", "[]:1", "::1:9090", "h:0", "h:65536", "h:\u0663", "h:x"]
)
def test_what_is_no_address_is_refused_with_a_hint(text: str) -> None:
    with pytest.raises(LocalProtocolError, match=r"write HOST:PORT|a port is"):
        parse_address(text)


def test_kernel_notices_a_dead_tcp_peer_within_a_minute() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as sock:
        keep_alive(sock)

        def option(level: int, name: int) -> int:
            return sock.getsockopt(level, name)

        assert option(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        idle = option(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
        probing = option(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) * option(socket.IPPROTO_TCP, socket.TCP_KEEPCNT)
        assert idle + probing == 60
        assert option(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 60_000


def test_unix_sockets_have_no_keepalive_to_set() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        keep_alive(ours)
        assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0


def test_metadata_names_version_host_process_start_and_features() -> None:
    found = agent_metadata("1.2.0", "waf", "rate-limiting", zone="eu")

    assert {key: found[key] for key in ("version", "hostname", "pid", "features", "zone")} == {
        "version": "1.2.0",
        "hostname": socket.gethostname(),
        "pid": os.getpid(),
        "features": ["waf", "rate-limiting"],
        "zone": "eu",
    }
    assert datetime.fromisoformat(found["started_at"]).utcoffset() is not None


@pytest.mark.parametrize(
    ("state", "line"),
    [
        (ConnectionState(number=1, phase=Phase.CONNECTING), "connecting"),
        (ConnectionState(number=1, phase=Phase.REGISTERING), "registering"),
        (ConnectionState(number=1, phase=Phase.CONNECTED), "connected"),
        (ConnectionState(number=1, phase=Phase.CONNECTED, connection_id="waf\x1b-1"), r"connected as waf\x1b-1"),
        (ConnectionState(number=1, phase=Phase.WAITING, wait=3.21, reason="why"), "waiting 3.2 s: why"),
    ],
)
def test_state_of_a_connection_is_a_line(state: ConnectionState, line: str) -> None:
    assert str(state) == line
