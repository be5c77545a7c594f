"""The plan after the end of a connection or a failed dial: how long to wait, and how to log it. Values in, values out.

======================================  ==========================================  ========
how it ended                            next step                                   level
======================================  ==========================================  ========
auth_failed, not_allowed,               slow: half a minute to a minute             ERROR
version_mismatch, bad_registration
connection_limit                        back-off; this is no error                  INFO
timeout, overloaded, shutting_down,     back-off                                    WARNING
unreachable, hung up, garbage
lost, after it proved itself            back-off from its start                     WARNING
lost, before it did                     back-off: "accept, then close" is no        WARNING
                                        success, or it would be dialled for ever
too many errors in a row                back-off                                    WARNING
======================================  ==========================================  ========

In each row the wait is at least the proxy's ``retry_after``, and a back-off adds its jitter to that. A connection has
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
"""Refusals that end only after a change of the agent's or the proxy's configuration."""


class Kind(Enum):
    """The point at which a connection ended."""

    UNREACHABLE = "unreachable"
    """It could not be dialled, it was closed before any answer, or the answer was invalid."""
    REFUSED = "refused"
    LOST = "lost"
    """It was registered, and then closed by either side or by the network."""
    ERRORS = "errors"
    """It was registered, and the agent gave it up after too many errors in a row."""


class Ending(Struct, frozen=True, kw_only=True):
    """The end of one connection. ``reason`` and ``detail`` are texts for a log.

    ``lasted`` are the seconds since its registration. ``served`` are the events that it answered.
    """

    kind: Kind
    reason: str
    detail: str = ""
    error_code: ErrorCode | None = None
    retry_after: float | None = None
    lasted: float = 0.0
    served: int = 0


class Course(Struct, frozen=True):
    """The state of one of an agent's connections: its failures in a row."""

    failures: int = 0


class Plan(Struct, frozen=True):
    """The next step: the new course, the seconds to wait, and the ``logging`` level of the message about it."""

    course: Course
    wait: float
    level: int


def after(course: Course, ending: Ending, backoff: Backoff, roll: float, *, proven_after: float = 10.0) -> Plan:
    """The plan after an ending. ``roll`` is a random number from 0 up to 1."""
    told = ending.retry_after or 0.0
    proven = ending.kind is Kind.LOST and (ending.served > 0 or ending.lasted >= proven_after)
    failures = 1 if proven else course.failures + 1
    if ending.error_code in _HOPELESS:
        return Plan(Course(failures), backoff.slow(roll, after=told), logging.ERROR)
    level = logging.INFO if ending.error_code is ErrorCode.CONNECTION_LIMIT else logging.WARNING
    return Plan(Course(failures), backoff.spread(failures, roll, after=told), level)


class ErrorRun:
    """Counts errors in a row on one connection. With more than ``most`` of them it is given up."""

    __slots__ = ("_most", "in_a_row")

    def __init__(self, most: int = 5) -> None:
        self._most = most
        self.in_a_row = 0

    def good(self) -> None:
        """Note that an event could be read."""
        self.in_a_row = 0

    def bad(self) -> bool:
        """Note an error; returns whether there are too many now."""
        self.in_a_row += 1
        return self.in_a_row > self._most
