"""An accepted agent on its way from a listener into a pool, where one process has both.

Between processes the same two things, an `Offer` and a descriptor, travel over the handoff channel (`ipc.handoff`).
"""

import contextlib
from collections.abc import Callable
from typing import Protocol

from dialout import ErrorCode
from ipc.messages import Offer

Probe = Callable[[str], object]
"""Has a pool look at an agent's connections (agent id) and close those that are gone."""


class ClientError(Exception):
    """An accepted agent cannot be added to a pool."""


class ClientGone(ClientError):
    """The client is not there any more: it hung up, was refused, ran out of time, or is in a pool already."""


class WrongAgent(ClientError):
    """The client registered under another agent id than the one that it was to be added as."""


class Keeper(Protocol):
    """Whoever accepted the client, and owns its descriptor until a pool takes it. Clients are known by number."""

    def take(self, number: int, probe: Probe) -> tuple[int, Callable[[], None]]:
        """Give the descriptor away, and what to call once it is closed; `ClientGone` when it is not there."""

    def refuse(self, number: int, code: ErrorCode, message: str) -> None:
        """Answer with a rejection and close; does nothing when the client is not there any more."""

    def drop(self, number: int) -> None:
        """Refuse a client that nobody has a reference to. Safe in any thread, and while anything else runs."""


class AcceptedClient:
    """An agent whose registration is valid, and which has had no answer yet.

    Add it to a pool, whose first frame tells it that it is accepted; or `close` it, which refuses it. One that is
    dropped is refused as well, and so is one that is in no pool when its handshake's time is up.
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
        """What the agent will be told it is called."""
        return f"{self.offer.agent_id}-conn-{self.offer.number}"

    def take(self, probe: Probe) -> tuple[int, Callable[[], None]]:
        """Give the descriptor to a pool, together with what the pool calls once it has closed it.

        The pool writes the offer's acceptance, and serves its residue, before anything else. Raises `ClientGone`.
        """
        return self._keeper.take(self.offer.number, probe)

    def close(
        self, code: ErrorCode = ErrorCode.OVERLOADED, message: str = "the proxy does not take this agent"
    ) -> None:
        """Refuse the agent with a frame, unless it is in a pool or gone. The default code asks it to try again."""
        self._keeper.refuse(self.offer.number, code, message)
