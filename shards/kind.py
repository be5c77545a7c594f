"""The common properties of connections with the same dialect and capabilities."""

from typing import get_args

from dialout import AgentEvent, Capabilities, Dialect, codec_for


class Kind:
    """A dialect, capabilities, and the properties that follow from them, for all such connections of a pool.

    *receivable* are the classes of events that the agent takes. A lookup takes 30 ns, an ``&`` of flags 700.
    *keeps_requests* says that the agent remembers requests until they are cancelled, and can be told to forget them.
    *limit* is the maximum of requests in flight on a connection: the agent's declared limit, but at most *most*.
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
