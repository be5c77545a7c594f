"""Somebody in the middle: sees every message between a supervisor and its shards, and may do something about it.

The product knows nothing of it. In the runtime directory the sockets that processes connect to are moved aside as soon
as they appear, and a link to ours takes their place; whoever connects from then on goes through here. So shards that
were there before have to be started again once.

Messages of the handoff channels pass in their order, with their descriptors, or wait. Those of the bus may be lost, and
come twice or late.
"""

import array
import contextlib
import random
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import zmq

from ipc import handoff, messages
from ipc.messages import MAX_MESSAGE, Message
from ipc.rundir import RuntimeDir

LOOK_MS = 3
ANCILLARY = socket.CMSG_SPACE(256 * array.array("i").itemsize)


class Seen(NamedTuple):
    """A message on a handoff channel; *to_shard* is its direction."""

    shard: int
    to_shard: bool
    message: Message


Watch = Callable[[Seen, str], None]
"""Is called for each message ``before`` it is passed on, and ``after``."""


class BusFaults(NamedTuple):
    """Shares of the bus's messages that are lost, come twice, and come late, in either direction."""

    lost: float = 0.0
    twice: float = 0.0
    late: float = 0.0


class _Pipe:
    """One direction of one handoff channel."""

    def __init__(self, shard: int, source: socket.socket, target: socket.socket, *, to_shard: bool) -> None:
        self.shard, self.source, self.target, self.to_shard = shard, source, target, to_shard
        self.waiting: tuple[bytes, list[int]] | None = None


def _is_hung_up(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return bool(poll.poll(0))


class Interposer:
    """Sits between the processes of one runtime directory, in a thread; a context manager."""

    def __init__(self, rundir: RuntimeDir) -> None:
        self.watch: Watch | None = None
        self.faults = BusFaults()
        self.held: set[tuple[int, bool]] = set()
        """Directions of handoff channels (shard, to the shard?) in which nothing passes now."""
        self.passed = 0
        self.failure: BaseException | None = None
        self._rundir = rundir
        self._random = random.Random(7)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self._router.linger = 0
        self._router.bind(f"ipc://{self._ours(rundir.bus)}")
        self._dealers: dict[bytes, zmq.Socket[bytes]] = {}
        self._late: deque[tuple[float, Callable[[], None]]] = deque()
        self._listeners: dict[int, socket.socket] = {}
        self._pipes: list[_Pipe] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="interposer")

    def __enter__(self) -> "Interposer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(10)
        for sock in (*self._listeners.values(), *(end for pipe in self._pipes for end in (pipe.source, pipe.target))):
            sock.close()
        for pipe in self._pipes:
            if pipe.waiting is not None:
                handoff.close_all(pipe.waiting[1])
        self._context.destroy(linger=0)
        for path in self._rundir.path.glob("*.ours"):
            path.unlink()
        # The processes that run find each other again.
        for path in self._rundir.path.glob("*.aside"):
            path.rename(path.with_suffix(""))
        for path in self._rundir.path.iterdir():
            if path.is_symlink():
                path.unlink()
        assert self.failure is None, self.failure

    def is_between(self, shard: int) -> bool:
        """Whether what passes between the supervisor and this shard passes here."""
        return any(pipe.shard == shard for pipe in self._pipes)

    @staticmethod
    def _ours(path: Path) -> Path:
        return path.with_name(path.name + ".ours")

    @staticmethod
    def _aside(path: Path) -> Path:
        return path.with_name(path.name + ".aside")

    # The thread.

    def _run(self) -> None:
        try:
            while not self._over.is_set():
                self._take_places()
                self._turn()
        except BaseException as error:  # noqa: BLE001 - told at the end
            self.failure = error

    def _take_places(self) -> None:
        self._take_place(self._rundir.bus)
        for path in self._rundir.path.glob("shard-*.handoff"):
            shard = int(path.stem.removeprefix("shard-"))
            if shard not in self._listeners:
                listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
                listener.bind(str(self._ours(path)))
                listener.listen(8)
                self._listeners[shard] = listener
            self._take_place(path)

    def _take_place(self, path: Path) -> None:
        if path.is_socket() and not path.is_symlink():
            link = path.with_name(path.name + ".link")
            link.symlink_to(self._ours(path).name)
            with contextlib.suppress(FileNotFoundError):
                path.rename(self._aside(path))
                link.rename(path)
            link.unlink(missing_ok=True)

    def _turn(self) -> None:
        poller = zmq.Poller()
        poller.register(self._router, zmq.POLLIN)
        for dealer in self._dealers.values():
            poller.register(dealer, zmq.POLLIN)
        for listener in self._listeners.values():
            poller.register(listener.fileno(), zmq.POLLIN)
        for pipe in self._pipes:
            if pipe.waiting is None and (pipe.shard, pipe.to_shard) not in self.held:
                poller.register(pipe.source.fileno(), zmq.POLLIN)
        poller.poll(LOOK_MS)
        now = time.monotonic()
        while self._late and self._late[0][0] <= now:
            self._late.popleft()[1]()
        for shard, listener in self._listeners.items():
            self._accept(shard, listener)
        self._pass_bus()
        for pipe in list(self._pipes):
            if pipe in self._pipes:
                self._pass(pipe)

    def _accept(self, shard: int, listener: socket.socket) -> None:
        try:
            supervisor, _ = listener.accept()
        except BlockingIOError:
            return
        supervisor.setblocking(False)
        end = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            end.connect(str(self._aside(self._rundir.shard_handoff(shard))))
        except OSError:
            supervisor.close()
            end.close()
            return
        self._pipes.append(_Pipe(shard, supervisor, end, to_shard=True))
        self._pipes.append(_Pipe(shard, end, supervisor, to_shard=False))

    def _pass(self, pipe: _Pipe) -> None:
        """Pass on what has come in one direction, until nothing more comes or the other side takes no more."""
        while (pipe.shard, pipe.to_shard) not in self.held and self._take(pipe) and self._give(pipe):
            pass

    def _take(self, pipe: _Pipe) -> bool:
        """Have a message to pass on; False when there is none."""
        if pipe.waiting is not None:
            return True
        try:
            data, ancillary, _, _ = pipe.source.recvmsg(MAX_MESSAGE, ANCILLARY, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return False
        except ConnectionResetError:
            return self._take(pipe)  # What was sent before comes behind it.
        except OSError:
            data, ancillary = b"", []
        if not data:
            self._end(pipe)
            return False
        descriptors = array.array("i")
        for _, _, raw in ancillary:
            descriptors.frombytes(raw)
        pipe.waiting = data, descriptors.tolist()
        self._tell(pipe, data, "before")
        return True

    def _give(self, pipe: _Pipe) -> bool:
        """Pass a message on; False when the other side takes none now."""
        assert pipe.waiting is not None
        data, fds = pipe.waiting
        if _is_hung_up(pipe.source):
            # Its last words still arrive. Whoever answers them must find out at once that nobody is there.
            with contextlib.suppress(OSError):
                pipe.target.shutdown(socket.SHUT_RD)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            pipe.target.sendmsg([data], rights, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            pass  # Gone: the other direction finds out.
        handoff.close_all(fds)
        pipe.waiting = None
        self.passed += 1
        self._tell(pipe, data, "after")
        return True

    def _tell(self, pipe: _Pipe, data: bytes, when: str) -> None:
        if self.watch is not None:
            self.watch(Seen(pipe.shard, pipe.to_shard, messages.decode(data)), when)

    def _end(self, pipe: _Pipe) -> None:
        """One end is gone: what it has sent is passed on, and the other one told."""
        for other in [other for other in self._pipes if other.source in (pipe.source, pipe.target)]:
            self._pipes.remove(other)
            if other.waiting is not None:
                handoff.close_all(other.waiting[1])
        pipe.source.close()
        pipe.target.close()

    # The bus.

    def _pass_bus(self) -> None:
        while True:
            try:
                identity, *parts = self._router.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                break
            self._perhaps(partial(self._to_supervisor, identity, parts))
        for identity, dealer in list(self._dealers.items()):
            while True:
                try:
                    parts = dealer.recv_multipart(zmq.DONTWAIT)
                except zmq.Again:
                    break
                self._perhaps(partial(self._to_shard, identity, parts))

    def _perhaps(self, send: Callable[[], None]) -> None:
        dice = self._random.random()
        lost, twice, late = self.faults
        if dice < lost:
            return
        if dice < lost + twice:
            send()
        if lost + twice <= dice < lost + twice + late:
            self._late.append((time.monotonic() + 0.3, send))
            return
        send()

    def _to_supervisor(self, identity: bytes, parts: list[bytes]) -> None:
        dealer = self._dealers.get(identity)
        if dealer is None:
            # Its first word: the supervisor connects to it now, and is to come by here.
            self._take_places()
            dealer = self._dealers[identity] = self._context.socket(zmq.DEALER)
            dealer.linger = 0
            dealer.setsockopt(zmq.IDENTITY, identity)
            dealer.reconnect_ivl = 20
            dealer.connect(f"ipc://{self._aside(self._rundir.bus)}")
        with contextlib.suppress(zmq.Again):
            dealer.send_multipart(parts, zmq.DONTWAIT)

    def _to_shard(self, identity: bytes, parts: list[bytes]) -> None:
        with contextlib.suppress(zmq.ZMQError):
            self._router.send_multipart([identity, *parts], zmq.DONTWAIT)
