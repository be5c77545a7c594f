"""The shard's end of the handoff: it holds prepared connections and adopts them at commit."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable

from dialout import ErrorCode, awake, rejection_frame
from ipc.events import Gone
from ipc.handoff import HandoffChannel, close_all
from ipc.logs import get_logger
from ipc.messages import (
    Commit,
    Declined,
    Entrust,
    Hello,
    Message,
    MoveOut,
    Moving,
    Offer,
    Prepare,
    Prepared,
    Refuse,
    Revoke,
    Staying,
    TakeBack,
)
from ipc.tickets import take_ticket
from ipc.version import __version__
from shards.custody import Custody
from shards.departures import Departures
from shards.orphan import OrphanTimer
from shards.pool import AgentPool

ARRIVAL_SECONDS = 0.2
"""Seconds that a connection on its way to this shard waits, so that the shard that it comes from can take it back
first."""

ORPHAN_SECONDS = 10.0
"""Seconds that prepared connections wait for the next supervisor."""

MOST_UNREAD = 256 * 1024
"""Bytes of an agent's unread input that are read and dropped when the agent is refused."""


class Intake:
    """Takes connections from a supervisor that connects to *listener*.

    There is one supervisor at a time: a new one that connects replaces the old channel. Prepared connections outlive
    the channel. The next supervisor finds them in the snapshot and decides. If none comes, they are refused.

    A connection that moves is prepared in two shards, its old and its new one. Each has a copy, and neither reads or
    writes it. The Commit goes to one of them, which takes the connection's ticket. If the supervisor is lost before the
    Commit, the shard that takes the ticket serves the connection. The old shard tries at once, the new one after
    `ARRIVAL_SECONDS`.

    *room* returns how many more descriptors of agents this process may hold. *on_orphaned* is called when there was no
    supervisor for the time that the last one set. *on_gone* is called for each connection that was committed here after
    another shard had taken it.
    """

    def __init__(
        self,
        listener: socket.socket,
        pool: AgentPool,
        hello: Hello,
        room: Callable[[], int],
        on_orphaned: Callable[[], None],
        on_gone: Callable[[Gone], None],
    ) -> None:
        self.prepared: dict[int, tuple[Offer, int]] = {}
        self.custody = Custody()
        self._orphan = OrphanTimer(on_orphaned)
        self._on_gone = on_gone
        self._listener = listener
        self._pool = pool
        self._hello = hello
        self._channel: HandoffChannel | None = None
        self._unanswered: list[Prepared | Declined | Staying | TakeBack] = []
        self._departures = Departures(pool, self._send_away, self._hold_departing, self._say_staying)
        self._departing: set[int] = set()
        self._orphan_timer: awake.Timer | None = None
        self._arrival_timer: awake.Timer | None = None
        self._room = room
        self._loop = asyncio.get_running_loop()
        self._clock = awake.clock()
        self._log = get_logger()
        self._loop.add_reader(listener.fileno(), self._accept)

    @property
    def moving(self) -> list[tuple[int, str]]:
        """The prepared connections that are on their way between two shards: pairs of number and agent id."""
        return [(n, offer.agent_id) for n, (offer, _) in self.prepared.items() if offer.state is not None]

    @property
    def let_go(self) -> list[int]:
        """The numbers of `moving` that come from this shard."""
        return [number for number in self._departing if number in self.prepared]

    def listen_again(self, listener: socket.socket) -> None:
        """Accept supervisors on *listener* from now on, because the socket file of the old one is gone."""
        self._loop.remove_reader(self._listener.fileno())
        self._listener.close()
        self._listener = listener
        self._loop.add_reader(listener.fileno(), self._accept)

    def retire(self) -> None:
        """Take no more connections, and close the kept listening sockets. Prepared connections go elsewhere."""
        self.custody.close()
        if self._channel is not None:
            # Connections with a commit in the channel belong to this shard. The supervisor has copies of the others.
            self._channel.take_the_rest()
        if self._channel is None:
            self._give_up_orphans()
        self.close()

    def close(self) -> None:
        """Take no more connections. Close the connections that are only prepared."""
        self._departures.abandon()
        self.custody.close()
        self._orphan.cancel()
        if self._listener.fileno() >= 0:
            self._loop.remove_reader(self._listener.fileno())
            self._listener.close()
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        self._stop_waiting()
        self._let_go(list(self.prepared))

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            # Out of descriptors or memory: the listener stays readable, so looking again at once would spin.
            self._log.error("cannot accept a supervisor", reason=error.strerror)
            self._loop.remove_reader(self._listener.fileno())
            self._loop.call_later(0.1, self._listen_again)
            return
        if self._channel is not None:
            # The old supervisor is gone, but its last messages count. A lost revocation would leave two shards with one
            # connection.
            self._channel.take_the_rest()
        if self._channel is not None:
            self._channel.close()
        self._take_back()
        self._unanswered.clear()
        self._stop_waiting()
        self._orphan.cancel()
        self._channel = HandoffChannel(sock, self._on_message, self._on_lost)
        self._channel.try_send(self._hello)

    def _listen_again(self) -> None:
        if self._listener.fileno() >= 0:
            self._loop.add_reader(self._listener.fileno(), self._accept)

    def _on_lost(self, reason: str) -> None:
        self._channel = None
        self._take_back()
        self._log.warning(
            "supervisor lost, serving on",
            reason=reason, prepared=len(self.prepared), listeners=len(self.custody), for_s=self._orphan.timeout,
        )  # fmt: skip
        self._orphan.start()
        self._orphan_timer = self._clock.call_later(ORPHAN_SECONDS, self._give_up_orphans)
        self._arrival_timer = self._clock.call_later(ARRIVAL_SECONDS, self._serve_arrived)

    def _stop_waiting(self) -> None:
        """Cancel the timers. From now on a supervisor decides about connections on their way, or the shard ends."""
        for timer in (self._orphan_timer, self._arrival_timer):
            if timer is not None:
                timer.cancel()
        self._orphan_timer = self._arrival_timer = None

    def _give_up_orphans(self) -> None:
        """Refuse prepared connections when no supervisor has come. An agent may wait for its answer without a limit."""
        self._orphan_timer = None
        self._serve_arrived()
        self._turn_away(list(self.prepared), ErrorCode.SHUTTING_DOWN, "the listener went away during the registration")

    def _serve_arrived(self) -> None:
        """Serve connections that were to move here, unless the shard that they come from has taken them back."""
        self._arrival_timer = None
        for number, _ in self.moving:
            self._go_on_with(*self.prepared.pop(number))

    def _take_back(self) -> None:
        """Serve connections again that were to move away, unless another shard has taken them after its Commit."""
        self._departures.abandon()
        for number in list(self._departing):
            self._go_on_with(*self.prepared.pop(number))

    def _on_message(self, message: Message, descriptors: list[int]) -> None:
        if isinstance(message, Prepare):
            self._hold(message, descriptors)
        elif isinstance(message, Commit):
            for number in message.numbers:
                held = self.prepared.pop(number, None)
                if held is None:
                    continue
                if held[0].state is None:
                    self._pool.adopt(*held)
                elif not self._go_on_with(*held):
                    self._on_gone(Gone(number, held[0].agent_id))
        elif isinstance(message, Revoke):
            self._let_go(message.numbers)
        elif isinstance(message, Refuse):
            self._turn_away(message.numbers, ErrorCode.CONNECTION_LIMIT, "connection limit reached")
        elif isinstance(message, MoveOut):
            self._departures.begin(message)
        elif isinstance(message, Entrust):
            self.custody.keep(message.listeners, descriptors, adds=message.adds)
            self._orphan.timeout = message.orphan_timeout
        elif isinstance(message, TakeBack):
            self._unanswered.append(message)
            self._answer()

    def _go_on_with(self, offer: Offer, fd: int) -> bool:
        """Serve a connection that has moved here, or stays here after all; False if another shard serves it."""
        self._departing.discard(offer.number)
        self._pool.has_moved(offer.agent_id)
        assert offer.state is not None
        if not take_ticket(fd, offer.transport, offer.state.ticket):
            os.close(fd)
            return False
        self._pool.adopt(offer, fd)
        return True

    def _send_away(self, message: Moving, descriptors: list[int]) -> bool:
        return self._channel is not None and self._channel.try_send(message, descriptors)

    def _hold_departing(self, offer: Offer, fd: int) -> None:
        self.prepared[offer.number] = (offer, fd)
        self._departing.add(offer.number)
        self._pool.moves(offer.agent_id)

    def _say_staying(self, numbers: list[int]) -> None:
        self._unanswered.append(Staying(numbers))
        self._answer()

    def _hold(self, message: Prepare, descriptors: list[int]) -> None:
        if self._room() < len(descriptors):
            close_all(descriptors)
            self._unanswered.append(Declined(message.batch, "out of descriptors"))
            self._answer()
            return
        for offer, fd in zip(message.offers, descriptors, strict=True):
            self.prepared[offer.number] = (offer, fd)
            if offer.state is not None:
                self._pool.moves(offer.agent_id)
        self._unanswered.append(Prepared(message.batch))
        self._answer()

    def _answer(self) -> None:
        channel = self._channel
        if channel is None:
            return
        while self._unanswered:
            answer = self._unanswered[0]
            if isinstance(answer, TakeBack):
                sent = all(channel.try_send(*kept) for kept in self.custody.messages())
            else:
                sent = channel.try_send(answer)
            if not sent:
                channel.when_writable(self._answer)
                return
            del self._unanswered[0]

    def _let_go(self, numbers: list[int]) -> None:
        for number in numbers:
            held = self.prepared.pop(number, None)
            if held is None:
                continue
            offer, fd = held
            self._departing.discard(number)
            if offer.state is not None:
                self._pool.has_moved(offer.agent_id)
            os.close(fd)

    def _turn_away(self, numbers: list[int], error_code: ErrorCode, message: str) -> None:
        for number in numbers:
            held = self.prepared.pop(number, None)
            if held is None:
                continue
            offer, fd = held
            rejection = rejection_frame(
                offer.dialect.answer_type,
                message,
                error_code,
                proxy_id=os.uname().nodename,
                proxy_version=__version__,
                retry_after_ms=1000,
            )
            with contextlib.suppress(OSError), socket.socket(fileno=fd) as sock:
                sock.setblocking(False)
                sock.send(rejection)
                sock.shutdown(socket.SHUT_WR)
                # A close with unread input makes TCP reset, and the agent may never read the reason (RFC 1122,
                # 4.2.2.13).
                sock.recv(MOST_UNREAD)
