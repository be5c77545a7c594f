"""What connections of agents of one kind have in common."""

from typing import get_args

from dialout import AgentEvent, Capabilities, Dialect, codec_for


class Kind:
    """A dialect and capabilities, and what follows from the two: worked out once for all such connections of a pool.

    *receivable* are the classes of events that such an agent takes: looking one up takes 30 ns, and an ``&`` of flags
    700. *keeps_requests* says that it remembers requests until they are cancelled, and can be told to forget. *most* is
    how many requests may be in flight on a connection whose agent declares no limit, and at most on any other.
    """

    __slots__ = ("can_cancel", "capabilities", "codec", "dialect", "keeps_requests", "limit", "receivable")

    def __init__(self, dialect: Dialect, capabilities: Capabilities, most: int) -> None:
        self.dialect = dialect
        self.capabilities = capabilities
        self.codec = codec_for(dialect)
        events = int(self.codec.receivable_events(capabilities))
        self.receivable = frozenset(event for event in get_args(AgentEvent) if int(event.flag) & events)
        declared = capabilities.max_concurrent
        self.limit = most if declared is None else min(most, declared)
        self.can_cancel = capabilities.cancellation
        self.keeps_requests = dialect is Dialect.SDK and capabilities.cancellation
