"""The configuration with its defaults, its ranges, and the rules between values."""

import hashlib
import ipaddress
import math
import socket
from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import Any

import msgspec

from dialout.frames import MAX_FRAME_LENGTH
from ipc.capacity import MAX_SHARDS, UNIX_PATH_MAX
from ipc.options import PoolOptions
from ipc.rundir import excess_length
from supervisor.config.errors import Problem, quoted
from supervisor.config.merge import MAX_CONFIG_BYTES, oversized

BLOCK = "reverse-listener"
# Each registration is matched against each rule.
MAX_AGENT_CONFIG_RULES = 256
MAX_RULE_NAME = 200
MAX_CONNECTIONS = 10_000_000


class Placement(StrEnum):
    """How a shard is chosen for a new connection: evenly, or the shard with the agent's other connections."""

    SPREAD = "spread"
    AFFINITY = "affinity"


class TcpAddress(msgspec.Struct, frozen=True):
    """An address to listen on: a numeric host without brackets, and a port. The kernel chooses the port for 0.

    `str()` gives the spelling of the configuration, `[::1]:9090` for IPv6.
    """

    host: str
    port: int

    @property
    def family(self) -> socket.AddressFamily:
        """AF_INET6 when the host has a colon, else AF_INET."""
        return socket.AF_INET6 if ":" in self.host else socket.AF_INET

    @property
    def is_loopback(self) -> bool:
        """Whether only this host can connect to the address."""
        return ipaddress.ip_address(self.host).is_loopback

    def clashes(self, other: "TcpAddress") -> bool:
        """Whether a process cannot listen on both: they are equal, or one covers the other. ip(7), EADDRINUSE."""
        if self.port != other.port or not self.port:
            return False
        one, two = ipaddress.ip_address(self.host), ipaddress.ip_address(other.host)
        return one.version == two.version and (one == two or one.is_unspecified or two.is_unspecified)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Token(msgspec.Struct, frozen=True):
    """A token that agents may present: the patterns of ids that it is valid for, and its SHA-256 (32 bytes).

    `max_connections` bounds the connections that this token, and others with the same patterns, admitted.

    Neither repr shows the digest. A token that a person invented can be guessed from its digest.
    """

    patterns: tuple[str, ...]
    digest: bytes
    max_connections: int | None = None

    @property
    def rule(self) -> str:
        """The key under which the connections of this token are counted: its patterns.

        A new token with the same patterns continues the count. Long lists of patterns are replaced by a digest.
        """
        name = ",".join(sorted(self.patterns))
        if len(name) <= MAX_RULE_NAME:
            return name
        # The name is sent along with each connection.
        return f"{len(self.patterns)} patterns, sha256 {hashlib.sha256(name.encode()).hexdigest()[:16]}"

    def __repr__(self) -> str:
        most = "" if self.max_connections is None else f", max_connections={self.max_connections}"
        return f"Token(patterns={self.patterns!r}, digest=…{most})"

    def __rich_repr__(self) -> Iterator[tuple[str, object]]:  # type: ignore[override]  # msgspec's is loose
        yield "patterns", self.patterns


class AgentConfigRule(msgspec.Struct, frozen=True):
    """A piece of configuration for the agents whose id matches one of the patterns: a JSON object."""

    patterns: tuple[str, ...]
    config: dict[str, Any]


class ReverseConnectionConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The four options of the reverse connection document, under its names and with its defaults.

    `handshake_timeout` is in seconds. `allowed_agents` holds patterns; None allows every agent.
    """

    handshake_timeout: float = 10.0
    max_connections_per_agent: int = 4
    require_auth: bool = False
    allowed_agents: tuple[str, ...] | None = None


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """All settings of `shardgate run`. Two equal configurations behave the same.

    `max_connections` bounds all connections together. `max_connections_per_peer` bounds the connections of one address
    or uid. None means the limit that descriptors allow. `shards` None means one per CPU that the process may use
    (`ipc.capacity`). `allow_uids` None admits any uid over the Unix socket. `tokens` holds the tokens written in the
    configuration; `tokens.load_tokens` adds the tokens of `token_files`. `orphan_timeout` is in seconds: shards serve
    that long without a supervisor. `status_dir` is a directory for users that may only read, see `ipc.status_dir`.
    `admin_listen` is the address of the admin endpoint. A string is the path of a Unix socket; None means no endpoint.
    `source` is the path of the configuration file, or None.
    """

    path: str | None = None
    socket_mode: int = 0o660
    socket_owner: int | str | None = None
    socket_group: int | str | None = None
    tcp_addresses: tuple[TcpAddress, ...] = ()
    limits: ReverseConnectionConfig = ReverseConnectionConfig()
    max_connections: int | None = None
    max_connections_per_peer: int | None = None
    max_registration_bytes: int = 16_384
    max_handshakes: int = 4096
    max_handshakes_per_peer: int = 256
    allow_uids: tuple[int, ...] | None = None
    tokens: tuple[Token, ...] = ()
    token_files: tuple[str, ...] = ()
    agent_config: tuple[AgentConfigRule, ...] = ()
    shards: int | None = None
    placement: Placement = Placement.SPREAD
    pool: PoolOptions = PoolOptions()
    runtime_dir: str | None = None
    orphan_timeout: float = 600.0
    status_dir: str | None = None
    status_mode: int = 0o750
    status_group: int | str | None = None
    admin_listen: TcpAddress | str | None = None
    admin_socket_mode: int = 0o600
    admin_allow_remote: bool = False
    source: str | None = None


def format_duration(seconds: float) -> str:
    """Format a number of seconds as in the configuration: `1h`, `90s`, `250ms`."""
    if not math.isfinite(seconds):
        return str(seconds)
    if seconds < 1:
        return f"{seconds * 1000:g}ms"
    for unit, size in (("h", 3600), ("m", 60)):
        if seconds >= size and math.fmod(seconds, size) == 0:
            return f"{seconds / size:g}{unit}"
    return f"{seconds:g}s"


def validate(config: Config) -> list[Problem]:
    """Check ranges and the rules between values. An empty list means that the configuration may be used.

    Problems name nodes of the file (`reverse-listener > shards`) and have no line. The reader of the file adds the
    lines. The form of a single value is checked by its reader, not here.
    """
    problems: list[Problem] = []

    def report(node: str, message: str, hint: str | None = None) -> None:
        problems.append(Problem(config.source, None, f"{BLOCK} > {node}", message, hint))

    limits = config.limits
    problems += _out_of_range(config)
    problems += _status_problems(config)
    problems += _length_problems(config)
    problems += _address_problems(config)
    if limits.allowed_agents is not None and not limits.allowed_agents:
        report(
            "allowed-agents",
            "an empty list would refuse every agent",
            "name the agents, or leave the node out to allow all",
        )
    problems += uid_problems(config, map(str, config.tcp_addresses))
    rules = [(rule.patterns, rule.config) for rule in config.agent_config]
    if len(rules) > MAX_AGENT_CONFIG_RULES:
        report("agent-config", f"{len(rules)} blocks are too many: there may be {MAX_AGENT_CONFIG_RULES}")
    elif (large := oversized(rules)) is not None:
        group, size = large
        names = " and ".join(dict.fromkeys(quoted(" ".join(rules[i][0])) for i in group[:3]))
        more = f" and {len(group) - 3} more" if len(group) > 3 else ""
        report(
            "agent-config",
            f"an agent may be sent {MAX_CONFIG_BYTES} bytes of JSON, {names}{more} can add up to {size}",
        )
    if limits.require_auth and not (config.tokens or config.token_files):
        report(
            "require-auth",
            "no agent could register: there is no token",
            'make one with "shardgate token" and add auth { token … } or auth { token-file … }',
        )
    return problems


def _address_problems(config: Config) -> list[Problem]:
    problems: list[Problem] = []

    def report(node: str, message: str, hint: str | None = None) -> None:
        problems.append(Problem(config.source, None, f"{BLOCK} > {node}", message, hint))

    admin = config.admin_listen
    if isinstance(admin, TcpAddress) and not (admin.is_loopback or config.admin_allow_remote):
        report(
            "admin > listen",
            f"{admin} can be reached from other hosts, and the admin endpoint asks nobody who they are",
            f'write "127.0.0.1:{admin.port}", or allow it with "allow-remote true" (--admin-allow-remote)',
        )
    if admin is not None and (admin == config.path or _clashing(admin, config.tcp_addresses)):
        report("admin > listen", f"agents register at {admin}", "choose another address for one of the two")
    if len(set(config.tcp_addresses)) != len(config.tcp_addresses):
        report("tcp-address", "the same address is there twice")
    for place, one in enumerate(config.tcp_addresses):
        other = _clashing(one, config.tcp_addresses[:place])
        if other is not None and other != one:
            report("tcp-address", f"{one} and {other} have an address in common", "leave one of the two out")
    return problems


def _clashing(address: TcpAddress | str, others: Iterable[TcpAddress]) -> TcpAddress | None:
    return None if isinstance(address, str) else next((other for other in others if address.clashes(other)), None)


def uid_problems(config: Config, tcp_addresses: Iterable[str]) -> Iterator[Problem]:
    """Report `allow-uid` as the only rule of a listener on *tcp_addresses*. TCP peers have no uid."""
    address = next(iter(tcp_addresses), None)
    if address is not None and config.allow_uids is not None and not config.limits.require_auth:
        message = f"agents at {address} have no uid, since it is a TCP address: any of them could register"
        hint = "add require-auth true and a token for them, or listen on a path alone"
        yield Problem(config.source, None, f"{BLOCK} > allow-uid", message, hint)


def _length_problems(config: Config) -> list[Problem]:
    found: list[tuple[str, str]] = []
    for node, path in (("path", config.path), ("admin > listen", config.admin_listen)):
        size = len(path.encode("utf-8", "surrogateescape")) if isinstance(path, str) else 0
        if size > UNIX_PATH_MAX:
            found.append((node, f"{size} bytes are too many: the path of a Unix socket has at most {UNIX_PATH_MAX}"))
    for node, folder in (("runtime-dir", config.runtime_dir), ("status-dir", config.status_dir)):
        excess = 0 if folder is None else excess_length(folder)
        if excess > 0:
            found.append((node, f"{excess} bytes too long for Unix sockets in it ({UNIX_PATH_MAX} at most)"))
    hint = "choose a shorter folder"
    return [Problem(config.source, None, f"{BLOCK} > {node}", message, hint) for node, message in found]


def _status_problems(config: Config) -> list[Problem]:
    where = f"{BLOCK} > status-"
    if config.status_dir is None:
        if config.status_group is None:
            return []
        hint = 'add status-dir "/run/shardgate-status"'
        return [Problem(config.source, None, f"{where}group", "there is no status-dir that it could be for", hint)]
    problems = []
    if config.status_dir == config.runtime_dir:
        hint = "choose another folder beside it"
        problems.append(Problem(config.source, None, f"{where}dir", "is the runtime-dir, its user's alone", hint))
    if config.status_mode & 0o022:
        hint = 'write "0750" for a group, "0755" for everybody'
        problems.append(Problem(config.source, None, f"{where}mode", "others could put sockets into it", hint))
    return problems


def _out_of_range(config: Config) -> list[Problem]:
    problems: list[Problem] = []

    def report(node: str, message: str, hint: str | None = None) -> None:
        problems.append(Problem(config.source, None, f"{BLOCK} > {node}", message, hint))

    limits, total, pool = config.limits, config.max_handshakes, config.pool
    most, of_peer = config.max_connections, config.max_connections_per_peer
    ranges = (
        ("max-connections-per-agent", limits.max_connections_per_agent, 1, 1_000_000),
        ("max-connections", 1 if most is None else most, 1, MAX_CONNECTIONS),
        ("max-connections-per-peer", 1 if of_peer is None else of_peer, 1, MAX_CONNECTIONS),
        ("max-registration-bytes", config.max_registration_bytes, 256, 1_048_576),
        ("max-handshakes", config.max_handshakes, 1, 65_536),
        # A total that is out of range itself is one problem, not two.
        ("max-handshakes-per-peer", config.max_handshakes_per_peer, 1, total if 1 <= total <= 65_536 else 65_536),
        ("shards", 1 if config.shards is None else config.shards, 1, MAX_SHARDS),
        ("pool > max-concurrent-per-connection", pool.max_concurrent_per_connection, 1, 100_000),
        ("pool > unhealthy-after", pool.unhealthy_after, 1, 1000),
        ("pool > breaker-threshold", pool.breaker_threshold, 1, 1000),
        ("pool > max-answer-bytes", pool.max_answer_bytes, 65_536, MAX_FRAME_LENGTH),
        ("pool > max-held-bytes", pool.max_held_bytes, 16_777_216, 1_099_511_627_776),
    )
    for node, value, low, high in ranges:
        if not low <= value <= high:
            above = "the value of max-handshakes" if node == "max-handshakes-per-peer" and high == total else None
            report(node, f"expected {low} to {high}, got {value}", above and f"{high} is {above}")
    if not 1 <= config.orphan_timeout <= 86_400:
        report("orphan-timeout", f'expected "1s" to "24h", got "{format_duration(config.orphan_timeout)}"')
    for node, seconds, most in (
        ("handshake-timeout", limits.handshake_timeout, 600),
        ("pool > request-timeout", pool.request_timeout, 3600),
        ("pool > breaker-open-for", pool.breaker_open_for, 3600),
        ("pool > flow-control-wait", pool.flow_control_wait, 3600),
        ("pool > sticky-idle", pool.sticky_idle, 3600),
        ("pool > ping-interval", pool.ping_interval, 3600),
        ("pool > ping-timeout", pool.ping_timeout, 3600),
        ("pool > frame-timeout", pool.frame_timeout, 3600),
    ):
        if not 0.01 <= seconds <= most:
            got = format_duration(seconds)
            report(node, f'expected "10ms" to "{format_duration(most)}", got "{got}"')
    return problems
