"""Accepting: connections come in in batches, on raw descriptors.

A loop of our own, because uvloop's ``create_server`` closes surplus clients in silence when descriptors run out. Here
(the errno table of accept(2)):

- EAGAIN: the queue is empty.
- ECONNABORTED, EPROTO: that client has gone; the next one.
- EMFILE, ENFILE, ENOBUFS, ENOMEM: accepting pauses for 100 ms, said once a second. With descriptors exhausted, a
  reserved one is given up to accept the head of the queue, and to turn it away with an answer.

EMFILE should not happen: accepting stops short of the limit. Refused connections and unfinished handshakes make room
then; a newcomer is turned away, with an answer, where all descriptors are held by agents on their way into a pool.
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
"""Connections accepted from one listener in one turn of the loop."""

MADE_AT_ONCE = 16
"""Descriptors freed at a time when none is left: who is to go is looked for once."""

MOST_UNDER_WAY = 8192
"""Newcomers between accept and commit beyond which accepting pauses; the rest wait in the listen queue."""

DESCRIPTORS_OF_A_SHARD = 4
"""Descriptors that the supervisor has for each shard: its process, its channel, and two on the bus."""

MOST_FORMER = 8
"""Listening sockets that are kept open although somebody has removed their files."""

_OF_ITS_OWN = 48
"""Descriptors of a supervisor beside its listeners and shards: the loop, ZeroMQ, locks; 36 were measured."""

_LEAST_AGENTS = 32
"""Newcomers that there must be room for at least, between accept and handoff."""

PAUSE = 0.1
"""Seconds without accepting after descriptors or memory ran out."""

_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_GONE = frozenset({errno.ECONNABORTED, errno.EPROTO})


class TooFewDescriptors(Exception):
    """The open files limit is too low to serve any agent; the message says how high it must be."""


def spare_descriptors(*, has_admin: bool, has_status_dir: bool) -> int:
    """Descriptors of the supervisor for connections of those who only look."""
    return has_admin * admin_limits().descriptors + has_status_dir * LOOKERS.limits.descriptors


def check_descriptors(*, shards: int, listeners: int, spare: int) -> None:
    """Raise `TooFewDescriptors` where a supervisor, or a shard, would refuse every agent for ever.

    To be called when the process has opened little more than what it was started with. A shard needs less.
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
    """Accepts from all listeners. *handshakes* gets each newcomer, and makes room where descriptors run out.

    *under_way* counts the newcomers that are neither in a pool nor refused, *held* those and the refused ones that are
    being closed. *spare* descriptors are left to others in this process. *gather* is called before a batch is accepted
    and *flush* after it.
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
        """Raise `TooFewDescriptors` when that many shards would leave none to agents."""
        missing = DESCRIPTORS_OF_A_SHARD * (shards - self._shards) + _LEAST_AGENTS - self.room
        if shards > self._shards and missing > 0:
            raise TooFewDescriptors(
                f"the supervisor's open files limit is {descriptor_limit()}, and {shards} shards need at least"
                f" {descriptor_limit() + missing}; raise it and restart"
            )

    def expect_shards(self, shards: int) -> None:
        """Leave descriptors to that many shards from now on."""
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
        """Accept from *new*, and still from *old*, whose file is gone: its queue may hold somebody.

        The oldest of more than `MOST_FORMER` such is closed.
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
        """Accept no more; the listeners stay open."""
        if self._resume is not None:
            self._resume.cancel()
            self._resume = None
        self._is_on = False
        for listener in (*self._listeners, *self._former):
            self._loop.remove_reader(listener.sock.fileno())

    def close(self, *, leave: bool = False) -> None:
        """Stop, and close the listeners, or *leave* them to another process that has copies."""
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
            # Half of the reserve may go to refused agents that have yet to read their answer.
            self._turn_one_away(listener, linger=room > -DescriptorBudget.RESERVE // 2)
            return
        self._gather()
        try:
            self._accept_batch(listener, min(BATCH, room))
        finally:
            self._flush()

    def _accept_batch(self, listener: Listener, most: int) -> None:
        # socket.accept() would make an object and ask the kernel twice more, 4 µs of 6; a descriptor is all we need.
        accept = listener.sock._accept  # type: ignore[attr-defined]  # noqa: SLF001 - see above
        kind, is_tcp = listener.kind, listener.kind == "tcp"
        # The loop's own time has a resolution of 1 ms on uvloop; the clock is the same.
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
        """Answer the agent that has waited longest. Without *linger* it is closed at once: no descriptor is left."""
        try:
            fd, _address = listener.sock._accept()  # type: ignore[attr-defined]  # noqa: SLF001 - as in _accept
        except OSError:
            return
        newcomer = Newcomer(fd, listener.kind, 0.0)
        with contextlib.suppress(OSError):
            # What it sent decides the type of the answer, and unread bytes would reset the answer away.
            newcomer.received = os.read(fd, 65536)
        rejection = Rejection(
            ErrorCode.OVERLOADED, "the listener is out of descriptors", newcomer.answer_type, retry_after_ms=1000
        )
        self._farewell.reject(newcomer, rejection, linger=linger)
