"""What becomes of a connection that ended, or never was: wait how long, and how loudly. Values in, values out.

======================================  ==========================================  ========
how it ended                            what follows                                level
======================================  ==========================================  ========
auth_failed, not_allowed,               slow: half a minute to a minute             ERROR
version_mismatch, bad_registration
connection_limit                        back-off; it is no failure of anybody       INFO
timeout, overloaded, shutting_down,     back-off                                    WARNING
unreachable, hung up, garbage
lost, after it proved itself            back-off from its start                     WARNING
lost, before it did                     back-off: "accept, then close" is no        WARNING
                                        success, or it would be dialled for ever
too many errors in a row                back-off                                    WARNING
======================================  ==========================================  ========

A ``retry_after`` of the proxy is waited for in each row, and the back-off's jitter comes on top. A connection has
*proved itself* when it answered an event, or lasted for ``proven_after`` seconds.
"""

import logging
from enum import Enum
from typing import Final

from msgspec import Struct

from dialout.agent.backoff import Backoff
from dialout.errors import ErrorCode

__all__ = ["Course", "Ending", "ErrorRun", "Kind", "Plan", "after"]

_HOPELESS: Final = frozenset(
    {ErrorCode.AUTH_FAILED, ErrorCode.NOT_ALLOWED, ErrorCode.VERSION_MISMATCH, ErrorCode.BAD_REGISTRATION}
)
"""Refusals that only a person can change: of the agent, or of the proxy."""


class Kind(Enum):
    """At which point a connection ended."""

    UNREACHABLE = "unreachable"
    """It was never there, or it was closed before any answer, or the answer was none."""
    REFUSED = "refused"
    LOST = "lost"
    """It was registered. Whoever closed it, or whatever the network did."""
    ERRORS = "errors"
    """It was registered, and we gave it up after too many errors in a row."""


class Ending(Struct, frozen=True, kw_only=True):
    """How one connection ended. ``reason`` and ``detail`` are for people, in words that may be logged.

    ``lasted`` are the seconds since it was registered, and ``served`` the events that it answered.
    """

    kind: Kind
    reason: str
    detail: str = ""
    error_code: ErrorCode | None = None
    retry_after: float | None = None
    lasted: float = 0.0
    served: int = 0


class Course(Struct, frozen=True):
    """Where one of an agent's connections stands: so many failures in a row."""

    failures: int = 0


class Plan(Struct, frozen=True):
    """What follows: the new course, the seconds to wait, and the level of ``logging`` at which to say so."""

    course: Course
    wait: float
    level: int


def after(course: Course, ending: Ending, backoff: Backoff, roll: float, *, proven_after: float = 10.0) -> Plan:
    """The plan after an ending; ``roll`` is a random number from 0 up to 1."""
    told = ending.retry_after or 0.0
    proven = ending.kind is Kind.LOST and (ending.served > 0 or ending.lasted >= proven_after)
    failures = 1 if proven else course.failures + 1
    if ending.error_code in _HOPELESS:
        return Plan(Course(failures), backoff.slow(roll, after=told), logging.ERROR)
    level = logging.INFO if ending.error_code is ErrorCode.CONNECTION_LIMIT else logging.WARNING
    return Plan(Course(failures), backoff.spread(failures, roll, after=told), level)


class ErrorRun:
    """Counts errors in a row on one connection: more than ``most`` of them, and it is of no use any more."""

    __slots__ = ("_most", "in_a_row")

    def __init__(self, most: int = 5) -> None:
        self._most = most
        self.in_a_row = 0

    def good(self) -> None:
        """Note that an event was answered as it should be."""
        self.in_a_row = 0

    def bad(self) -> bool:
        """Note an error; whether it was one too many."""
        self.in_a_row += 1
        return self.in_a_row > self._most
