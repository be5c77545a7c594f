"""Agent Protocol v2 reverse connections: the codec, the agent's end and the proxy's client.

The codec does no I/O. The classes that need asyncio are imported on first use.
"""

from typing import TYPE_CHECKING

from dialout.agent.backoff import Backoff
from dialout.agent.errors import (
    AuthFailed,
    BadRegistration,
    ConnectionLimit,
    NotAllowed,
    NotConnected,
    ProxyHungUp,
    ProxyOverloaded,
    ProxyShuttingDown,
    ProxyUnreachable,
    RegistrationError,
    RegistrationTimeout,
    UnreadableAnswer,
    VersionMismatch,
)
from dialout.agent.metadata import agent_metadata
from dialout.agent.states import ConnectionState, Phase
from dialout.answers import (
    RegistrationResponse,
    acceptance_frame,
    parse_registration_response,
    rejection_frame,
)
from dialout.capabilities import Capabilities, Event
from dialout.codec import (
    Codec,
    codec_for,
)
from dialout.decisions import (
    ALLOW,
    ALLOWED,
    NO_AUDIT,
    Allow,
    Audit,
    Block,
    BodyMutation,
    Challenge,
    Decision,
    HeaderOp,
    Redirect,
    Verdict,
    WebSocketClose,
    WebSocketDecision,
    to_json_value,
)
from dialout.dialects import CoreFrame, Dialect, SdkFrame, answer_type_for, pong_for
from dialout.errors import (
    DialoutError,
    ErrorCode,
    FrameError,
    LocalProtocolError,
    NotAgentProtocol,
    NotInDialect,
    OversizedFrame,
    Rejection,
    RemoteProtocolError,
    TruncatedFrame,
    UnreadableEvent,
    ZeroLengthFrame,
)
from dialout.events import (
    AgentEvent,
    Cancel,
    CancelAll,
    CancelReason,
    Configure,
    FromProxy,
    GuardrailInspect,
    Headers,
    HealthRequest,
    MetricsRequest,
    RequestBodyChunk,
    RequestComplete,
    RequestHeaders,
    RequestMetadata,
    ResponseBodyChunk,
    ResponseHeaders,
    WebSocketFrame,
    headers_from_pairs,
)
from dialout.frames import MAX_FRAME_LENGTH, FrameDecoder, encode_frame
from dialout.inbound import (
    Answer,
    ConfigUpdate,
    FlowAction,
    FlowControl,
    Health,
    HealthState,
    Histogram,
    Ignored,
    Inbound,
    Metrics,
    MutationAnswer,
    NotUnderstood,
    Ping,
    Pong,
    Sample,
    Unreadable,
)
from dialout.proxy.errors import (
    AgentNotFound,
    AgentUnavailable,
    BadAnswer,
    BadRequest,
    CannotReceive,
    CircuitOpen,
    ConnectionLost,
    FailureCode,
    FlowControlPaused,
    NoShard,
    Overloaded,
    PoolError,
    RequestCancelled,
    RequestTimeout,
    ShuttingDown,
)
from dialout.registration import (
    MAX_METADATA_DEPTH,
    PROTOCOL_VERSION,
    Registration,
    RegistrationRequest,
    answer_type_so_far,
    is_agent_id,
    parse_registration,
    scan_first_frame,
)

if TYPE_CHECKING:
    from dialout.agent.agent import Agent, Request
    from dialout.agent.connection import ProxyConnection
    from dialout.agent.manager import AgentConnectionManager
    from dialout.agent.registering import connect_to_proxy, read_registration_response, write_registration_request
    from dialout.proxy.exchange import Exchange
    from dialout.proxy.pool_client import PoolClient
    from dialout.proxy.pool_response import Response

__version__ = "0.1.0"

PROJECT = "shardgate"
"""The project that this package belongs to. A listener refuses to start with another package of the same name."""

__all__ = [
    "ALLOW",
    "ALLOWED",
    "MAX_FRAME_LENGTH",
    "MAX_METADATA_DEPTH",
    "NO_AUDIT",
    "PROTOCOL_VERSION",
    "Agent",
    "AgentConnectionManager",
    "AgentEvent",
    "AgentNotFound",
    "AgentUnavailable",
    "Allow",
    "Answer",
    "Audit",
    "AuthFailed",
    "Backoff",
    "BadAnswer",
    "BadRegistration",
    "BadRequest",
    "Block",
    "BodyMutation",
    "Cancel",
    "CancelAll",
    "CancelReason",
    "CannotReceive",
    "Capabilities",
    "Challenge",
    "CircuitOpen",
    "Codec",
    "ConfigUpdate",
    "Configure",
    "ConnectionLimit",
    "ConnectionLost",
    "ConnectionState",
    "CoreFrame",
    "Decision",
    "Dialect",
    "DialoutError",
    "ErrorCode",
    "Event",
    "Exchange",
    "FailureCode",
    "FlowAction",
    "FlowControl",
    "FlowControlPaused",
    "FrameDecoder",
    "FrameError",
    "FromProxy",
    "GuardrailInspect",
    "HeaderOp",
    "Headers",
    "Health",
    "HealthRequest",
    "HealthState",
    "Histogram",
    "Ignored",
    "Inbound",
    "LocalProtocolError",
    "Metrics",
    "MetricsRequest",
    "MutationAnswer",
    "NoShard",
    "NotAgentProtocol",
    "NotAllowed",
    "NotConnected",
    "NotInDialect",
    "NotUnderstood",
    "Overloaded",
    "OversizedFrame",
    "Phase",
    "Ping",
    "Pong",
    "PoolClient",
    "PoolError",
    "ProxyConnection",
    "ProxyHungUp",
    "ProxyOverloaded",
    "ProxyShuttingDown",
    "ProxyUnreachable",
    "Redirect",
    "Registration",
    "RegistrationError",
    "RegistrationRequest",
    "RegistrationResponse",
    "RegistrationTimeout",
    "Rejection",
    "RemoteProtocolError",
    "Request",
    "RequestBodyChunk",
    "RequestCancelled",
    "RequestComplete",
    "RequestHeaders",
    "RequestMetadata",
    "RequestTimeout",
    "Response",
    "ResponseBodyChunk",
    "ResponseHeaders",
    "Sample",
    "SdkFrame",
    "ShuttingDown",
    "TruncatedFrame",
    "Unreadable",
    "UnreadableAnswer",
    "UnreadableEvent",
    "Verdict",
    "VersionMismatch",
    "WebSocketClose",
    "WebSocketDecision",
    "WebSocketFrame",
    "ZeroLengthFrame",
    "acceptance_frame",
    "agent_metadata",
    "answer_type_for",
    "answer_type_so_far",
    "codec_for",
    "connect_to_proxy",
    "encode_frame",
    "headers_from_pairs",
    "is_agent_id",
    "parse_registration",
    "parse_registration_response",
    "pong_for",
    "read_registration_response",
    "rejection_frame",
    "scan_first_frame",
    "to_json_value",
    "write_registration_request",
]


def __getattr__(name: str) -> object:
    # Only these names need an event loop. A program that uses none of them does not import asyncio (70 ms).
    home: object
    if name in {"Exchange", "PoolClient", "Response"}:
        from dialout.proxy import pool_client as home
    elif name in {"Agent", "Request"}:
        from dialout.agent import agent as home
    elif name == "AgentConnectionManager":
        from dialout.agent import manager as home
    elif name == "ProxyConnection":
        from dialout.agent import connection as home
    elif name in {"connect_to_proxy", "read_registration_response", "write_registration_request"}:
        from dialout.agent import registering as home
    else:
        raise AttributeError(f"module 'dialout' has no attribute {name!r}")
    return getattr(home, name)
