"""Which call an agent's answer is about. Pure: the calls that one connection carries, and what the answers name."""

from dialout import Dialect
from shards.calls import Call

MOST_ABANDONED = 256
"""Calls given up whose answer may come yet. They keep their place: an answer for request 0 is about the oldest."""


class Pending(dict[int | str, Call]):
    """Calls by their key, in the order in which their events went out; those given up stay until they are answered.

    The key is the request id; in the core dialect, whose agents know a request by nothing else, the correlation id.
    *abandoned* counts those that were given up.
    """

    __slots__ = ("_dialect", "abandoned")

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self.abandoned = 0

    def take(self, request_id: int | None, correlation_id: str | None) -> Call | None:
        """Take out the call that an answer's ids name; None when there is none."""
        key = correlation_id if self._dialect is Dialect.CORE else request_id
        if key is None and correlation_id is not None:
            # A docs agent may repeat either id.
            key = next((k for k, call in self.items() if call.correlation_id == correlation_id), None)
        call = None if key is None else self.pop(key, None)
        if call is not None and call.done:
            self.abandoned -= 1
        return call

    def take_oldest(self) -> Call | None:
        """Take out the call that an answer without a request is about.

        Sdk agents answer in order, so it is the oldest. A core agent may work on several at once: then nobody can tell.
        """
        if not self or (self._dialect is Dialect.CORE and len(self) > 1):
            return None
        call = self.pop(next(iter(self)))
        if call.done:
            self.abandoned -= 1
        return call

    def abandon(self) -> None:
        """Note that a call which is here was given up; beyond `MOST_ABANDONED` forget all such.

        A late answer to a forgotten call finds no call: ids are never written twice (`shards.calls.correlation_id`).
        """
        self.abandoned += 1
        if self.abandoned > MOST_ABANDONED:
            for key in [key for key, call in self.items() if call.done]:
                del self[key]
            self.abandoned = 0
