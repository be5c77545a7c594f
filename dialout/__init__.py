"""Both ends of Agent Protocol v2 reverse connections, without any I/O of its own choosing."""

from dialout.answers import (
    RegistrationResponse,
    acceptance_frame,
    parse_registration_response,
    rejection_frame,
)
from dialout.capabilities import Capabilities, Event
from dialout.dialects import CoreFrame, Dialect, SdkFrame, answer_type_for, pong_for
from dialout.errors import (
    DialoutError,
    ErrorCode,
    FrameError,
    LocalProtocolError,
    NotAgentProtocol,
    OversizedFrame,
    Rejection,
    RemoteProtocolError,
    TruncatedFrame,
    ZeroLengthFrame,
)
from dialout.frames import MAX_FRAME_LENGTH, FrameDecoder, encode_frame
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

__version__ = "0.1.0"

__all__ = [
    "MAX_FRAME_LENGTH",
    "MAX_METADATA_DEPTH",
    "PROTOCOL_VERSION",
    "Capabilities",
    "CoreFrame",
    "Dialect",
    "DialoutError",
    "ErrorCode",
    "Event",
    "FrameDecoder",
    "FrameError",
    "LocalProtocolError",
    "NotAgentProtocol",
    "OversizedFrame",
    "Registration",
    "RegistrationRequest",
    "RegistrationResponse",
    "Rejection",
    "RemoteProtocolError",
    "SdkFrame",
    "TruncatedFrame",
    "ZeroLengthFrame",
    "acceptance_frame",
    "answer_type_for",
    "answer_type_so_far",
    "encode_frame",
    "is_agent_id",
    "parse_registration",
    "parse_registration_response",
    "pong_for",
    "rejection_frame",
    "scan_first_frame",
]
