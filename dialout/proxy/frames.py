"""The messages between proxies and shards, as values. ``dialout.proxy.wire`` turns them into frames and back."""

from enum import IntEnum
from typing import Final, TypeAlias

from msgspec import Struct

from dialout.decisions import Decision
from dialout.errors import RemoteProtocolError
from dialout.events import AgentEvent, CancelReason
from dialout.frames import MAX_FRAME_LENGTH
from dialout.proxy.errors import FailurePolicy

__all__ = [
    "FINAL",
    "MAX_ANSWER_LENGTH",
    "MAX_TIMEOUT_MS",
    "PROXY_PROTOCOL",
    "RELAYED",
    "RETRY_SAFE",
    "Answer",
    "Failure",
    "FromProxyFrame",
    "FromShardFrame",
    "Pong",
    "ProxyCancel",
    "ProxyFinish",
    "ProxyFrame",
    "ProxyHello",
    "ProxyPing",
    "ProxyRequest",
    "ProxyWireError",
    "Welcome",
]

PROXY_PROTOCOL: Final = 1
"""The version of this protocol: ``protocol`` in Hello and Welcome."""

RELAYED: Final = 1
"""Flag of a request or an answer.

A request with it came from another shard and must not be relayed again. An answer with it was served by another shard
than the one that was asked.
"""

FINAL: Final = 2
"""Flag of a request: no further event of it will follow. The shard may drop its affinity after the answer."""

RETRY_SAFE: Final = 2
"""Flag of a failure: the agent has certainly not seen the event."""

MAX_ANSWER_LENGTH: Final = MAX_FRAME_LENGTH + 64 * 1024
"""The largest length field of a frame from a shard. An agent's largest answer must fit together with the added ids."""

MAX_TIMEOUT_MS: Final = 2**32 - 1


class ProxyFrame(IntEnum):
    """Frame types. Events (0x10 to 0x17) have the same numbers as in the core dialect."""

    HELLO = 0x01
    WELCOME = 0x02
    REQUEST_HEADERS = 0x10
    REQUEST_BODY_CHUNK = 0x11
    RESPONSE_HEADERS = 0x12
    RESPONSE_BODY_CHUNK = 0x13
    REQUEST_COMPLETE = 0x14
    WEB_SOCKET_FRAME = 0x15
    GUARDRAIL_INSPECT = 0x16
    CONFIGURE = 0x17
    ANSWER = 0x20
    FAILURE = 0x21
    CANCEL = 0x30
    FINISH = 0x31
    PING = 0xF0
    PONG = 0xF1


class ProxyWireError(RemoteProtocolError):
    """A frame that cannot be used.

    With a ``request_id`` only that event fails. A shard answers it with a failure (``bad_request``). A client treats it
    as an unreadable answer to that event. Without a ``request_id`` the connection must be closed.
    """

    def __init__(self, message: str, request_id: int | None = None) -> None:
        super().__init__(message)
        self.request_id = request_id


# --- frames from a proxy --------------------------------------------------------------------------------


class ProxyRequest(Struct, frozen=True, gc=False):
    """One event for an agent. ``timeout_ms`` 0 means the shard's default. ``flags`` are RELAYED and FINAL."""

    request_id: int
    agent_id: str
    timeout_ms: int
    flags: int
    event: AgentEvent


class ProxyCancel(Struct, frozen=True, gc=False):
    """Stop working on a request. Each of its unanswered events still gets an answer or a failure."""

    request_id: int
    agent_id: str
    reason: CancelReason


class ProxyFinish(Struct, frozen=True, gc=False):
    """A request is over. No event of it will follow, and the shard may drop its affinity."""

    request_id: int
    agent_id: str


class ProxyHello(Struct, frozen=True, gc=False):
    """The first frame of a connection. Refuse a ``protocol`` other than ``PROXY_PROTOCOL``."""

    protocol: int
    client: str = ""
    version: str = ""


class ProxyPing(Struct, frozen=True, gc=False):
    """A ping. It must be answered by a pong with the same payload."""

    payload: bytes


FromProxyFrame: TypeAlias = ProxyRequest | ProxyCancel | ProxyFinish | ProxyHello | ProxyPing


# --- frames from a shard --------------------------------------------------------------------------------


class Answer(Struct, frozen=True):
    """The decision of an agent on one event. ``shard`` is the shard that has the agent's connection."""

    request_id: int
    duration_us: int
    flags: int
    response: Decision
    agent_id: str
    connection_id: str
    shard: int


class Failure(Struct, frozen=True, gc=False):
    """One event got no decision. ``error_code`` is a FailureCode, or a code that is newer than this library.

    ``policy`` is the pool's configured policy for the failure. None leaves the decision to the proxy.
    """

    request_id: int
    duration_us: int
    flags: int
    error_code: str
    error: str
    shard: int | None
    policy: FailurePolicy | None = None


class Welcome(Struct, frozen=True, gc=False):
    """The answer to Hello. A refusal has an ``error``, and the shard closes the connection after it.

    A Welcome with ``going_away`` comes later: the shard ends soon and wants no new requests.
    """

    protocol: int = 0
    shard: int = -1
    epoch: str = ""
    version: str = ""
    error: str = ""
    going_away: bool = False


class Pong(Struct, frozen=True, gc=False):
    """The answer to a ping, with its payload."""

    payload: bytes


FromShardFrame: TypeAlias = Answer | Failure | Welcome | Pong
