"""Refuse connections so that the agent receives the rejection.

A bare close makes Go agents crash. A close with unread bytes makes TCP send a reset, which discards the answer (RFC
1122, 4.2.2.13). So the rejection is written and our side is shut down. Then all bytes are read and discarded, until the
agent closes or the time is up.
"""

import asyncio
import contextlib
import os
import socket
from collections import Counter
from collections.abc import Callable
from itertools import islice
from time import monotonic

from dialout import ErrorCode, Rejection, awake, rejection_frame
from ipc.logs import Repeats, get_logger, printable
from ipc.peers import borrowed
from ipc.readiness import Readiness
from ipc.version import __version__
from supervisor.newcomer import PROXY_ID, Newcomer

LINGER_SECONDS = 1.0
"""Seconds that a refused agent may take to close."""

MOST_LINGERING = 1024
"""Most refused connections that are kept open at once. With more the oldest is closed."""


class Farewell:
    """The refused connections that are being closed, and the count of all refusals by error code.

    *on_refused* is called with each refused connection and its rejection, before the connection is closed.
    """

    def __init__(self, readiness: Readiness, on_refused: Callable[[Newcomer, Rejection], None] | None = None) -> None:
        self._on_refused = on_refused
        self.rejected: Counter[str] = Counter({code.value: 0 for code in ErrorCode})
        self.not_agents = 0
        self.silent = 0
        """Connections that ended without a byte: health checks, our own doctor. They are no registrations."""
        self.resets = 0
        """Connections that were reset before their registration was complete, silent ones among them."""
        self._readiness = readiness
        self._loop = asyncio.get_running_loop()
        self._clock = awake.clock()
        self._lingering: dict[int, Newcomer] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._log = get_logger()
        # Log lines are limited by error code, so that a flood of one kind does not suppress the others.
        self._repeats = Repeats()
        self._line_timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._lingering)

    def reject(self, newcomer: Newcomer, rejection: Rejection, *, linger: bool = True) -> None:
        """Answer *newcomer* with *rejection* and close it. It must not be watched any more.

        *linger* keeps it open until the agent closes, for `LINGER_SECONDS` at most. Otherwise it is closed at once.
        """
        self.rejected[rejection.error_code] += 1
        if self._on_refused is not None:
            self._on_refused(newcomer, rejection)
        self._note(newcomer, rejection)
        frame = self.frame_for(rejection, newcomer.answer_type)
        try:
            os.write(newcomer.fd, frame)
            sock = borrowed(newcomer.fd, newcomer.transport)
            try:
                sock.shutdown(socket.SHUT_WR)
            finally:
                sock.detach()
        except OSError:
            # The agent is gone, or its socket does not take even this first answer.
            newcomer.close()
            return
        if linger:
            self._linger(newcomer)
        else:
            newcomer.close()

    def frame_for(self, rejection: Rejection, answer_type: int) -> bytes:
        """The frame of the rejection, for the given type of answer."""
        return rejection_frame(
            answer_type,
            rejection.message,
            rejection.error_code,
            proxy_id=PROXY_ID,
            proxy_version=__version__,
            retry_after_ms=rejection.retry_after_ms,
        )

    def dismiss(self, newcomer: Newcomer, protocol: str) -> None:
        """Close a peer of another protocol without an answer: it could not read our frames."""
        self.not_agents += 1
        if self._may_log("another protocol"):
            self._log.info("not an agent, closed", protocol=protocol, peer=newcomer.peer())
        newcomer.close()

    def part(self, newcomer: Newcomer) -> None:
        """Answer and close a connection whose peer has shut down its side without a byte. It may still read."""
        self.silent += 1
        self._log.debug("silent contact", peer=newcomer.peer())
        answer_type = newcomer.answer_type
        rejection = Rejection(ErrorCode.BAD_REGISTRATION, "the connection ended before one whole frame", answer_type)
        with contextlib.suppress(OSError):
            os.write(newcomer.fd, self.frame_for(rejection, answer_type))
        newcomer.close()

    def abandon(self, newcomer: Newcomer) -> None:
        """Close a connection that its peer has reset. There is no reader for an answer."""
        self.resets += 1
        if not newcomer.received:
            self.silent += 1
        self._log.debug("reset before the registration was complete", received=len(newcomer.received))
        newcomer.close()

    def make_room(self, places: int) -> int:
        """Close so many of the oldest that linger; returns how many there were. They have had their answer."""
        oldest = list(islice(self._lingering.values(), places))
        for newcomer in oldest:
            self._end(newcomer)
        return len(oldest)

    def close(self) -> None:
        """Close everything that still lingers."""
        for timer in (self._timer, self._line_timer):
            if timer is not None:
                timer.cancel()
        while self._lingering:
            self._end(next(iter(self._lingering.values())))

    def _linger(self, newcomer: Newcomer) -> None:
        newcomer.on_readable = self._discard
        newcomer.deadline = self._clock.time() + LINGER_SECONDS
        self._lingering[newcomer.fd] = newcomer
        self._readiness.watch(newcomer.fd, newcomer)
        if len(self._lingering) > MOST_LINGERING:
            self._end(next(iter(self._lingering.values())))
        if self._timer is None:
            self._timer = self._loop.call_later(LINGER_SECONDS, self._expire)

    def _discard(self, newcomer: Newcomer) -> None:
        try:
            if os.read(newcomer.fd, 65536):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self._end(newcomer)

    def _end(self, newcomer: Newcomer) -> None:
        del self._lingering[newcomer.fd]
        self._readiness.forget(newcomer.fd)
        newcomer.close()

    def _expire(self) -> None:
        self._timer = None
        now = self._clock.time()
        while self._lingering:
            oldest = next(iter(self._lingering.values()))
            if oldest.deadline > now:
                self._timer = self._loop.call_later(oldest.deadline - now, self._expire)
                return
            self._end(oldest)

    def _note(self, newcomer: Newcomer, rejection: Rejection) -> None:
        if not self._may_log(rejection.error_code.value):
            return
        self._log.info(
            "registration refused",
            error_code=rejection.error_code.value,
            reason=printable(rejection.message, 200),
            agent_id=newcomer.agent_id,
            peer=newcomer.peer(),
            **self._duration(newcomer),
        )

    @staticmethod
    def _duration(newcomer: Newcomer) -> dict[str, float]:
        # A connection that was refused right at accept has no time of its accept.
        return {"duration_s": round(monotonic() - newcomer.accepted_at, 3)} if newcomer.accepted_at else {}

    def _may_log(self, what: str) -> bool:
        if self._line_timer is None:
            self._line_timer = self._loop.call_later(1.0, self._sum_up)
        return self._repeats.allows(what)

    def _sum_up(self) -> None:
        self._line_timer = None
        left_out = self._repeats.next_second()
        if left_out:
            self._log.info("more registrations refused", n=sum(left_out.values()), **left_out)
