"""The calls that one connection carries, and which of them an agent's answer is about. Pure."""

from dialout import Dialect
from shards.calls import Call

MOST_ABANDONED = 256
"""Calls that were given up and may still be answered. They keep their place: an answer with request 0 is about the
oldest."""


class Pending(dict[int | str, Call]):
    """Calls by their key, in the order in which their events were sent. Abandoned calls stay until their answer.

    The key is the request id. In the core dialect it is the correlation id, the only id that core agents know.
    *abandoned* counts the calls that were given up.
    """

    __slots__ = ("_dialect", "abandoned")

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self.abandoned = 0

    def take(self, request_id: int | None, correlation_id: str | None) -> Call | None:
        """Remove and return the call that an answer's ids name; None if there is none."""
        key = correlation_id if self._dialect is Dialect.CORE else request_id
        if key is None and correlation_id is not None:
            # A docs agent may repeat either id.
            key = next((k for k, call in self.items() if call.correlation_id == correlation_id), None)
        call = None if key is None else self.pop(key, None)
        if call is not None and call.done:
            self.abandoned -= 1
        return call

    def take_oldest(self) -> Call | None:
        """Remove and return the call that an answer without ids is about; None if that is not known.

        Sdk agents answer in order, so it is the oldest call. A core agent may work on several calls at once. Then the
        answer cannot be assigned to one.
        """
        if not self or (self._dialect is Dialect.CORE and len(self) > 1):
            return None
        call = self.pop(next(iter(self)))
        if call.done:
            self.abandoned -= 1
        return call

    def abandon(self) -> None:
        """Note that a call in this table was given up. Beyond `MOST_ABANDONED`, forget all such calls.

        A late answer to a forgotten call finds no call: ids are never written twice (`shards.calls.correlation_id`).
        """
        self.abandoned += 1
        if self.abandoned > MOST_ABANDONED:
            for key in [key for key, call in self.items() if call.done]:
                del self[key]
            self.abandoned = 0
