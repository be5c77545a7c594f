"""The nodes of the `reverse-listener` block: which there are, what field each sets, and how its values are read."""

import difflib
from collections.abc import Callable
from typing import Any, TypeVar

from ipc.options import FlowControlMode, Strategy
from supervisor.config import values
from supervisor.config.model import BLOCK, ReverseConnectionConfig

T = TypeVar("T")
Convert = Callable[[object], T]

# node -> field of Config, conversion of its one value; in the order of the documentation
SINGLE: dict[str, tuple[str, Convert[Any]]] = {
    "path": ("path", values.text),
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
    "runtime-dir": ("runtime_dir", values.text),
    "orphan-timeout": ("orphan_timeout", values.duration),
    "status-dir": ("status_dir", values.text),
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


def meant(name: str, known: tuple[str, ...]) -> str | None:
    """Guess what an unknown node was meant to be: one of another block, or one that is misspelt."""
    if name in KNOWN:
        return f"it belongs directly into {BLOCK}"
    for block, names in (("auth", IN_AUTH), ("pool", tuple(IN_POOL)), ("admin", tuple(IN_ADMIN))):
        if name in names:
            return f"it belongs into {BLOCK} > {block}"
    found = values.closest(name, known)
    return f'did you mean "{found}"?' if found else None


def looks_like_block(name: str) -> bool:
    """Whether the name of a block at the top was probably meant to be ours."""
    plain = name[:64].lower().replace("_", "-")
    return difflib.SequenceMatcher(None, plain, BLOCK).ratio() >= 0.8
