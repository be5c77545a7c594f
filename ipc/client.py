"""An accepted agent on its way from a listener into a pool of the same process.

Between processes an `Offer` and a descriptor travel over the handoff channel (`ipc.handoff`) instead.
"""

import contextlib
from collections.abc import Callable
from typing import Protocol

from dialout import ErrorCode
from ipc.messages import Offer

Probe = Callable[[str], object]
"""Takes an agent id. Makes the pool check that agent's connections and close the dead ones."""


class ClientError(Exception):
    """An accepted agent cannot be added to a pool."""


class ClientGone(ClientError):
    """The client is gone: it hung up, was refused, ran out of time, or is in a pool already."""


class WrongAgent(ClientError):
    """The client registered under another agent id than the caller gave."""


class Keeper(Protocol):
    """The listener that accepted clients, and owns their descriptors until a pool takes them. Clients have numbers."""

    def take(self, number: int, probe: Probe) -> tuple[int, Callable[[], None]]:
        """Give the descriptor away, with a function to call once it is closed. Raises `ClientGone`."""

    def refuse(self, number: int, code: ErrorCode, message: str) -> None:
        """Answer with a rejection and close. Does nothing when the client is gone."""

    def drop(self, number: int) -> None:
        """Refuse a client that has no references any more. Safe in any thread, and in the middle of any other call."""


class AcceptedClient:
    """An agent with a valid registration that has had no answer yet.

    Add it to a pool, which sends the acceptance as its first frame. Or `close` it, which refuses the agent. An object
    without references is refused as well. So is a client that is in no pool when the time of its handshake is up.
    """

    __slots__ = ("_keeper", "offer")

    def __init__(self, offer: Offer, keeper: Keeper) -> None:
        self.offer = offer
        self._keeper = keeper

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):  # Its constructor failed.
            self._keeper.drop(self.offer.number)

    def __repr__(self) -> str:
        return f"<AcceptedClient {self.connection_id}>"

    @property
    def agent_id(self) -> str:
        """The id that the agent registered under."""
        return self.offer.agent_id

    @property
    def connection_id(self) -> str:
        """The connection id that the acceptance gives to the agent."""
        return f"{self.offer.agent_id}-conn-{self.offer.number}"

    def take(self, probe: Probe) -> tuple[int, Callable[[], None]]:
        """Give the descriptor to a pool, with a function that the pool must call once it has closed the descriptor.

        The pool first writes the offer's acceptance, then serves its residue. Raises `ClientGone`.
        """
        return self._keeper.take(self.offer.number, probe)

    def close(
        self, code: ErrorCode = ErrorCode.OVERLOADED, message: str = "the proxy does not take this agent"
    ) -> None:
        """Refuse the agent with a frame, unless it is in a pool or gone. The default code asks it to try again."""
        self._keeper.refuse(self.offer.number, code, message)
