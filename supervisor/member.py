"""The fleet's record of one shard: its state, its process, its handoff channel, and its fate when the process ends."""

import asyncio
import time
from enum import Enum

from ipc.handoff import HandoffChannel
from supervisor.care import Care
from supervisor.journal import Journal
from supervisor.merge import rfc3339
from supervisor.processes import Process


class Fate(Enum):
    """The fleet's action when a shard's process ends."""

    RESPAWN = "start it again, later each time"
    RENEW = "start it again at once: it was asked to end"
    FORGET = "there is no such shard any more"


class Member:
    """The record of one shard. It outlives the shard's processes. *respawn* is the timer of the next start.

    *began_at* is the time at which its process was started or adopted (monotonic). *why_not_started* is the last reason
    why no process could be started; the same reason is logged once.
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
        """The pid of its process; None while it has none."""
        return None if self.process is None else self.process.pid

    @property
    def uptime(self) -> float:
        """Seconds since its process was started or adopted. Seconds in which the supervisor was stopped count too."""
        return 0.0 if self.process is None else round(time.monotonic() - self.began_at, 1)

    def note(self, code: str, text: str, more: str = "") -> None:
        """Record an event of the shard: *text* for status, *text* and *more* for the history."""
        self.care.note(text, rfc3339(time.time()))
        self._journal.shard(self.shard, code, text + more)
