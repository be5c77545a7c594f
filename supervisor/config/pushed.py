"""The configuration that an agent receives in its registration response."""

from collections.abc import Iterable

from supervisor.config.merge import encode, merge
from supervisor.config.model import AgentConfigRule
from supervisor.config.patterns import AgentPatterns

# Agents choose their ids, and so the set of matching rules. Without a bound they could fill the memory.
_MAX_CACHED = 256


class AgentConfig:
    """Merges the objects of all rules that match an agent's id, in their order.

    The text is cached for each set of matching rules. Thousands of agents share a few such sets.
    """

    __slots__ = ("_rules", "_texts")

    def __init__(self, rules: Iterable[AgentConfigRule]) -> None:
        self._rules = tuple((1 << i, AgentPatterns(rule.patterns), rule.config) for i, rule in enumerate(rules))
        self._texts: dict[int, bytes] = {}

    def for_agent(self, agent_id: str) -> bytes | None:
        """Return a JSON object as text, or None when no rule matches the id."""
        key = 0
        for bit, patterns, _ in self._rules:
            if patterns.matches(agent_id):
                key |= bit
        if not key:
            return None
        text = self._texts.get(key)
        if text is None:
            config: dict[str, object] = {}
            for bit, _, more in self._rules:
                if key & bit:
                    config = merge(config, more)
            if len(self._texts) >= _MAX_CACHED:
                self._texts.clear()
            text = self._texts[key] = encode(config)
        return text
