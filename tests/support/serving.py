"""Agents that serve: they answer events with what a function says, in a thread of their own."""

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path

from dialout import ALLOWED, Capabilities, Decision, Dialect, Event, Ping, codec_for, pong_for
from support.agents import Agent
from support.waiting import PATIENCE

Decide = Callable[[object], Decision | None]

EVERYTHING = Capabilities(
    events=int(~Event(0)),
    max_concurrent=None,
    cancellation=True,
    streaming_body=True,
    websocket=True,
    guardrails=True,
    config_push=True,
    flow_control=True,
)


def allow(_event: object) -> Decision:
    """Allow everything."""
    return ALLOWED


class ServingAgent(Agent):
    """A registered agent that serves until it is closed; *decide* returns the answer, or None to stay silent.

    *seen* keeps what came, as triples of request id, correlation id and event.
    """

    def __init__(
        self,
        address: Path | tuple[str, int],
        agent_id: str,
        dialect: Dialect = Dialect.SDK,
        decide: Decide = allow,
        capabilities: Capabilities = EVERYTHING,
    ) -> None:
        super().__init__(address, timeout=PATIENCE)
        self.dialect = dialect
        self.codec = codec_for(dialect)
        self.decide = decide
        self.seen: list[tuple[int | None, str | None, object]] = []
        answer = self.register(agent_id, dialect, capabilities=capabilities)
        assert answer.accepted, answer.error
        self.connection_id = answer.assigned_id
        self.sock.settimeout(None)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Close the connection and wait for the thread."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(2)
        self._thread.join(10)
        self.sock.close()

    def _serve(self) -> None:
        while True:
            try:
                frame = self.frame(pings=True)
            except OSError:
                return
            if frame is None:
                return
            try:
                self._answer(*frame)
            except OSError:
                return  # Closed by the test, or by the other side.

    def _answer(self, frame_type: int, payload: bytes) -> None:
        request_id, correlation_id, event = self.codec.decode_event(frame_type, payload)
        if isinstance(event, Ping):
            pong = pong_for(self.dialect, frame_type, payload)
            assert pong is not None
            self.send(pong)
            return
        self.seen.append((request_id, correlation_id, event))
        if not hasattr(event, "flag"):
            return  # A cancel, or a question about health.
        response = self.decide(event)
        if response is not None:
            self.send(self.codec.encode_answer(response, request_id=request_id, correlation_id=correlation_id))
