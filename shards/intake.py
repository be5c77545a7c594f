"""The shard's end of the handoff: hold what is prepared, adopt it at commit."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable

from dialout import ErrorCode, rejection_frame
from ipc.handoff import (
    Commit,
    Declined,
    Entrust,
    HandoffChannel,
    Hello,
    Kept,
    Message,
    Offer,
    Prepare,
    Prepared,
    Refuse,
    Revoke,
    TakeBack,
    close_all,
)
from ipc.logs import get_logger
from ipc.process import DescriptorBudget
from ipc.version import __version__
from shards.custody import Custody
from shards.orphan import OrphanTimer
from shards.pool import AgentPool

ORPHAN_SECONDS = 10.0
"""How long prepared connections wait for the next supervisor."""


class Intake:
    """Takes connections from a supervisor that connects to *listener*.

    There is one supervisor at a time: a new one that connects replaces the old channel. Prepared connections outlive
    the channel; the next supervisor finds them in the snapshot and decides. When none comes, they are turned away.
    *on_orphaned* is called when there was no supervisor for as long as the last one said.
    """

    def __init__(self, listener: socket.socket, pool: AgentPool, hello: Hello, on_orphaned: Callable[[], None]) -> None:
        self.prepared: dict[int, tuple[Offer, int]] = {}
        self.custody = Custody()
        self._orphan = OrphanTimer(on_orphaned)
        self._listener = listener
        self._pool = pool
        self._hello = hello
        self._channel: HandoffChannel | None = None
        self._unanswered: list[Prepared | Declined | TakeBack] = []
        self._orphan_timer: asyncio.TimerHandle | None = None
        self._budget = DescriptorBudget(expected=8)
        self._loop = asyncio.get_running_loop()
        self._log = get_logger()
        self._loop.add_reader(listener.fileno(), self._accept)

    def retire(self) -> None:
        """Take no more connections, and let go of the listening sockets; what is only prepared goes elsewhere."""
        self.custody.close()
        if self._channel is not None:
            # Whose commit has come is ours. Of the others a supervisor that lives has copies, and other shards.
            self._channel.take_the_rest()
        if self._channel is None:
            self._give_up_orphans()
        self.close()

    def close(self) -> None:
        """Take no more connections; close those that are only prepared."""
        self.custody.close()
        self._orphan.cancel()
        if self._listener.fileno() >= 0:
            self._loop.remove_reader(self._listener.fileno())
            self._listener.close()
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._orphan_timer is not None:
            self._orphan_timer.cancel()
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
            # The old supervisor is gone, but not what it said last: a revocation that is lost here would leave two
            # shards with one connection.
            self._channel.take_the_rest()
        if self._channel is not None:
            self._channel.close()
        self._unanswered.clear()
        if self._orphan_timer is not None:
            self._orphan_timer.cancel()
            self._orphan_timer = None
        self._orphan.cancel()
        self._channel = HandoffChannel(sock, self._on_message, self._on_lost)
        self._channel.try_send(self._hello)

    def _listen_again(self) -> None:
        if self._listener.fileno() >= 0:
            self._loop.add_reader(self._listener.fileno(), self._accept)

    def _on_lost(self, reason: str) -> None:
        self._channel = None
        self._log.warning(
            "supervisor lost, serving on",
            reason=reason, prepared=len(self.prepared), listeners=len(self.custody), for_s=self._orphan.timeout,
        )  # fmt: skip
        self._orphan.start()
        self._orphan_timer = self._loop.call_later(ORPHAN_SECONDS, self._give_up_orphans)

    def _give_up_orphans(self) -> None:
        """Turn away those whose supervisor has not come back: an agent may wait for its answer without a limit."""
        self._orphan_timer = None
        self._turn_away(list(self.prepared), ErrorCode.SHUTTING_DOWN, "the listener went away during the registration")

    def _on_message(self, message: Message, descriptors: list[int]) -> None:
        if isinstance(message, Prepare):
            self._hold(message, descriptors)
        elif isinstance(message, Commit):
            for number in message.numbers:
                held = self.prepared.pop(number, None)
                if held is not None:
                    self._pool.adopt(*held)
        elif isinstance(message, Revoke):
            self._let_go(message.numbers)
        elif isinstance(message, Refuse):
            self._turn_away(message.numbers, ErrorCode.CONNECTION_LIMIT, "connection limit reached")
        elif isinstance(message, Entrust):
            self.custody.keep(message.listeners, descriptors)
            self._orphan.timeout = message.orphan_timeout
        elif isinstance(message, TakeBack):
            self._unanswered.append(message)
            self._answer()

    def _hold(self, message: Prepare, descriptors: list[int]) -> None:
        held = len(self.prepared) + len(self._pool.connections) + len(self.custody)
        if self._budget.left(held) < len(descriptors):
            close_all(descriptors)
            self._unanswered.append(Declined(message.batch, "out of descriptors"))
            self._answer()
            return
        for offer, fd in zip(message.offers, descriptors, strict=True):
            self.prepared[offer.number] = (offer, fd)
        self._unanswered.append(Prepared(message.batch))
        self._answer()

    def _answer(self) -> None:
        channel = self._channel
        if channel is None:
            return
        while self._unanswered:
            answer = self._unanswered[0]
            if isinstance(answer, TakeBack):
                sent = channel.try_send(Kept(self.custody.listeners), self.custody.descriptors)
            else:
                sent = channel.try_send(answer)
            if not sent:
                channel.when_writable(self._answer)
                return
            del self._unanswered[0]

    def _let_go(self, numbers: list[int]) -> None:
        for number in numbers:
            held = self.prepared.pop(number, None)
            if held is not None:
                os.close(held[1])

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
