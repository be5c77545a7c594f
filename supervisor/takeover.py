"""Replace the running supervisor without interrupting agents: both ends of the protocol of `ipc.messages.TakeOver`.

The old supervisor ends only when the new one serves. Until then it keeps copies of all descriptors that it has handed
over, the lock included. When the new one dies, the old one goes on with its copies. A new one that hangs is killed, so
that there are never two.
"""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from dialout import awake
from ipc import handoff, messages, peers, query
from ipc.handoff import HandoffChannel, close_all
from ipc.logs import get_logger
from ipc.messages import (
    BATCH_BYTES,
    MAX_BATCH,
    Further,
    HandingOver,
    Handshake,
    Inheritance,
    Kept,
    KeptListener,
    Message,
    NotNow,
    Taken,
    TakeOver,
    Unregistered,
    batches,
)
from ipc.rundir import RuntimeDir, RuntimeDirBusy
from supervisor.newcomer import Newcomer
from supervisor.processes import Process, hold, start_successor
from supervisor.sd import ServiceManager

ANSWER_LIMIT = 5.0
"""Seconds that a running supervisor has to say whether it hands over. It usually answers at once."""

FINISH_LIMIT = 15.0
"""Seconds to finish handoffs, probes and starts of shards before handing over."""

TAKE_LIMIT = 30.0
"""Seconds that the new supervisor has from the last message of the handover until it serves."""

BOOT_LIMIT = 30.0
"""Seconds from the start of a new supervisor by the old one until it asks to take over."""

PAUSE = 0.005
"""Seconds between two checks of a condition that is waited for."""


class TakeoverRefused(Exception):
    """The running supervisor does not hand over. The message says why, and what to do."""


class TakeoverTimedOut(Exception):
    """The running supervisor does not answer, or does not hand over in time. It goes on as before."""


class Estate(NamedTuple):
    """The resources that one supervisor hands over to the next. The next one finds the shards in the runtime directory.

    The holder of the estate owns its descriptors. *handshakes* are not complete. *drained* shards must get no
    connections. *foreign* shards speak another version.
    """

    listeners: Mapping[KeptListener, int]
    handshakes: Sequence[Newcomer] = ()
    drained: Sequence[int] = ()
    foreign: frozenset[int] = frozenset()


# The new supervisor.


class Predecessor:
    """The running supervisor, from the view of the new one. `find` makes it."""

    def __init__(self, sock: socket.socket) -> None:
        self.locks: list[int] = []
        self.handshakes: list[Newcomer] = []
        self.pid = peers.credentials(sock.fileno())[0]
        self._messages: asyncio.Queue[Message | None] = asyncio.Queue()
        self._listeners: dict[KeptListener, int] = {}
        self._clock = awake.clock()
        self._why_lost = ""
        self._channel = HandoffChannel(sock, self._on_message, self._on_lost)

    @classmethod
    async def find(cls, rundir: RuntimeDir) -> "Predecessor | None":
        """Connect to the supervisor of *rundir*. Without one, lock the directory and return None."""
        clock = awake.clock()
        deadline = clock.time() + ANSWER_LIMIT
        while True:
            try:
                rundir.lock()
            except RuntimeDirBusy as busy:
                with contextlib.suppress(OSError):
                    return cls(handoff.connect(rundir.supervisor_handoff))
                # The other supervisor is starting or ending.
                if clock.time() > deadline:
                    raise TakeoverTimedOut(f"{busy}; it does not let anybody ask it to hand over") from None
            else:
                return None
            await asyncio.sleep(PAUSE)

    async def estate(self) -> Estate | None:
        """Receive the running supervisor's estate; None when it died meanwhile.

        After None the caller must recover as after a crash. The handshakes received so far are in `handshakes`. Raises
        `TakeoverRefused` and `TakeoverTimedOut`. Then the running supervisor goes on.
        """
        get_logger().info("taking over", from_pid=self.pid)
        self._channel.try_send(TakeOver())
        # On an error this process ends, and its descriptors are closed. The old supervisor has copies.
        limit = ANSWER_LIMIT
        while True:
            try:
                async with self._clock.timeout(limit):
                    message = await self._messages.get()
            except TimeoutError:
                raise TakeoverTimedOut(
                    f"the supervisor (pid {self.pid}) did not hand over within {limit:g} s; it goes on as it is"
                ) from None
            match message:
                case HandingOver(seconds=seconds):
                    limit = seconds + ANSWER_LIMIT
                case NotNow(reason=reason):
                    raise TakeoverRefused(f"the supervisor (pid {self.pid}) {reason}")
                case Inheritance(drained=drained):
                    return Estate(self._listeners, self.handshakes, drained)
                case None if self._channel.is_foreign:
                    raise TakeoverRefused(
                        f"the supervisor (pid {self.pid}) speaks another version; stop it, and start this one"
                    )
                case None if self._channel.unreadable:
                    raise TakeoverRefused(
                        f"the supervisor (pid {self.pid}) handed over what cannot be taken ({self._why_lost});"
                        " it goes on as it is"
                    )
                case None:
                    close_all(list(self._listeners.values()))
                    return None

    def say_taken(self) -> None:
        """Tell the old supervisor that this process serves, so that it ends."""
        self._channel.try_send(Taken())
        self._channel.close()

    def _on_lost(self, reason: str) -> None:
        self._why_lost = reason
        self._messages.put_nowait(None)

    def _on_message(self, message: Message, descriptors: list[int]) -> None:
        if isinstance(message, Unregistered):
            for handshake, fd in zip(message.handshakes, descriptors, strict=True):
                newcomer = Newcomer(fd, handshake.transport, self._clock.time() + handshake.seconds)
                newcomer.received = bytearray(handshake.received)
                self.handshakes.append(newcomer)
        elif isinstance(message, Further):
            self.handshakes[-1].received += message.received
        elif isinstance(message, Kept):
            self._listeners.update(zip(message.listeners, descriptors, strict=True))
        elif isinstance(message, Inheritance):
            self.locks = descriptors
            self._messages.put_nowait(message)
        else:
            close_all(descriptors)
            self._messages.put_nowait(message)


def check_shards(rundir: RuntimeDir) -> None:
    """Raise `TakeoverRefused` when a running shard could not be adopted: its agents would have to reconnect."""
    paths = {rundir.shard_query(shard): shard for shard in rundir.recorded_shards()}
    for path, answer in query.ask_many(paths, "status").items():
        theirs = answer.get("handoff") if isinstance(answer, dict) else None
        if theirs != messages.VERSION[0]:
            raise TakeoverRefused(
                f"shard {paths[path]} speaks version {theirs} of the handoff, this is version {messages.VERSION[0]}:"
                " its agents would have to reconnect; stop the supervisor and start this one when that is acceptable"
            )


# The old supervisor.


class Successor:
    """A process that asks to take over, from the view of the running supervisor."""

    def __init__(self, sock: socket.socket, process: Process, on_asked: Callable[["Successor"], None]) -> None:
        self.process = process
        self.lost = asyncio.Event()
        """Set when its channel is closed, by either side."""
        self.taken = asyncio.Event()
        self._on_asked = on_asked
        self._channel = HandoffChannel(sock, self._on_message, lambda _reason: self.lost.set())

    def refuse(self, reason: str) -> None:
        """Refuse to hand over, and close the channel. *reason* continues "the supervisor (pid 1) …"."""
        get_logger().warning("not handing over", to_pid=self.process.pid, reason=reason)
        self._channel.try_send(NotNow(reason))
        self.close()

    def accept(self, seconds: float) -> None:
        """Tell the process that the handover will be complete within *seconds*."""
        get_logger().info("handing over", to_pid=self.process.pid)
        self._channel.try_send(HandingOver(seconds))

    async def receives(self, estate: Estate, locks: Sequence[int]) -> bool:
        """Send the estate and the locks. True when the process serves now.

        False when its process has ended. Then this process still has all descriptors.
        """
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        loop.add_reader(self.process.pidfd, ended.set)
        try:
            for message, descriptors in _messages_of(estate, locks, awake.clock().time()):
                await self._send(message, descriptors)
            await _first_of(self.taken, ended, self.lost, seconds=TAKE_LIMIT)
            if not self.taken.is_set() and not ended.is_set():
                # A process that is ending gets a moment. Then it is killed: it may have the lock, and run on later.
                await _first_of(ended, self.taken, seconds=1.0)
            if not self.taken.is_set():
                self.process.send_signal(signal.SIGKILL)
                await ended.wait()
        finally:
            loop.remove_reader(self.process.pidfd)
        if ended.is_set():
            get_logger().error("the new supervisor has ended, going on", pid=self.process.pid, how=self.process.reap())
        return not ended.is_set()

    async def ends(self) -> None:
        """Send SIGTERM to the process, and wait until it has ended."""
        ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(self.process.pidfd, ended.set)
        self.process.send_signal(signal.SIGTERM)
        await ended.wait()
        asyncio.get_running_loop().remove_reader(self.process.pidfd)

    def close(self) -> None:
        """Close the channel and the process's pidfd."""
        self._channel.close()
        self.lost.set()
        self.process.close()

    async def _send(self, message: Message, descriptors: Sequence[int]) -> None:
        while not self._channel.closed and not self._channel.try_send(message, descriptors):  # noqa: ASYNC110 - rare
            await asyncio.sleep(PAUSE)

    def _on_message(self, message: Message, descriptors: list[int]) -> None:
        close_all(descriptors)
        if isinstance(message, TakeOver):
            self._on_asked(self)
        elif isinstance(message, Taken):
            self.taken.set()


class Succession:
    """The processes that may take over from this supervisor: any that asks at its socket, or one that it starts itself.

    *on_asked* gets each `Successor` that asks, and must accept or refuse it.
    """

    def __init__(self, rundir: RuntimeDir, manager: ServiceManager, on_asked: Callable[[Successor], None]) -> None:
        self._manager = manager
        self._on_asked = on_asked
        self._loop = asyncio.get_running_loop()
        self._log = get_logger()
        self._asking: list[Successor] = []
        self._started: Process | None = None
        self._boot_timer: awake.Timer | None = None
        self._rundir = rundir
        self._listener = handoff.listen(rundir.supervisor_handoff)
        self._loop.add_reader(self._listener.fileno(), self._accept)

    def listen_again(self) -> None:
        """Listen at a new socket, after the file of the old one was removed."""
        listener = handoff.listen(self._rundir.supervisor_handoff)
        self._loop.remove_reader(self._listener.fileno())
        self._listener.close()
        self._listener = listener
        self._loop.add_reader(listener.fileno(), self._accept)

    def start_one(self) -> None:
        """Start a new supervisor from the installed code. It will ask to take over. A failure is only logged."""
        if os.getpid() == 1:
            self._log.error("process 1 cannot be replaced: its end is the container's; start a new container instead")
            return
        if self._started is not None:
            self._log.warning("a new supervisor is starting already", pid=self._started.pid)
            return
        try:
            self._started = start_successor(self._manager.variables)
        except OSError as error:
            self._log.error("the new supervisor cannot be started, serving on", reason=error.strerror)
            return
        self._log.info("starting a new supervisor", pid=self._started.pid)
        self._loop.add_reader(self._started.pidfd, self._started_one_ended)
        self._boot_timer = awake.clock().call_later(BOOT_LIMIT, self._started_one_is_late)

    def why_not(self, successor: Successor) -> str | None:
        """Why *successor* may not take over; None when it may."""
        if os.getpid() == 1:
            return "is process 1, whose end is the container's; start a new container instead"
        if self._manager.is_there and (self._started is None or successor.process.pid != self._started.pid):
            return (
                "is run by a service manager, for which its end would be the service's; ask that one:"
                " systemctl kill --kill-whom=main --signal=USR2 shardgate"
            )
        return None

    def close(self, keep: Successor | None = None) -> None:
        """Take no more requests, and close all asking processes' channels but that of *keep*, which takes over."""
        if self._listener.fileno() >= 0:
            self._loop.remove_reader(self._listener.fileno())
            self._listener.close()
        if self._boot_timer is not None:
            self._boot_timer.cancel()
        if self._started is not None:
            self._loop.remove_reader(self._started.pidfd)
            if keep is None:
                # This supervisor started it, and stops now.
                self._started.send_signal(signal.SIGKILL)
            self._started.close()
        for one in self._asking:
            if one is not keep:
                one.close()

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        process = hold(peers.credentials(sock.fileno())[0])
        if process is None:
            sock.close()
            return
        for gone in [one for one in self._asking if one.lost.is_set()]:
            gone.close()
            self._asking.remove(gone)
        self._asking.append(Successor(sock, process, self._on_asked))

    def _started_one_ended(self) -> None:
        assert self._started is not None
        self._loop.remove_reader(self._started.pidfd)
        # It has logged the reason to the standard error that it shares with this process.
        self._log.error("the new supervisor has ended, serving on", pid=self._started.pid)
        self._started.close()
        self._started = None
        if self._boot_timer is not None:
            self._boot_timer.cancel()

    def _started_one_is_late(self) -> None:
        if self._started is not None and not self._asking:
            self._log.error("the new supervisor does not begin, ending it", pid=self._started.pid, after_s=BOOT_LIMIT)
            self._started.send_signal(signal.SIGKILL)


def _messages_of(estate: Estate, locks: Sequence[int], now: float) -> Iterator[tuple[Message, list[int]]]:
    for batch in _batches(estate.handshakes):
        handshakes = [
            Handshake(n.transport, bytes(n.received[:BATCH_BYTES]), max(0.0, n.deadline - now)) for n in batch
        ]
        yield Unregistered(handshakes), [newcomer.fd for newcomer in batch]
        # A handshake that is longer than a message is alone in its batch.
        longest = batch[-1].received
        for start in range(BATCH_BYTES, len(longest), BATCH_BYTES):
            yield Further(bytes(longest[start : start + BATCH_BYTES])), []
    for listeners in batches(list(estate.listeners.items())):
        yield Kept([listener for listener, _ in listeners]), [fd for _, fd in listeners]
    yield Inheritance(list(estate.drained), len(locks)), list(locks)


def _batches(newcomers: Iterable[Newcomer]) -> Iterator[list[Newcomer]]:
    batch: list[Newcomer] = []
    size = 0
    for newcomer in newcomers:
        size += len(newcomer.received)
        if batch and (size > BATCH_BYTES or len(batch) == MAX_BATCH):
            yield batch
            batch, size = [], len(newcomer.received)
        batch.append(newcomer)
    if batch:
        yield batch


async def _first_of(*events: asyncio.Event, seconds: float) -> None:
    """Wait until one of *events* is set, for *seconds* at most."""
    waiting = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        with contextlib.suppress(TimeoutError):
            async with awake.clock().timeout(seconds):
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()
