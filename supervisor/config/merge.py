"""JSON objects for agents: merges them, and finds rules whose merge may grow too large to push."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from supervisor.config.patterns import may_overlap

# Most bytes of JSON for one agent. The registration response around it must fit in 64 KiB, the frame size that agents
# in the field accept for it.
MAX_CONFIG_BYTES = 49_152


def encode(config: Mapping[str, Any]) -> bytes:
    """Encode the object as compact JSON."""
    return msgspec.json.encode(config)


def merge(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two objects into a new one. Objects are merged deeply; any other value of `high` replaces that of `low`."""
    merged = dict(low)
    for name, value in high.items():
        below = merged.get(name)
        merged[name] = merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def oversized(rules: Sequence[tuple[Sequence[str], Mapping[str, Any]]]) -> tuple[list[int], int] | None:
    """Find rules (patterns, object) that may together give one agent more than MAX_CONFIG_BYTES.

    Returns their indices and the sum of their sizes, or None when no agent can get too much. A merge is never larger
    than the sum of its parts, so the sums are compared. Rules that no id can match together are not added up. The
    search starts from all rules. It takes out each rule that fits together with all rules that overlap it: every set
    with that rule fits. It ends when no rule is left, or when none can be taken out.
    """
    sizes = [len(encode(config)) for _, config in rules]
    left = set(range(len(rules)))
    if sum(sizes) <= MAX_CONFIG_BYTES:
        return None
    around = {i: {j for j in left if may_overlap(rules[i][0], rules[j][0])} for i in left}
    while left:
        fitting = {i for i in left if sum(sizes[j] for j in around[i] & left) <= MAX_CONFIG_BYTES}
        if not fitting:
            group = sorted(around[min(left)] & left)
            return group, sum(sizes[i] for i in group)
        left -= fitting
    return None
