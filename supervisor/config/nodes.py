"""The nodes of the `reverse-listener` block: their names, the field that each sets, and the reader of its values."""

import difflib
import re
from collections.abc import Callable
from typing import Any, TypeVar

from ipc.options import FlowControlMode, Strategy
from supervisor.config import values
from supervisor.config.model import BLOCK, ReverseConnectionConfig

T = TypeVar("T")
Convert = Callable[[object], T]

# node -> field of Config, conversion of its one value; in the order of the documentation
SINGLE: dict[str, tuple[str, Convert[Any]]] = {
    "path": ("path", values.socket_path),
    "socket-mode": ("socket_mode", values.octal_mode),
    "socket-owner": ("socket_owner", values.owner),
    "socket-group": ("socket_group", values.owner),
    "max-connections-per-agent": ("max_connections_per_agent", values.integer),
    "max-connections": ("max_connections", values.integer),
    "max-connections-per-peer": ("max_connections_per_peer", values.integer),
    "handshake-timeout": ("handshake_timeout", values.duration),
    "max-registration-bytes": ("max_registration_bytes", values.integer),
    "max-handshakes": ("max_handshakes", values.integer),
    "max-handshakes-per-peer": ("max_handshakes_per_peer", values.integer),
    "require-auth": ("require_auth", values.boolean),
    "shards": ("shards", values.integer),
    "placement": ("placement", values.placement),
    "runtime-dir": ("runtime_dir", values.path),
    "orphan-timeout": ("orphan_timeout", values.duration),
    "status-dir": ("status_dir", values.path),
    "status-mode": ("status_mode", values.octal_mode),
    "status-group": ("status_group", values.owner),
}
# node -> field of Config, conversion of each of its values
SEVERAL: dict[str, tuple[str, Convert[Any]]] = {
    "tcp-address": ("tcp_addresses", values.tcp_address),
    "allowed-agents": ("allowed_agents", values.pattern),
    "allow-uid": ("allow_uids", values.unix_id),
}
# the same, inside pool
IN_POOL: dict[str, tuple[str, Convert[Any]]] = {
    "strategy": ("strategy", values.one_of(Strategy)),
    "request-timeout": ("request_timeout", values.duration),
    "max-concurrent-per-connection": ("max_concurrent_per_connection", values.integer),
    "unhealthy-after": ("unhealthy_after", values.integer),
    "flow-control": ("flow_control", values.one_of(FlowControlMode)),
    "flow-control-wait": ("flow_control_wait", values.duration),
    "breaker-threshold": ("breaker_threshold", values.integer),
    "breaker-open-for": ("breaker_open_for", values.duration),
    "sticky-idle": ("sticky_idle", values.duration),
    "ping-interval": ("ping_interval", values.duration),
    "ping-timeout": ("ping_timeout", values.duration),
    "max-answer-bytes": ("max_answer_bytes", values.integer),
    "max-held-bytes": ("max_held_bytes", values.integer),
    "frame-timeout": ("frame_timeout", values.duration),
    "free-agent-memory": ("free_agent_memory", values.boolean),
}
# the same, inside admin
IN_ADMIN: dict[str, tuple[str, Convert[Any]]] = {
    "listen": ("admin_listen", values.admin_address),
    "socket-mode": ("admin_socket_mode", values.octal_mode),
    "allow-remote": ("admin_allow_remote", values.boolean),
}
KNOWN = (*SINGLE, *SEVERAL, "auth", "agent-config", "pool", "admin")
IN_AUTH = ("token", "token-file")
LIMITS = frozenset(ReverseConnectionConfig.__struct_fields__)
PATHS = ("path", "runtime_dir", "status_dir", "admin_listen")


PLAIN = frozenset((*SINGLE, *SEVERAL))
ALL_NAMES = frozenset((*KNOWN, *IN_AUTH, *IN_POOL, *IN_ADMIN))
_ADDRESSES = "agents' addresses are path and tcp-address"
_OTHER_WORDS = {
    _ADDRESSES: (
        "address", "addr", "bind", "listen-address", "listener", "listeners", "endpoint", "host", "port", "tcp",
        "tcp-listen", "unix-socket", "socket", "socket-path", "uds", "unix", "grpc", "http",
    ),
    f"it is pool > strategy in {BLOCK}": ("load-balancing", "load-balance-strategy", "lb-strategy", "balance"),
    f"it is pool > breaker-threshold and breaker-open-for in {BLOCK}": ("circuit-breaker", "failure-threshold"),
    f"it is pool > max-concurrent-per-connection in {BLOCK}": ("max-concurrent-calls", "max-concurrent-requests"),
    f"it is pool > ping-interval in {BLOCK}": ("health-check-interval", "heartbeat-interval", "heartbeat", "keepalive"),
    "it is pool > request-timeout for requests, and handshake-timeout for registrations": (
        "timeout", "timeout-ms", "timeout-seconds", "connect-timeout", "registration-timeout",
    ),
    "what becomes of a request without an answer is the proxy's matter": ("failure-mode", "fail-open", "fail-closed"),
    "an agent says so itself when it registers": (
        "events", "event", "agent", "agents", "capabilities", "type", "protocol-version", "request-body-mode",
    ),
    "TLS is not spoken: put a relay that terminates it in front of tcp-address": (
        "tls", "ssl", "mtls", "cert", "cert-file", "certificate", "key-file", "ca-file", "client-ca",
    ),
    f"it is auth {{ token … }} in {BLOCK}": (
        "auth-token", "auth-tokens", "tokens", "secret", "password", "api-key", "auth-token-env",
    ),
    "it is shards": ("worker-threads", "workers", "threads", "processes", "processes-per-host"),
    "it is socket-mode": ("mode", "permissions", "socket-permissions", "perms"),
    "it is socket-owner": ("user", "owner"),
    "it is socket-group": ("group",),
    "it is allowed-agents": ("allowlist", "allow-list", "whitelist", "allow", "allowed"),
    "it is agent-config": ("config", "push-config", "agent-configuration"),
    "it is an option of run: --log-level, --log-format": ("log-level", "log-format", "logging", "log", "log-file"),
    f"it is admin {{ listen … }} in {BLOCK}": ("metrics", "prometheus", "health", "observability", "metrics-address"),
}  # fmt: skip
_MEANT = {word: hint for hint, words in _OTHER_WORDS.items() for word in words}
_COMMENTS = ("--", "#", "%", "<!--", "'", "!", "*")


def meant(name: str, known: tuple[str, ...]) -> str | None:
    """Return a hint for an unknown node: it belongs to another block, comes from a proxy, or is misspelt."""
    if name in KNOWN and known != KNOWN:
        return f"it belongs directly into {BLOCK}"
    for block, names in (("auth", IN_AUTH), ("pool", tuple(IN_POOL)), ("admin", tuple(IN_ADMIN))):
        if name in names:
            more = ". Agents' addresses are path and tcp-address" if name == "listen" else ""
            return f"it belongs into {BLOCK} > {block}{more}"
    plain = name[:64].lower().replace("_", "-").strip(":=,")
    plain = re.sub(r"[^\x20-\x7e]", "", plain)
    if begins_comment(name) or not plain:
        return "a comment begins with //"
    if looks_like_block(plain):
        return f"it is inside {BLOCK} already"
    if plain in known:
        return f'did you mean "{plain}"?{_odd(name)}'
    if plain in _MEANT:
        return 'it is listen, as in listen "127.0.0.1:9180"' if _is_place(plain, known) else _MEANT[plain]
    found = values.closest(re.sub(r"(?<=[a-z])(?=[A-Z])", "-", name), known) or values.closest(plain, known)
    return f'did you mean "{found}"?{_odd(name)}' if found else None


def begins_comment(name: str) -> bool:
    """Whether the name of a node begins as a comment of another language does."""
    return name.startswith(_COMMENTS)


def _is_place(word: str, known: tuple[str, ...]) -> bool:
    return known == tuple(IN_ADMIN) and word in _OTHER_WORDS[_ADDRESSES]


def _odd(name: str) -> str:
    if name.endswith((":", "=")):
        return " The value stands behind a space, without : or ="
    odd = next((character for character in name if not 0x20 < ord(character) < 0x7F), None)
    return f" U+{ord(odd):04X} is in it" if odd is not None else ""


def looks_like_block(name: str) -> bool:
    """Whether the name of a top-level block is probably a misspelt `reverse-listener`."""
    plain = name[:64].lower().replace("_", "-").strip(":=")
    return difflib.SequenceMatcher(None, plain, BLOCK).ratio() >= 0.8
