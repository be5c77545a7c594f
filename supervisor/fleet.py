"""Start, adopt, watch, replace and end the shards' processes."""

import asyncio
import contextlib
import itertools
import secrets
import signal
import time
from collections.abc import Callable, Collection

from dialout import awake
from ipc import events
from ipc.at_work import read_note
from ipc.events import CloseCode
from ipc.logs import get_logger
from ipc.options import PoolOptions
from ipc.rundir import RuntimeDir
from ipc.status import ShardRow, ShardState
from ipc.timers import Every
from supervisor.care import Care, capacity_of
from supervisor.handoffs import Handoffs
from supervisor.journal import Journal
from supervisor.ledger import Ledger
from supervisor.lines import Lines
from supervisor.member import Fate, Member
from supervisor.moves import Moves
from supervisor.processes import Process, adopt_shard, start_shard
from supervisor.totals import Totals

LONGEST_PAUSE = 2.0
"""Longest pause, in seconds, between attempts to start a process while disk space or descriptors are missing. An
attempt takes 100 µs."""

TICK = 0.25
"""Seconds between two checks for silent shards and for channels that must be connected again."""


class Fleet:
    """All shards of this supervisor.

    *on_freed* gets an agent's id after a shard has reported a closed connection of it. *on_probed* gets the numbers of
    a probe and of a shard that has answered it. *on_gone* gets the number of a shard after its process has ended. The
    ledger is up to date when they are called. *journal* records the events.
    """

    def __init__(
        self,
        rundir: RuntimeDir,
        ledger: Ledger,
        handoffs: Handoffs,
        moves: Moves,
        journal: Journal,
        *,
        on_probed: Callable[[int, int], None],
        on_freed: Callable[[str], None],
        on_gone: Callable[[int], None],
        pool: PoolOptions,
        log_level: str,
        log_format: str,
        status_dir: RuntimeDir | None = None,
    ) -> None:
        self._rundir, self._status_dir = rundir, status_dir
        self._ledger, self._handoffs, self._moves, self._journal = ledger, handoffs, moves, journal
        self._on_gone = on_gone
        self._pool, self._log_level, self._log_format = pool, log_level, log_format
        self._loop = asyncio.get_running_loop()
        self._clock = awake.clock()
        self._log = get_logger()
        self._members: dict[int, Member] = {}
        self.totals = Totals.decode(rundir.read_totals())
        """The counters of ended processes, also of an earlier supervisor's."""
        self._stopping = False
        self.turns = 0
        """The number of checks of all shards. It grows as long as this supervisor works."""
        self.known = asyncio.Event()
        """Set once the ledger has the connections of all running shards. From then on no taken slot is given away."""
        self.ready = asyncio.Event()
        """Set once no shard is starting, and the ledger has the connections of all running shards."""
        self._emptied = asyncio.Event()
        self.lines = Lines(
            rundir,
            self._members,
            ledger,
            handoffs,
            moves,
            journal,
            on_probed=on_probed,
            on_freed=on_freed,
            on_known=self._look_whether_ready,
        )
        self._timer = Every(TICK, self._tick)

    # Beginning, and ending.

    def start(self, shards: int, foreign: Collection[int] = ()) -> None:
        """Adopt all shards that an earlier supervisor left running, and start new ones until there are *shards*.

        When there are more, all of them serve. An operation can end the surplus and move their connections. *foreign*
        shards are drained.
        """
        for shard in list(self._rundir.recorded_shards()):
            record = self._rundir.read_shard(shard)
            process = None if record is None else adopt_shard(record)
            if record is None or process is None:
                self._forget(shard)
                continue
            member = self._members[shard] = Member(shard, self._journal)
            member.care.begin(record.epoch, self._clock.time(), found=True)
            self.lines.census.ask(shard)
            self._watch(member, process, "adopted")
        # Only after the loop above: the census is complete only when it has asked all adopted shards.
        for member in list(self._members.values()):
            if member.shard in foreign:
                self.lines.give_up(member)
            else:
                self.lines.connect(member)
        while len(self._members) < shards:
            self.add(self.free_number())
        self._look_whether_ready()

    def leave(self) -> None:
        """Let go of all shards. They serve on until another supervisor adopts them."""
        self._stopping = True
        # The next supervisor's channels replace ours, so a lost channel needs no warning.
        self.lines.closing()
        for member in self._members.values():
            if member.respawn is not None:
                member.respawn.cancel()
            if member.process is not None:
                self._loop.remove_reader(member.process.pidfd)
                member.process.close()
        self._close()

    async def stop(self, grace: float) -> None:
        """End all shards, and return when their processes have ended.

        They get a Stop command first, SIGTERM after *grace* seconds, and SIGKILL one second later.
        """
        self._stopping = True
        self.lines.closing()
        for member in list(self._members.values()):
            member.fate = Fate.FORGET
            self._ask_to_end(member, events.Stop())
        for wait, number in ((grace, signal.SIGTERM), (1.0, signal.SIGKILL), (5.0, signal.SIGKILL)):
            if await self._gone_within(wait):
                break
            for member in self._members.values():
                if member.process is not None:
                    self._log.warning("shard does not end", shard=member.shard, signal=number.name)
                    member.process.send_signal(number)
        self._close()
        self._rundir.forget_totals()

    def kill(self) -> None:
        """End all shards at once."""
        for member in self._members.values():
            if member.process is not None:
                member.process.send_signal(signal.SIGKILL)

    # For operators.

    @property
    def shards(self) -> list[int]:
        """The numbers of all shards, ascending. Shards that are down for the moment are among them."""
        return sorted(self._members)

    def free_number(self) -> int:
        """The lowest number that no shard has."""
        return next(number for number in itertools.count() if number not in self._members)

    def add(self, shard: int) -> None:
        """Start a shard. No other shard has its number."""
        member = self._members[shard] = Member(shard, self._journal)
        self._spawn(member)

    def end(self, shard: int, seconds: float, *, again: bool) -> None:
        """Ask a shard to end within *seconds*. Then start it *again*, or forget it."""
        member = self._members[shard]
        member.fate = Fate.RENEW if again else Fate.FORGET
        if member.process is not None:
            member.care.end_by = self._clock.time() + seconds
        self._ask_to_end(member, events.Stop(seconds))

    def drain(self, shard: int, *, draining: bool) -> None:
        """Stop giving a shard connections, or begin again."""
        member = self._members[shard]
        member.care.draining = draining
        member.note(*(("draining", "drains") if draining else ("undrained", "takes connections")))
        self._handoffs.drain(shard, draining=draining)

    def is_draining(self, shard: int) -> bool:
        """Whether a shard was set to drain, see `drain`."""
        return self._members[shard].care.draining

    def is_running(self, shard: int) -> bool:
        """Whether a shard takes connections, or would take them without its drain."""
        member = self._members.get(shard)
        return member is not None and member.care.state is ShardState.RUNNING and self._handoffs.has_link(shard)

    def has_failed(self, shard: int) -> bool:
        """Whether a new shard could not be started, or its process has ended already."""
        member = self._members.get(shard)
        return member is None or member.process is None or member.care.restarts > 0

    def pid(self, shard: int) -> int | None:
        """The pid of a shard; None when it has no process, or there is no such shard."""
        member = self._members.get(shard)
        return None if member is None else member.pid

    @property
    def running(self) -> int:
        """How many shards take connections, or would take them without their drain."""
        return sum(map(self.is_running, self._members))

    @property
    def is_settled(self) -> bool:
        """Whether no shard is starting or ending, and the ledger has the connections of all of them."""
        return self.lines.census.is_complete and all(
            care.state is not ShardState.STARTING and care.end_by is None for care in self.cares
        )

    @property
    def cares(self) -> list[Care]:
        """The states of all shards, ascending by number. Read only."""
        return [member.care for _, member in sorted(self._members.items())]

    def rows(self) -> list[ShardRow]:
        """The rows of the shards for status."""
        now = self._clock.time()
        rows = [member.care.row(member.pid, now) for _, member in sorted(self._members.items())]
        for row in rows:
            row.uptime_s = self._members[row.id].uptime
            row.slots = self._ledger.load(row.id)
        return rows

    def set_log_level(self, level: str) -> list[int]:
        """Set the log level of all present and future shards. Returns the shards that cannot be reached now."""
        # A shard that is down is started with this level. One that comes up now may have been started with another.
        self._log_level = self.lines.log_level = level
        return [shard for shard in self.shards if not self.lines.send(shard, events.SetLogLevel(level))]

    # Processes.

    def _spawn(self, member: Member) -> None:
        shard = member.shard
        member.respawn = None
        self._forget(shard)
        epoch = secrets.token_hex(6)
        try:
            # A process without room for its sockets would end at once.
            self._rundir.check_usable()
            process = start_shard(
                shard, epoch, self._rundir, self._pool, self._log_level, self._log_format, self._status_dir
            )
        except OSError as error:
            delay = min(LONGEST_PAUSE, max(1.0, member.care.backoff.after_death(0.0)))
            reason = ": ".join(filter(None, (error.filename, error.strerror)))
            if reason != member.why_not_started:
                member.why_not_started = reason
                member.note("cannot_start", f"cannot be started: {reason}")
                self._log.error("shard cannot be started, trying again", shard=shard, reason=reason, again_in_s=delay)
            member.respawn = self._loop.call_later(delay, self._spawn, member)
            return
        member.why_not_started = ""
        member.care.begin(epoch, self._clock.time())
        self._watch(member, process, "started")

    def _watch(self, member: Member, process: Process, code: str) -> None:
        member.process, member.began_at = process, time.monotonic()
        member.note(code, f"{code} pid {process.pid}")
        self._loop.add_reader(process.pidfd, self._ended, member)
        self._log.info("shard starting", shard=member.shard, pid=process.pid, epoch=member.care.epoch)

    def _ask_to_end(self, member: Member, command: events.Stop) -> None:
        """Ask a member's process to end, with `member.fate` set before. Without a process the fate applies at once."""
        if member.process is None:
            if member.respawn is not None:
                member.respawn.cancel()
            self._meet_fate(member)
            return
        if member.care.state is not ShardState.DRAINING:
            member.care.go(ShardState.DRAINING)
        if not self.lines.send(member.shard, command):
            member.process.send_signal(signal.SIGTERM)

    def _ended(self, member: Member) -> None:
        """Handle the end of a process. The kernel has closed its descriptors."""
        process, care, shard = member.process, member.care, member.shard
        assert process is not None
        self._loop.remove_reader(process.pidfd)
        how = process.reap()
        process.close()
        if member.channel is not None:
            # Its last messages may have connections that it has let go of.
            member.channel.take_the_rest()
        if member.channel is not None:
            member.channel.close()
        member.process = member.channel = None
        if self.totals.end(shard, care.report, care.latency) and not self._stopping:
            self._rundir.write_totals(self.totals.encode())
        care.end()
        gone = self._ledger.drop_shard(shard)
        was_asked = member.fate is not Fate.RESPAWN
        self._journal.lost(shard, gone, CloseCode.SHARD_STOPPED if was_asked else CloseCode.SHARD_DIED)
        self._handoffs.remove_shard(shard)
        self._moves.shard_ended(shard)
        self.lines.census.forget(shard)
        self._on_gone(shard)
        if was_asked:
            member.note("stopped", f"pid {process.pid} {how}")
            self._log.info("shard stopped", shard=shard, pid=process.pid, how=how)
            self._meet_fate(member)
        else:
            delay = care.backoff.after_death(self._clock.time() - care.started_at)
            care.restarts += 1
            lost = f"; connections lost: {len(gone)}; starting again in {delay:g} s"
            member.note("died", f"pid {process.pid} {how}", lost)
            self._log.error(
                "shard ended, starting it again",
                shard=shard, pid=process.pid, how=how, connections_lost=len(gone), in_s=delay,
            )  # fmt: skip
            member.respawn = self._loop.call_later(delay, self._spawn, member)
        self._look_whether_ready()

    def _meet_fate(self, member: Member) -> None:
        """Start a shard again or forget it, after its process has ended on request."""
        fate, member.fate = member.fate, Fate.RESPAWN
        if fate is Fate.RENEW:
            self._spawn(member)
            return
        del self._members[member.shard]
        self._handoffs.drain(member.shard, draining=False)
        self._forget(member.shard)
        if not self._members:
            self._emptied.set()

    def _forget(self, shard: int) -> None:
        """Remove a shard's record and sockets."""
        self._rundir.forget_shard(shard)
        if self._status_dir is not None:
            self._status_dir.forget_shard(shard)

    async def _gone_within(self, seconds: float) -> bool:
        if self._members:
            with contextlib.suppress(TimeoutError):
                async with self._clock.timeout(seconds):
                    await self._emptied.wait()
        return not self._members

    def _close(self) -> None:
        self._timer.cancel()
        self.lines.close()

    # State, and checks by time.

    def _look_whether_ready(self) -> None:
        census = self.lines.census
        if not census.is_complete:
            return
        self._look_at_capacity()
        if not self.known.is_set():
            self.known.set()
            self.lines.publisher.open()
        if all(care.state is not ShardState.STARTING for care in self.cares):
            census.decide()
            self.ready.set()

    def _tick(self) -> None:
        now = self._clock.time()
        for member in self._members.values():
            if member.process is not None and not self._stopping:
                self._look_after(member, member.process, now)
        self._look_at_capacity()
        self.turns += 1

    def _look_at_capacity(self) -> None:
        """Limit the ledger to the connections that descriptors allow, so that no shard has to decline any."""
        self._ledger.quotas = self._ledger.quotas.with_capacity(capacity_of(self.cares, self._ledger.load))

    def _at_work(self, shard: int, process: Process) -> str:
        """The work that a silent shard was doing when it fell silent, as text for people."""
        number = read_note(process.pid)
        for connection, agent_id in self._ledger.live_numbers(shard):
            if connection == number:
                return f"frames of {agent_id}-conn-{number}"
        return f"frames of connection {number}" if number else "no agent's frames"

    def _look_after(self, member: Member, process: Process, now: float) -> None:
        care, shard = member.care, member.shard
        if member.channel is None and care.sequence is not None and not care.foreign:
            self.lines.connect(member)
        if care.is_silent(now):
            care.go(ShardState.UNHEALTHY)
            member.note("silent", "silent")
            self._log.error("shard is silent, it gets no connections", shard=shard, pid=process.pid)
            self._handoffs.set_silent(shard)
        if care.state in (ShardState.STARTING, ShardState.UNHEALTHY):
            cpu = process.cpu_seconds()
            if cpu is not None and care.used(cpu, now) and care.state is ShardState.UNHEALTHY:
                on = self._at_work(shard, process)
                self._log.warning("silent shard works, and gets more time", shard=shard, pid=process.pid, on=on)
                member.note("busy", "busy", f" with {on}")
        number = care.signal_due(now)
        if number is None:
            return
        if number is signal.SIGABRT:
            silent_s, busy_s = round(now - care.heard_at, 1), round(care.busy_s, 1)
            on = self._at_work(shard, process)
            self._log.error(
                "replacing a silent shard", shard=shard, pid=process.pid, silent_s=silent_s, busy_s=busy_s, on=on
            )
            what = f", and worked for {busy_s} s, at last on {on}" if busy_s else ", and did not work"
            self._journal.shard(shard, "aborted", f"pid {process.pid} was silent for {silent_s} s{what}")
        else:
            self._log.warning("shard does not end", shard=shard, signal=number.name)
        process.send_signal(number)
