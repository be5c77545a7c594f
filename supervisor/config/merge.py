"""JSON objects for agents: merging them, and making sure that no merge grows too large to push."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from supervisor.config.patterns import may_overlap

# What one agent may be sent. The registration response around it has to fit in 64 KiB, the frame size that
# agents in the field accept for it.
MAX_CONFIG_BYTES = 49_152


def encode(config: Mapping[str, Any]) -> bytes:
    """Spell the object as compact JSON."""
    return msgspec.json.encode(config)


def merge(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two objects into a new one: objects deeply, and for anything else `high` replaces `low`."""
    merged = dict(low)
    for name, value in high.items():
        below = merged.get(name)
        merged[name] = merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def oversized(rules: Sequence[tuple[Sequence[str], Mapping[str, Any]]]) -> tuple[list[int], int] | None:
    """Find rules (patterns, object) that may together give one agent more than it can be sent.

    Returns their indices and the sum of their sizes, or None when no agent can get too much. A merge is
    never larger than the sum of its parts, so the sum is what counts. Rules that no id can match together
    are not added up: starting from all rules, one whose whole neighbourhood fits is taken out, since every
    set that contains it fits, until none is left or none can be taken out.
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
