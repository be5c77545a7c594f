"""Addresses of proxies: ``/run/shardgate/agents.sock``, ``proxy.example:9090`` or ``[::1]:9090``."""

import socket
from pathlib import Path
from typing import Final, NamedTuple

from dialout.errors import LocalProtocolError

__all__ = ["TcpAddress", "UnixAddress", "keep_alive", "parse_address"]


class UnixAddress(NamedTuple):
    """A Unix socket."""

    path: str

    def __str__(self) -> str:
        return self.path


class TcpAddress(NamedTuple):
    """A TCP address; ``host`` is a name, or an IP address without brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(address: str | Path) -> UnixAddress | TcpAddress:
    """Parse an address: a ``Path`` or a text with a slash is a Unix socket, any other text is HOST:PORT.

    Raises LocalProtocolError for a text that is neither.
    """
    text = str(address)
    if isinstance(address, Path) or "/" in text:
        return UnixAddress(text)
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not host.strip("[]") or (":" in host and not bracketed):
        raise LocalProtocolError(f"{text!r} is no address: write HOST:PORT, [IPV6]:PORT, or a path with a slash in it")
    if not (port.isascii() and port.isdecimal() and 0 < int(port) < 2**16):
        raise LocalProtocolError(f"{text!r} is no address: a port is 1 to 65535")
    return TcpAddress(host.strip("[]"), int(port))


_IDLE_S: Final = 30
_INTERVAL_S: Final = 10
_PROBES: Final = 3


def keep_alive(sock: socket.socket) -> None:
    """Make the kernel detect a dead TCP peer within a minute, even if no data waits to be written.

    The kernel's default is two hours, and NAT tables forget an idle connection within minutes. Keepalive does not run
    while data is unacknowledged. ``TCP_USER_TIMEOUT`` covers that case. It must not be shorter than the keepalive
    limit, because it overrides that limit (tcp(7)).
    """
    if sock.family not in {socket.AF_INET, socket.AF_INET6}:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _IDLE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _INTERVAL_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, (_IDLE_S + _INTERVAL_S * _PROBES) * 1000)
