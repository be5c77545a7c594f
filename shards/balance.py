"""The choice among an agent's connections for the next request. Pure."""

import random
from collections.abc import Collection, Iterable
from typing import Protocol, TypeVar

from ipc.options import Strategy


class Candidate(Protocol):
    """The attributes of a connection that the choice uses.

    *open* is false while the connection is paused, unhealthy or draining. *limit* is the maximum of requests in flight.
    *waiting_bytes* are bytes that the agent has not read yet. *errors* counts errors in a row.
    """

    open: bool
    in_flight: int
    limit: int
    waiting_bytes: int
    errors: int

    @property
    def receivable(self) -> Collection[type]:
        """The kinds of event that the agent takes."""


Chosen = TypeVar("Chosen", bound=Candidate)


def choose(strategy: Strategy, candidates: Iterable[Chosen], kind: type, full_at: int) -> Chosen | None:
    """The candidate that gets an event of *kind*; None if no candidate can take it now.

    *candidates* must come in the order of their last use, the longest ago first. The first of equal candidates is
    therefore the one that was used longest ago. A connection with more than *full_at* waiting bytes is full.
    """
    if strategy is Strategy.LEAST_CONNECTIONS:
        return _least_loaded(candidates, kind, full_at)
    usable = [c for c in candidates if is_usable(c, kind, full_at)]
    if not usable:
        return None
    if strategy is Strategy.ROUND_ROBIN:
        return usable[0]
    if strategy is Strategy.HEALTH_BASED:
        return min(usable, key=lambda c: (c.errors, c.in_flight))
    return random.choice(usable)  # noqa: S311 - spreading load is no secret


def is_usable(candidate: Candidate, kind: type, full_at: int) -> bool:
    """Whether the candidate can take an event of *kind* now."""
    return (
        candidate.open
        and candidate.in_flight < candidate.limit
        and kind in candidate.receivable
        and candidate.waiting_bytes <= full_at
    )


def _least_loaded(candidates: Iterable[Chosen], kind: type, full_at: int) -> Chosen | None:
    # The default strategy, run for every request. Written out, it takes 0.5 µs for four connections instead of 7.
    chosen: Chosen | None = None
    fewest = 0
    for candidate in candidates:
        in_flight = candidate.in_flight
        if (
            (chosen is None or in_flight < fewest)
            and in_flight < candidate.limit
            and candidate.open
            and kind in candidate.receivable
            and candidate.waiting_bytes <= full_at
        ):
            chosen, fewest = candidate, in_flight
            if not in_flight:
                break
    return chosen
