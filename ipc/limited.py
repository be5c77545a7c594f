"""A listener for peers of another trust level. Every resource that a peer can take from the process has a limit.

Connections: there is a limit in all and for one peer (`Limits`). At the limit a new connection takes the place of the
one with the lowest rank (`LimitedConnection.rank`). The candidates are the peer's own connections at its own limit.
Otherwise they are the connections of the peers with most connections. A new connection is always accepted. So no number
of open connections can keep other peers out.

Processor: beginning, reading and answering happen in `Turns`, with one connection in a turn of the loop. Accepting does
not: one peer would fill the listen queue, and all others would wait behind it. `Limits` says how many accepted
connections may wait for their turn. At that limit the oldest one of the peer with most of them is closed.

Memory: a read has a largest size, and the unsent bytes are bounded in all. Above the limit the connection with most of
them is closed first.

Time: each connection has a deadline, which its subclass sets.

Descriptors: when they run out, accepting pauses (accept(2): EMFILE, ENFILE, ENOBUFS, ENOMEM), and new connections wait
in the listen queue. ZeroMQ must not accept these peers, because it aborts the process at EMFILE (libzmq 4.3.5,
ipc_listener.cpp).
"""

import asyncio
import contextlib
import errno
import socket
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from functools import partial
from typing import NamedTuple

from ipc import peers
from ipc.turns import Turns

PAUSE = 0.1
"""Seconds without accepting, after descriptors or memory ran out."""

BATCH = 2
"""Connections accepted in one turn of the loop: twice as many as can begin. That is 40,000 a second."""

_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Limits(NamedTuple):
    """The most connections in all, the most of one peer, the most unsent bytes in all, and the most *pending* ones.

    Pending connections are accepted and wait for their turn to begin. They count beside the others.
    """

    connections: int
    each: int
    unsent: int
    pending: int

    @property
    def descriptors(self) -> int:
        """Descriptors that all of them take."""
        return self.connections + self.pending


class LimitedListener:
    """Accepts connections on *sock*, which the caller still owns.

    *make* makes a connection from a socket and the key of its peer. *limits* is called at each use. Needs a running
    loop.
    """

    def __init__(
        self,
        sock: socket.socket,
        make: Callable[["LimitedListener", socket.socket, Hashable], "LimitedConnection"],
        limits: Callable[[], Limits],
        turns: Turns,
    ) -> None:
        self.turns, self.loop = turns, asyncio.get_running_loop()
        self.connections: dict[LimitedConnection, None] = {}
        self._sock, self._make, self._limits = sock, make, limits
        self._resume: asyncio.TimerHandle | None = None
        self._pending: dict[Hashable, deque[socket.socket]] = {}
        sock.setblocking(False)
        self._watch()

    def close(self) -> None:
        """Stop accepting, and close every connection."""
        if self._resume is not None:
            self._resume.cancel()
        self.loop.remove_reader(self._sock.fileno())
        for waiting in self._pending.values():
            for sock in waiting:
                sock.close()
        self._pending.clear()
        for connection in list(self.connections):
            connection.close()

    def limit_unsent(self) -> None:
        """Close connections until the unsent bytes are below the limit. The connection with most of them goes first."""
        waiting = {connection: connection.unsent for connection in self.connections if connection.unsent}
        excess = sum(waiting.values()) - self._limits().unsent
        while excess > 0:
            largest = max(waiting, key=waiting.__getitem__)
            excess -= waiting.pop(largest)
            largest.close()

    def _watch(self) -> None:
        self._resume = None
        self.loop.add_reader(self._sock.fileno(), self._acceptable)

    def _acceptable(self) -> None:
        for _ in range(BATCH):
            try:
                sock, _ = self._sock.accept()
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self.loop.remove_reader(self._sock.fileno())
                    self._resume = self.loop.call_later(PAUSE, self._watch)
                # Else the queue is empty, or that peer has gone.
                return
            try:
                peer = peer_of(sock)
            except OSError:
                sock.close()
                continue
            self._put(sock, peer)

    def _put(self, sock: socket.socket, peer: Hashable) -> None:
        """Let *sock* wait for its turn to begin, in place of an older one where too many wait."""
        pending = self._pending
        if sum(map(len, pending.values())) >= self._limits().pending:
            largest = max(pending, key=lambda one: (len(pending[one]), one == peer))
            if len(pending[largest]) == 1:
                sock.close()
                return
            pending[largest].popleft().close()
        if peer in pending:
            pending[peer].append(sock)
        else:
            pending[peer] = deque([sock])
            self._take_turn(peer)

    def _take_turn(self, peer: Hashable) -> None:
        # Beside the turns of what has begun: with all of that at work a newcomer would wait for each of them.
        self.turns.take((self, peer), partial(self._begin, peer))

    def _begin(self, peer: Hashable) -> None:
        waiting = self._pending.get(peer)
        if waiting is None:
            return  # The listener was closed.
        sock = waiting.popleft()
        if waiting:
            self._take_turn(peer)
        else:
            del self._pending[peer]
        sock.setblocking(False)
        if (lowest := self._in_the_way(peer)) is not None:
            lowest.close()
        connection = self._make(self, sock, peer)
        self.connections[connection] = None
        connection.begin()

    def _in_the_way(self, peer: Hashable) -> "LimitedConnection | None":
        limits = self._limits()
        return makes_room(self.connections, peer, most=limits.connections, most_each=limits.each)


class LimitedConnection:
    """One connection of a `LimitedListener`. Subclasses define its protocol and its deadlines."""

    READ_BYTES = 16384

    def __init__(self, listener: LimitedListener, sock: socket.socket, peer: Hashable) -> None:
        self.peer = peer
        self.is_closed = False
        self._listener, self._sock, self._fd = listener, sock, sock.fileno()
        self._turns, self._loop = listener.turns, listener.loop
        self._unsent = b""
        self._timer: asyncio.TimerHandle | None = None
        self._is_watched = False

    # Subclasses override these.

    @property
    def rank(self) -> tuple[float, ...]:
        """The connection with the lowest rank makes room for a new one."""
        raise NotImplementedError

    def received(self, data: bytes) -> None:
        """Take the bytes that were read. No more bytes are read until `read` is called again."""
        raise NotImplementedError

    def sent(self) -> None:
        """Called when all written bytes have been sent."""

    def lost(self) -> None:
        """Called when the connection was closed."""

    # Subclasses call these.

    @property
    def unsent(self) -> int:
        """Bytes that wait for the peer to read."""
        return len(self._unsent)

    def begin(self) -> None:
        """Read the bytes that are there already, in the turn that accepted the connection."""
        self._or_close(self._read_now)

    def read(self) -> None:
        """Read once, as soon as bytes arrive, in a turn of this peer. `received` gets the bytes."""
        if not self.is_closed and not self._is_watched:
            self._is_watched = True
            self._loop.add_reader(self._fd, self._readable)

    def turn(self, work: Callable[[], None]) -> None:
        """Run *work* in a turn of this peer, unless the connection is closed by then.

        An exception closes the connection. Otherwise it would keep its place, but get no service.
        """

        def guarded() -> None:
            if not self.is_closed:
                self._or_close(work)

        self._turns.take(self.peer, guarded)

    def write(self, data: bytes) -> None:
        """Send *data*. `sent` is called when all bytes have been sent, which may be at once."""
        if self.is_closed:
            return
        if self._unsent:
            self._unsent += data
        elif not self._send(data):
            return
        if self._unsent:
            self._listener.limit_unsent()
        else:
            self.sent()

    def expire_in(self, seconds: float | None) -> None:
        """Close the connection after *seconds*, in place of an earlier deadline. None means never."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None or self.is_closed else self._loop.call_later(seconds, self.close)

    def end(self) -> None:
        """Shut down the sending side of the connection."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close at once."""
        if self.is_closed:
            return
        self.is_closed = True
        self.expire_in(None)
        self._unwatch()
        if self._unsent:
            self._loop.remove_writer(self._fd)
            self._unsent = b""
        self._sock.close()
        self._listener.connections.pop(self, None)
        self.lost()

    def _or_close(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException:
            self.close()
            raise

    def _readable(self) -> None:
        self._unwatch()
        self.turn(self._read_now)

    def _unwatch(self) -> None:
        if self._is_watched:
            self._is_watched = False
            self._loop.remove_reader(self._fd)

    def _read_now(self) -> None:
        try:
            data = self._sock.recv(self.READ_BYTES)
        except (BlockingIOError, InterruptedError):
            self.read()
            return
        except OSError:
            data = b""
        if data:
            self.received(data)
        else:
            self.close()

    def _send(self, data: bytes) -> bool:
        """Send as many bytes as the peer takes now, and the rest later. Returns False when the peer is gone."""
        try:
            count = self._sock.send(data)
        except (BlockingIOError, InterruptedError):
            count = 0
        except OSError:
            self.close()
            return False
        was_waiting, self._unsent = bool(self._unsent), data[count:]
        if self._unsent and not was_waiting:
            self._loop.add_writer(self._fd, self._writable)
        elif was_waiting and not self._unsent:
            self._loop.remove_writer(self._fd)
        return True

    def _writable(self) -> None:
        if self._send(self._unsent) and not self._unsent:
            self.sent()


def makes_room(
    connections: Iterable[LimitedConnection], peer: Hashable, *, most: int, most_each: int
) -> LimitedConnection | None:
    """The connection to close before *peer* gets one more; None when there is a free place. Pure."""
    by_peer: dict[Hashable, list[LimitedConnection]] = {}
    for connection in connections:
        by_peer.setdefault(connection.peer, []).append(connection)
    own = by_peer.get(peer, [])
    if len(own) >= most_each:
        return min(own, key=_rank)
    if sum(map(len, by_peer.values())) < most:
        return None
    largest = max(map(len, by_peer.values()))
    return min((one for of_peer in by_peer.values() if len(of_peer) == largest for one in of_peer), key=_rank)


def peer_of(sock: socket.socket) -> str:
    """The key for counting the connections of a peer, see `ipc.peers`. Raises OSError when the peer has gone."""
    if sock.family == socket.AF_UNIX:
        return peers.key_of_uid(peers.credentials(sock.fileno())[1])
    return peers.key_of(peers.address(sock.fileno())[0])


def _rank(connection: LimitedConnection) -> tuple[float, ...]:
    return connection.rank
