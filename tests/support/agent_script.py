"""An agent as a program of its own: it blocks ``/admin`` and allows the rest.

    agent_script.py ADDRESS AGENT_ID DIALECT [TOKEN]

ADDRESS is a path or HOST:PORT. It prints the id that it was assigned, and ends when the proxy hangs up.
"""

import socket
import sys

from dialout import (
    ALLOWED,
    Block,
    Capabilities,
    Decision,
    Dialect,
    FrameDecoder,
    Ping,
    RegistrationRequest,
    RequestHeaders,
    codec_for,
    parse_registration_response,
    pong_for,
)


def main(address: str, agent_id: str, dialect_name: str, token: str | None = None) -> int:
    """Register, and decide until the end."""
    dialect = Dialect(dialect_name)
    codec, decoder = codec_for(dialect), FrameDecoder()
    host, colon, port = address.rpartition(":")
    if colon:
        sock = socket.create_connection((host, int(port)), timeout=60)
    else:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(address)
    request = RegistrationRequest(agent_id=agent_id, capabilities=Capabilities(), auth_token=token)
    sock.sendall(request.encode(dialect))
    answered = False
    while data := sock.recv(65536):
        for frame_type, payload in decoder.feed(data):
            if not answered:
                answer = parse_registration_response(frame_type, payload)
                print(answer.assigned_id if answer.accepted else f"refused: {answer.error_code}", flush=True)
                answered = True
                continue
            request_id, correlation_id, event = codec.decode_event(frame_type, payload)
            if isinstance(event, Ping):
                sock.sendall(pong_for(dialect, frame_type, payload) or b"")
            elif isinstance(event, RequestHeaders):
                response = Decision(Block(403, "no")) if event.uri.startswith("/admin") else ALLOWED
                sock.sendall(codec.encode_answer(response, request_id=request_id, correlation_id=correlation_id))
    sock.close()
    return 0 if answered else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
