"""One shard's place in the fleet: what is known of it, what is held open for it, and what is to become of it."""

import asyncio
import time
from enum import Enum

from ipc.handoff import HandoffChannel
from supervisor.care import Care
from supervisor.journal import Journal
from supervisor.merge import rfc3339
from supervisor.processes import Process


class Fate(Enum):
    """What becomes of a shard's place when its process ends."""

    RESPAWN = "start it again, later each time"
    RENEW = "start it again at once: it was asked to end"
    FORGET = "there is no such shard any more"


class Member:
    """A place, which stays while processes come and go in it. *respawn* is the timer of the next start.

    *began_at* is when its process was started, or found (monotonic time). *why_not_started* is said once, while the
    same keeps a process from being started.
    """

    __slots__ = ("_journal", "began_at", "care", "channel", "fate", "process", "respawn", "shard", "why_not_started")

    def __init__(self, shard: int, journal: Journal) -> None:
        self.shard = shard
        self.care = Care(shard)
        self.process: Process | None = None
        self.channel: HandoffChannel | None = None
        self.respawn: asyncio.TimerHandle | None = None
        self.fate = Fate.RESPAWN
        self.why_not_started = ""
        self.began_at = 0.0
        self._journal = journal

    @property
    def pid(self) -> int | None:
        """Its process; None while it has none."""
        return None if self.process is None else self.process.pid

    @property
    def uptime(self) -> float:
        """Seconds since its process was started, or found; those included in which the supervisor was stopped."""
        return 0.0 if self.process is None else round(time.monotonic() - self.began_at, 1)

    def note(self, code: str, text: str, more: str = "") -> None:
        """Keep what happened to it: *text* for status, with *more* for the history."""
        self.care.note(text, rfc3339(time.time()))
        self._journal.shard(self.shard, code, text + more)
