"""Which of an agent's connections gets the next request. Pure."""

import random
from collections.abc import Sequence
from typing import Protocol, TypeVar

from ipc.options import Strategy


class Candidate(Protocol):
    """What the choice looks at. *errors* are errors in a row, *served* all requests so far."""

    in_flight: int
    errors: int
    served: int


Chosen = TypeVar("Chosen", bound=Candidate)


def choose(strategy: Strategy, candidates: Sequence[Chosen], turn: int) -> Chosen:
    """One of *candidates*, which are all usable and at least one; *turn* counts the choices for this agent."""
    if len(candidates) == 1:
        return candidates[0]
    if strategy is Strategy.LEAST_CONNECTIONS:
        # Rotated by the turn, so that idle connections share the load instead of the first one having it all.
        start = turn % len(candidates)
        best = candidates[start]
        for candidate in (*candidates[start + 1 :], *candidates[:start]):
            if candidate.in_flight < best.in_flight:
                best = candidate
        return best
    if strategy is Strategy.ROUND_ROBIN:
        return candidates[turn % len(candidates)]
    if strategy is Strategy.HEALTH_BASED:
        return min(candidates, key=lambda c: (c.errors, c.in_flight))
    return random.choice(candidates)  # noqa: S311 - spreading load is no secret
