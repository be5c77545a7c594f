"""Accept connections in batches, on raw descriptors.

This is our own accept loop, because uvloop's ``create_server`` closes surplus clients without a log line when
descriptors run out. It handles the errors of accept(2) as follows:

- EAGAIN: the queue is empty.
- ECONNABORTED, EPROTO: that client has gone; accept the next one.
- EMFILE, ENFILE, ENOBUFS, ENOMEM: accepting pauses for 100 ms, which is logged once a second at most. When descriptors
  are exhausted, a reserved one is given up to accept the head of the queue, and to refuse it with an answer.

EMFILE should not happen: accepting stops before the limit. Refused connections and unfinished handshakes make room
then. When there are none, further connections are accepted one at a time, and refused with an answer.
"""

import asyncio
import contextlib
import errno
import os
from collections.abc import Callable
from time import monotonic

from dialout import ErrorCode, Rejection, awake
from ipc.logs import get_logger
from ipc.process import DescriptorBudget, descriptor_limit, open_descriptors
from ipc.query_server import LOOKERS
from supervisor.admin.http import admin_limits
from supervisor.farewell import Farewell
from supervisor.handshakes import Handshakes
from supervisor.listeners import Listener, tune_tcp
from supervisor.newcomer import Newcomer

BATCH = 64
"""Most connections that are accepted from one listener in one turn of the loop."""

MADE_AT_ONCE = 16
"""Descriptors freed at a time when none is left: who is to go is looked for once."""

MOST_UNDER_WAY = 8192
"""Most connections between accept and commit. With more, accepting pauses, and the rest wait in the listen queue."""

DESCRIPTORS_OF_A_SHARD = 4
"""Descriptors of the supervisor for each shard: its process, its channel, and two on the bus."""

MOST_FORMER = 8
"""Most listening sockets that are kept open after their files were removed."""

_OF_ITS_OWN = 48
"""Descriptors of a supervisor beside those for listeners and shards: the loop, ZeroMQ, locks. 36 were measured."""

_LEAST_AGENTS = 32
"""Connections between accept and handoff for which there must be room at least."""

PAUSE = 0.1
"""Seconds for which accepting pauses after descriptors or memory have run out."""

_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_GONE = frozenset({errno.ECONNABORTED, errno.EPROTO})


class TooFewDescriptors(Exception):
    """The open files limit is too low to serve any agent. The message says how high it must be."""


def spare_descriptors(*, has_admin: bool, has_status_dir: bool) -> int:
    """Descriptors of the supervisor for connections to the admin endpoint and to the status directory."""
    admin = admin_limits().descriptors if has_admin else 0
    return admin + (LOOKERS.limits.descriptors if has_status_dir else 0)


def check_descriptors(*, shards: int, listeners: int, spare: int) -> None:
    """Raise `TooFewDescriptors` when the open files limit is too low for a supervisor, which would refuse every agent.

    Call it early, while the process has opened few descriptors of its own. A shard needs fewer.
    """
    limit = descriptor_limit()
    others = open_descriptors() + listeners + spare + DESCRIPTORS_OF_A_SHARD * shards
    needed = others + _OF_ITS_OWN + _LEAST_AGENTS + DescriptorBudget.RESERVE
    if limit < needed:
        raise TooFewDescriptors(
            f"the open files limit is {limit}, and shardgate with {shards} {'shard' if shards == 1 else 'shards'} needs"
            f" at least {needed} to serve any agent; raise it (LimitNOFILE= in a unit of systemd, 'ulimit -n' in a"
            " shell, --ulimit nofile= of a container)"
        )


def _nothing() -> None:
    pass


class Acceptor:
    """Accepts from all listeners. *handshakes* gets each new connection, and makes room when descriptors run out.

    *under_way* returns the number of connections that are neither in a pool nor refused. *held* returns the number of
    agents' descriptors in this process, refused ones that are being closed among them. *spare* descriptors are left to
    other parts of this process. *gather* is called before a batch is accepted, *flush* after it.
    """

    def __init__(
        self,
        listeners: list[Listener],
        handshakes: Handshakes,
        farewell: Farewell,
        under_way: Callable[[], int],
        held: Callable[[], int],
        *,
        handshake_timeout: float,
        shards: int,
        spare: int = 0,
        gather: Callable[[], None] = _nothing,
        flush: Callable[[], None] = _nothing,
    ) -> None:
        self._gather, self._flush = gather, flush
        self.handshake_timeout = handshake_timeout
        self._listeners = listeners
        self._former: list[Listener] = []
        self._is_on = False
        self._handshakes, self._begin = handshakes, handshakes.begin
        self._farewell = farewell
        self._under_way, self._held = under_way, held
        self._shards = shards
        self._budget = DescriptorBudget(expected=8 + DESCRIPTORS_OF_A_SHARD * shards + spare)
        self._loop = asyncio.get_running_loop()
        self._clock = awake.clock()
        self._reserve = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._resume: asyncio.TimerHandle | None = None
        self._warned_at = -1.0
        self._log = get_logger()

    def check_room_for(self, shards: int) -> None:
        """Raise `TooFewDescriptors` when that many shards would leave too few descriptors for agents."""
        missing = DESCRIPTORS_OF_A_SHARD * (shards - self._shards) + _LEAST_AGENTS - self.room
        if shards > self._shards and missing > 0:
            raise TooFewDescriptors(
                f"the supervisor's open files limit is {descriptor_limit()}, and {shards} shards need at least"
                f" {descriptor_limit() + missing}; raise it and restart"
            )

    def expect_shards(self, shards: int) -> None:
        """Reserve descriptors for that many shards from now on."""
        self._budget.expect(DESCRIPTORS_OF_A_SHARD * (shards - self._shards))
        self._shards = shards

    @property
    def has_room(self) -> bool:
        """Whether there is a descriptor for one more agent, or can be."""
        return self.room + self._handshakes.yielding > 0

    @property
    def room(self) -> int:
        """How many more agents' descriptors this process may hold."""
        return self._budget.left(self._held())

    def start(self) -> None:
        """Accept from now on."""
        self._is_on = True
        for listener in (*self._listeners, *self._former):
            self._loop.add_reader(listener.sock.fileno(), self._accept, listener)

    def replace(self, old: Listener, new: Listener) -> None:
        """Accept from *new*, and still from *old*, after its file was removed: connections may wait in its queue.

        At most `MOST_FORMER` old ones are kept. With more the oldest is closed.
        """
        self._listeners[self._listeners.index(old)] = new
        self._former.append(old)
        while len(self._former) > MOST_FORMER:
            oldest = self._former.pop(0)
            self._loop.remove_reader(oldest.sock.fileno())
            oldest.leave()
        if self._is_on:
            self._loop.add_reader(new.sock.fileno(), self._accept, new)

    def stop(self) -> None:
        """Stop accepting. The listeners stay open."""
        if self._resume is not None:
            self._resume.cancel()
            self._resume = None
        self._is_on = False
        for listener in (*self._listeners, *self._former):
            self._loop.remove_reader(listener.sock.fileno())

    def close(self, *, leave: bool = False) -> None:
        """Stop, and close the listeners. *leave* keeps their files, for another process with copies."""
        self.stop()
        for listener in self._former:
            listener.leave()
        self._former.clear()
        for listener in self._listeners:
            listener.leave() if leave else listener.close()
        if self._reserve >= 0:
            os.close(self._reserve)
            self._reserve = -1

    def _accept(self, listener: Listener) -> None:
        if self._under_way() > MOST_UNDER_WAY:
            self._pause()
            return
        room = self.room
        if room <= 0:
            self._handshakes.make_room(MADE_AT_ONCE)
            room = self.room
        if room <= 0:
            self._warn("out of descriptors; raise the open files limit", listener)
            # Refused agents that have not read their answer may use half of the reserve.
            self._turn_one_away(listener, linger=room > -DescriptorBudget.RESERVE // 2)
            return
        self._gather()
        try:
            self._accept_batch(listener, min(BATCH, room))
        finally:
            self._flush()

    def _accept_batch(self, listener: Listener, most: int) -> None:
        # Only the descriptor is needed. socket.accept() would make an object and two more system calls, 4 µs of 6.
        accept = listener.sock._accept  # type: ignore[attr-defined]  # noqa: SLF001 - see above
        kind, is_tcp = listener.kind, listener.kind == "tcp"
        # loop.time() is the same clock, but uvloop's has a resolution of 1 ms.
        now = monotonic()
        deadline = self._clock.at(now) + self.handshake_timeout
        for _ in range(most):
            try:
                fd, address = accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _GONE:
                    continue
                if error.errno not in _EXHAUSTED:
                    raise
                self._exhausted(listener, error)
                return
            newcomer = Newcomer(fd, kind, deadline)
            newcomer.accepted_at = now
            if is_tcp:
                newcomer.host = address[0]
                if not tune_tcp(fd):
                    self._farewell.abandon(newcomer)
                    continue
            self._begin(newcomer)

    def _pause(self) -> None:
        self.stop()
        self._resume = self._loop.call_later(PAUSE, self._start_again)

    def _start_again(self) -> None:
        self._resume = None
        self.start()

    def _exhausted(self, listener: Listener, error: OSError) -> None:
        self._warn(error.strerror, listener)
        self._pause()
        if error.errno in (errno.EMFILE, errno.ENFILE):
            # Give up the reserved descriptor to answer the agent that has waited longest.
            os.close(self._reserve)
            self._reserve = -1
            self._turn_one_away(listener, linger=False)
            with contextlib.suppress(OSError):
                self._reserve = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def _warn(self, reason: str | None, listener: Listener) -> None:
        now = self._loop.time()
        if now - self._warned_at > 1.0:
            self._warned_at = now
            self._log.error("cannot accept", reason=reason, listener=listener.address)

    def _turn_one_away(self, listener: Listener, *, linger: bool) -> None:
        """Refuse the agent that has waited longest. Without *linger* it is closed at once: no descriptor is left."""
        try:
            fd, _address = listener.sock._accept()  # type: ignore[attr-defined]  # noqa: SLF001 - as in _accept
        except OSError:
            return
        newcomer = Newcomer(fd, listener.kind, 0.0)
        with contextlib.suppress(OSError):
            # Its bytes decide the type of the answer. Unread bytes would cause a reset that discards the answer.
            newcomer.received = os.read(fd, 65536)
        rejection = Rejection(
            ErrorCode.OVERLOADED, "the listener is out of descriptors", newcomer.answer_type, retry_after_ms=1000
        )
        self._farewell.reject(newcomer, rejection, linger=linger)
