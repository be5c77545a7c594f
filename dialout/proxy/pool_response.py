"""The answer that a ``PoolClient`` returns for an event."""

from typing import Self

from dialout.decisions import Allow, Decision
from dialout.proxy.wire import RELAYED, Answer

__all__ = ["Response"]


class Response(Decision, frozen=True, kw_only=True):
    """An answer of an agent, with its connection and shard.

    ``shard`` is the shard that has the connection. ``relayed`` says that the client asked another shard. ``duration``
    is in seconds, measured by the shard that was asked.
    """

    agent_id: str
    connection_id: str
    shard: int
    duration: float
    relayed: bool = False

    def __post_init__(self) -> None:
        """Check nothing again: `of` takes the parts of a checked decision. Saves 0.3 µs of each answer."""

    @classmethod
    def of(cls, answer: Answer) -> Self:
        """Make the response from an answer of a shard."""
        response = answer.response
        return cls(
            response.verdict,
            response.request_headers,
            response.response_headers,
            response.request_body_mutation,
            response.response_body_mutation,
            response.websocket_decision,
            response.audit,
            response.routing_metadata,
            response.needs_more,
            agent_id=answer.agent_id,
            connection_id=answer.connection_id,
            shard=answer.shard,
            duration=answer.duration_us / 1e6,
            relayed=answer.flags & RELAYED != 0,
        )

    @property
    def is_final(self) -> bool:
        """Whether this answer decides the request: a block, a redirect or a challenge.

        An allow of one event is not final: a later chunk may still be blocked.
        """
        return self.verdict is not None and type(self.verdict) is not Allow
