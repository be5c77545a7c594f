"""Handshakes in progress: from accept until one whole frame has been read.

There is no transport, no stream and no task. Handshakes use raw non-blocking descriptors, with a first read right after
accept: the frame usually has arrived. One queue ordered by age serves all deadlines, since all handshakes have the
same timeout.

**Caps.** A handshake with an incomplete frame takes one of `max_handshakes` places, and one of its peer's
`max_handshakes_per_peer`. When no place is left, the *oldest* unfinished handshake of that peer (or of all) is refused,
not the new one. So silent peers cannot keep out a peer that sends at once. An agent is refused only after as many newer
silent connections as the cap has places. It gets a last read before that.

**Descriptors.** When they run out (`make_room`), refused connections are closed first, since they have their answer.
After them the oldest unfinished handshakes of the peer with most of them are refused.
"""

import asyncio
import os
from collections.abc import Callable
from itertools import islice
from time import monotonic

from dialout import (
    ErrorCode,
    NotAgentProtocol,
    Rejection,
    awake,
    scan_first_frame,
)
from dialout.claims import Claim, read_claim
from ipc.histogram import Histogram
from ipc.readiness import Readiness
from supervisor.config.model import Config
from supervisor.farewell import Farewell
from supervisor.newcomer import Newcomer

READ_SIZE = 4096
"""Bytes of a first read, and so the most bytes of residue behind a registration."""

LARGEST_READ = 65536


class Handshakes:
    """All handshakes in progress.

    *on_claim* gets each connection with the claim of its registration. The rest of the registration is not decoded yet.
    The connection is not watched any more by then.
    """

    def __init__(
        self,
        config: Config,
        readiness: Readiness,
        farewell: Farewell,
        on_claim: Callable[[Newcomer, Claim], None],
    ) -> None:
        self.config = config
        self.seconds = Histogram()
        """From accept until the whole frame was read, for frames with a claim."""
        self._readiness = readiness
        self._farewell = farewell
        self._on_claim = on_claim
        self._loop = asyncio.get_running_loop()
        self._clock = awake.clock()
        self._waiting: dict[int, Newcomer] = {}
        self._by_peer: dict[str, dict[int, Newcomer]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def begin(self, newcomer: Newcomer) -> None:
        """Start the handshake of a connection that has just been accepted."""
        self._read(newcomer)

    def release_all(self) -> list[Newcomer]:
        """Stop watching all unfinished handshakes, and return them for another supervisor, the oldest first."""
        released = list(self._waiting.values())
        for newcomer in released:
            self._forget(newcomer)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return released

    def reject_all(self, rejection_code: ErrorCode, message: str) -> None:
        """Refuse all unfinished handshakes."""
        for newcomer in list(self._waiting.values()):
            self._reject(newcomer, rejection_code, message, retry_after_ms=1000)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def yielding(self) -> int:
        """Descriptors that `make_room` can free."""
        return len(self._waiting) + len(self._farewell)

    def make_room(self, places: int) -> None:
        """Free so many descriptors, or fewer where the peer that has most unfinished handshakes has not so many."""
        places -= self._farewell.make_room(places)
        if places > 0 and self._by_peer:
            of_peer = max(self._by_peer.values(), key=len)
            for oldest in list(islice(of_peer.values(), places)):
                if oldest.fd in self._waiting:
                    self._push_out(oldest, linger=False)

    def _read(self, newcomer: Newcomer) -> None:
        """Read the bytes that have arrived, and process them."""
        while True:
            received = newcomer.received
            missing = newcomer.wanted - len(received)
            try:
                data = os.read(newcomer.fd, READ_SIZE if missing <= READ_SIZE else min(missing, LARGEST_READ))
            except BlockingIOError:
                if newcomer.fd not in self._waiting:
                    self._wait(newcomer)
                return
            except OSError:
                self._forget(newcomer)
                self._farewell.abandon(newcomer)
                return
            if not data and not received:
                self._forget(newcomer)
                self._farewell.part(newcomer)
                return
            if not data:
                self._reject(newcomer, ErrorCode.BAD_REGISTRATION, "the connection ended before one whole frame")
                return
            if received:
                # A bytearray grows in place: a frame that arrives byte by byte must not be copied for each byte.
                if type(received) is bytes:
                    received = bytearray(received)
                received += data
            else:
                received = data
            newcomer.received = received
            if len(received) >= newcomer.wanted and self._advance(newcomer):
                return

    def _advance(self, newcomer: Newcomer) -> bool:
        """Process the bytes read so far. True when the handshake is over."""
        try:
            found = scan_first_frame(bytes(newcomer.received), self.config.max_registration_bytes)
            if isinstance(found, int):
                newcomer.wanted = len(newcomer.received) + found
                return False
            frame_type, payload, newcomer.residue = found
            claim = read_claim(frame_type, payload)
        except Rejection as rejection:
            self._forget(newcomer)
            self._farewell.reject(newcomer, rejection)
            return True
        except NotAgentProtocol as error:
            self._forget(newcomer)
            self._farewell.dismiss(newcomer, error.protocol)
            return True
        self._forget(newcomer)
        newcomer.received = b""
        newcomer.claim = claim
        self.seconds.observe(monotonic() - newcomer.accepted_at)
        self._on_claim(newcomer, claim)
        return True

    def _wait(self, newcomer: Newcomer) -> None:
        newcomer.on_readable = self._read
        key = newcomer.waits_as = newcomer.peer_key()
        peers = self._by_peer.get(key)
        if peers is None:
            peers = self._by_peer[key] = {}
        elif len(peers) >= self.config.max_handshakes_per_peer:
            self._push_out(next(iter(peers.values())))
        if len(self._waiting) >= self.config.max_handshakes:
            self._push_out(next(iter(self._waiting.values())))
        # The last read of the refused handshake may have emptied the peer's record.
        self._by_peer.setdefault(key, peers)[newcomer.fd] = newcomer
        self._waiting[newcomer.fd] = newcomer
        self._readiness.watch(newcomer.fd, newcomer)
        if self._timer is None:
            self._timer = self._loop.call_later(self.config.limits.handshake_timeout, self._expire)

    def _forget(self, newcomer: Newcomer) -> None:
        if self._waiting.pop(newcomer.fd, None) is None:
            return
        peers = self._by_peer[newcomer.waits_as]
        del peers[newcomer.fd]
        if not peers:
            del self._by_peer[newcomer.waits_as]
        self._readiness.forget(newcomer.fd)

    def _push_out(self, oldest: Newcomer, *, linger: bool = True) -> None:
        """Refuse *oldest*, unless a last read finishes its handshake. Its place is free after that.

        Without *linger* its descriptor is free, too.
        """
        self._read(oldest)
        if oldest.fd in self._waiting:
            self._reject(
                oldest,
                ErrorCode.OVERLOADED,
                "too many handshakes in progress; send the registration right after connecting",
                retry_after_ms=1000,
                linger=linger,
            )

    def _reject(
        self,
        newcomer: Newcomer,
        code: ErrorCode,
        message: str,
        *,
        retry_after_ms: int | None = None,
        linger: bool = True,
    ) -> None:
        self._forget(newcomer)
        rejection = Rejection(code, message, answer_type=newcomer.answer_type, retry_after_ms=retry_after_ms)
        self._farewell.reject(newcomer, rejection, linger=linger)

    def _expire(self) -> None:
        self._timer = None
        now = self._clock.time()
        while self._waiting:
            oldest = next(iter(self._waiting.values()))
            if oldest.deadline <= now:
                # The frame may have arrived in time, while the loop was late.
                self._read(oldest)
                if oldest.fd not in self._waiting:
                    continue
            else:
                self._timer = self._loop.call_later(oldest.deadline - now, self._expire)
                return
            seconds = self.config.limits.handshake_timeout
            self._reject(
                oldest, ErrorCode.TIMEOUT, f"no complete registration within {seconds:g} s", retry_after_ms=1000
            )
