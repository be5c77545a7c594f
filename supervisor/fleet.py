"""The shards' processes: started, watched, replaced, stopped; and the supervisor's end of the bus."""

import asyncio
import itertools
import secrets
import signal
import time
from collections.abc import Callable, Collection
from enum import Enum

import msgspec

from ipc import events, handoff
from ipc.bus import Bus
from ipc.events import CloseCode
from ipc.handoff import HandoffChannel
from ipc.logs import get_logger
from ipc.messages import Hello, Message, Moving, Staying
from ipc.options import PoolOptions
from ipc.rundir import RuntimeDir
from ipc.status import ShardRow, ShardState
from supervisor.care import KILL_AFTER, Care
from supervisor.handoffs import Handoffs
from supervisor.journal import Journal
from supervisor.ledger import Ledger
from supervisor.moves import Moves
from supervisor.processes import Process, adopt_shard, start_shard
from supervisor.publisher import Publisher
from supervisor.totals import Totals

TICK = 0.25
"""Seconds between looks at silence and at channels that are to be connected again."""


END_MARGIN = 3.0
"""Seconds beyond its own time after which a shard that was asked to end gets SIGTERM, and once more SIGKILL."""

FOREIGN_LIMIT = 20.0
"""Seconds that a shard of another version has to drain; it takes 10 s by itself."""

ADOPTION_PAUSE = 0.01
"""Seconds between attempts to ask an adopted shard what it holds; it is back on the bus after 50 ms as a rule."""

ASK_AGAIN = 1.0
"""Seconds after which a snapshot that has not come is asked for again."""


class Fate(Enum):
    """What becomes of a shard's place when its process ends."""

    RESPAWN = "start it again, later each time"
    RENEW = "start it again at once: it was asked to end"
    FORGET = "there is no such shard any more"


class Member:
    """One shard's place in the fleet: what is known of it, and what is held open for it."""

    __slots__ = (
        "asked_at",
        "believed",
        "care",
        "channel",
        "end_by",
        "fate",
        "foreign",
        "process",
        "recalled",
        "request",
        "respawn",
    )

    def __init__(self, shard: int) -> None:
        self.care = Care(shard)
        self.process: Process | None = None
        self.channel: HandoffChannel | None = None
        self.respawn: asyncio.TimerHandle | None = None
        self.fate = Fate.RESPAWN
        # Loop time by which a process that was asked to end should have done so.
        self.end_by: float | None = None
        # The snapshot that is waited for (0: it is still to be asked for), and what was believed when it was asked for.
        self.request: int | None = None
        self.asked_at = 0.0
        self.believed: set[tuple[int, str]] = set()
        # What the shard has let go of since then: a snapshot from before or after that says nothing about these.
        self.recalled: set[int] = set()
        # Whether its process speaks another version: it drains, and a new one takes its place.
        self.foreign = False


class Fleet:
    """All shards of this supervisor.

    *on_freed* is told of each agent that a slot became free for, *on_probed* gets a shard's answer to a probe,
    *on_gone* the number of a shard whose process has ended, both after the ledger was told. *journal* notes it all.
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
        self._ledger = ledger
        self._handoffs = handoffs
        self._moves = moves
        self._journal = journal
        moves.on_recalled = self._recalled
        self._on_probed, self._on_freed, self._on_gone = on_probed, on_freed, on_gone
        self._pool, self._log_level, self._log_format = pool, log_level, log_format
        # Whether the level was changed since the start: shards that come up then may have been started with another.
        self._tell_level = False
        self._first_number = ledger.next_number
        self._loop = asyncio.get_running_loop()
        self._log = get_logger()
        self._members: dict[int, Member] = {}
        self.totals = Totals.decode(rundir.read_totals())
        """What processes that have ended counted, those of an earlier supervisor included."""
        self.on_agents: Callable[[int, events.AgentsPage], None] | None = None
        """Gets a shard's answer to `ask_agents`."""
        self._next_request = 1
        self._found: list[tuple[int, int, str]] = []
        # Connections that a shard was found to hold on their way to, or from, another one.
        self._adrift: set[int] = set()
        self._stopping = False
        self.turns = 0
        """How often all shards have been looked at: it grows as long as this supervisor does its work."""
        self.known = asyncio.Event()
        """Set once what living shards hold is in the ledger: no slot can be given away that is taken."""
        self.ready = asyncio.Event()
        """Set once no shard is starting any more, and what living ones hold is in the ledger."""
        self._emptied: asyncio.Event = asyncio.Event()
        self._bus = Bus.router(self._on_bus)
        self._bus.bind(rundir.bus)
        self._publisher = Publisher(rundir, ledger)
        self._timer = self._loop.call_later(TICK, self._tick)

    # For the supervisor.

    def start(self, shards: int, foreign: Collection[int] = ()) -> None:
        """Adopt all shards that an earlier supervisor left running, and start as many as there are less than *shards*.

        When there are more, they all serve; to end some is an operation, which moves their connections. *foreign* ones
        cannot be adopted; they are draining.
        """
        for shard in list(self._rundir.recorded_shards()):
            record = self._rundir.read_shard(shard)
            process = None if record is None else adopt_shard(record)
            if record is not None and process is not None:
                member = self._members[shard] = Member(shard)
                member.care.begin(record.epoch, self._loop.time(), found=True)
                member.request = 0
                self._watch(member, process, "adopted", f"adopted pid {process.pid}")
                if shard in foreign:
                    self._drain_foreign(member)
                else:
                    self._connect(member)
            else:
                self._forget(shard)
        self._ask_adopted()
        while len(self._members) < shards:
            self.add(self.free_number())
        self._look_whether_ready()

    @property
    def shards(self) -> list[int]:
        """The numbers of all shards, those included that are down for the moment, ascending."""
        return sorted(self._members)

    def free_number(self) -> int:
        """The lowest number that no shard has."""
        return next(number for number in itertools.count() if number not in self._members)

    def add(self, shard: int) -> None:
        """Start a shard with a number that none has."""
        member = self._members[shard] = Member(shard)
        self._spawn(member)

    def end(self, shard: int, seconds: float, *, again: bool) -> None:
        """Ask a shard to end within *seconds*, and start it *again* then, or forget it."""
        member = self._members[shard]
        member.fate = Fate.RENEW if again else Fate.FORGET
        if member.process is None:
            if member.respawn is not None:
                member.respawn.cancel()
            self._place_is_empty(member)
            return
        member.end_by = self._loop.time() + seconds + END_MARGIN
        if member.care.state is not ShardState.DRAINING:
            member.care.go(ShardState.DRAINING)
        if not self._send(shard, events.Stop(seconds)):
            member.process.send_signal(signal.SIGTERM)

    def drain(self, shard: int, *, draining: bool) -> None:
        """Give a shard no connections, or again some."""
        self._members[shard].care.draining = draining
        self._note(self._members[shard], *(("draining", "drains") if draining else ("undrained", "takes connections")))
        self._handoffs.drain(shard, draining=draining)

    def is_draining(self, shard: int) -> bool:
        """Whether a shard was told to drain."""
        return self._members[shard].care.draining

    def is_running(self, shard: int) -> bool:
        """Whether a shard takes connections, or could if it were not draining."""
        member = self._members.get(shard)
        return member is not None and member.care.state is ShardState.RUNNING and self._handoffs.has_link(shard)

    def has_failed(self, shard: int) -> bool:
        """Whether the process of a shard that was just started has ended again."""
        member = self._members.get(shard)
        return member is None or member.process is None or member.care.restarts > 0

    def pid(self, shard: int) -> int | None:
        """The process of a shard; None when it has none, or there is no such shard."""
        member = self._members.get(shard)
        return None if member is None or member.process is None else member.process.pid

    def rows(self) -> list[ShardRow]:
        """What status says about the shards."""
        now = self._loop.time()
        rows = [
            member.care.row(None if member.process is None else member.process.pid, now)
            for _, member in sorted(self._members.items())
        ]
        for row in rows:
            row.slots = self._ledger.load(row.id)
        return rows

    @property
    def cares(self) -> list[Care]:
        """What is known of each shard, ascending; to be read only."""
        return [member.care for _, member in sorted(self._members.items())]

    def ask_agents(self, shard: int, request: int, after: str, limit: int) -> bool:
        """Have a shard list agents; False when it cannot be asked."""
        return shard in self._members and self._send(shard, events.ListAgents(request, after, limit))

    def probe(self, shard: int, probe: int, agent_id: str) -> bool:
        """Have a shard look at an agent's connections; False when it cannot be asked."""
        return self._send(shard, events.Probe(probe, agent_id))

    def push_config(self, shard: int, config: bytes, agent_ids: list[str]) -> bool:
        """Have a shard bring agents their configuration; False when it cannot be told."""
        return self._send(shard, events.PushConfig(config, agent_ids))

    def kick(self, shard: int, numbers: list[int], seconds: float) -> bool:
        """Have a shard close connections within *seconds*; False when it cannot be told."""
        return self._send(shard, events.Kick(numbers, seconds))

    def set_log_level(self, level: str) -> list[int]:
        """Have all shards, and those that will be started, log from *level* on; which of them cannot be told now."""
        self._log_level, self._tell_level = level, True
        # Those that are down for the moment are started with it.
        return [shard for shard in self.shards if not self._send(shard, events.SetLogLevel(level))]

    async def stop(self, grace: float) -> None:
        """End all shards and return when they are gone: asked first, SIGTERM after *grace* seconds, then SIGKILL."""
        self._stopping = True
        for member in self._members.values():
            if member.respawn is not None:
                member.respawn.cancel()
            if member.process is not None:
                if member.care.state is not ShardState.DRAINING:
                    member.care.go(ShardState.DRAINING)
                if not self._send(member.care.shard, events.Stop()):
                    member.process.send_signal(signal.SIGTERM)
        for wait, number in ((grace, signal.SIGTERM), (1.0, signal.SIGKILL), (5.0, signal.SIGKILL)):
            if await self._gone_within(wait):
                break
            for member in self._members.values():
                if member.process is not None:
                    self._log.warning("shard does not end", shard=member.care.shard, signal=number.name)
                    member.process.send_signal(number)
        self._timer.cancel()
        self._publisher.close()
        self._bus.close()
        self._rundir.forget_totals()

    @property
    def running(self) -> int:
        """How many shards take connections, or could if they were not draining."""
        return sum(map(self.is_running, self._members))

    @property
    def is_settled(self) -> bool:
        """Whether no shard is starting or ending, and the ledger knows what they hold."""
        return all(
            member.care.state is not ShardState.STARTING and member.request is None and member.end_by is None
            for member in self._members.values()
        )

    def leave(self) -> None:
        """Let go of all shards, which serve on: another supervisor adopts them."""
        self._stopping = True
        self._timer.cancel()
        for member in self._members.values():
            if member.respawn is not None:
                member.respawn.cancel()
            if member.process is not None:
                self._loop.remove_reader(member.process.pidfd)
                member.process.close()
        self._publisher.close()
        self._bus.close()

    def kill(self) -> None:
        """End all shards at once."""
        for member in self._members.values():
            if member.process is not None:
                member.process.send_signal(signal.SIGKILL)

    # Processes.

    def _spawn(self, member: Member) -> None:
        shard = member.care.shard
        member.respawn = None
        self._forget(shard)
        epoch = secrets.token_hex(6)
        try:
            process = start_shard(
                shard, epoch, self._rundir, self._pool, self._log_level, self._log_format, self._status_dir
            )
        except OSError as error:
            delay = max(1.0, member.care.backoff.after_death(0.0))
            self._log.error("shard cannot be started", shard=shard, reason=error.strerror, again_in_s=delay)
            member.respawn = self._loop.call_later(delay, self._spawn, member)
            return
        member.care.begin(epoch, self._loop.time())
        self._watch(member, process, "started", f"started pid {process.pid}")

    def _note(self, member: Member, code: str, text: str) -> None:
        """Keep what happened to a shard, for status and for the history."""
        member.care.note(text, _time_of_day())
        self._journal.shard(member.care.shard, code, text)

    def _watch(self, member: Member, process: Process, code: str, text: str) -> None:
        member.process = process
        self._note(member, code, text)
        self._loop.add_reader(process.pidfd, self._ended, member)
        self._log.info("shard starting", shard=member.care.shard, pid=process.pid, epoch=member.care.epoch)

    def _ended(self, member: Member) -> None:
        """A process has ended, and with it every descriptor that it held."""
        process, care = member.process, member.care
        assert process is not None
        self._loop.remove_reader(process.pidfd)
        how = process.reap()
        process.close()
        if member.channel is not None:
            # Connections that it had let go of may be among its last words.
            member.channel.take_the_rest()
        if member.channel is not None:
            member.channel.close()
        member.process = member.channel = member.request = member.end_by = None
        member.foreign = False
        if self.totals.end(care.shard, care.report, care.latency) and not self._stopping:
            self._rundir.write_totals(self.totals.encode())
        care.go(ShardState.DOWN)
        gone = self._ledger.live_numbers(care.shard)
        lost = self._ledger.drop_shard(care.shard)
        self._journal.lost(
            care.shard, gone, CloseCode.SHARD_STOPPED if self._is_wanted(member) else CloseCode.SHARD_DIED
        )
        self._handoffs.shard_ended(care.shard)
        self._moves.shard_ended(care.shard)
        self._found = [found for found in self._found if found[0] != care.shard]
        self._on_gone(care.shard)
        self._look_whether_ready()
        if self._is_wanted(member):
            self._note(member, "stopped", f"pid {process.pid} {how}")
        if self._stopping:
            self._forget(care.shard)
            self._log.info("shard stopped", shard=care.shard, pid=process.pid, how=how)
            if all(other.process is None for other in self._members.values()):
                self._emptied.set()
            return
        if member.fate is not Fate.RESPAWN:
            self._log.info("shard stopped", shard=care.shard, pid=process.pid, how=how)
            self._place_is_empty(member)
            return
        delay = care.backoff.after_death(self._loop.time() - care.started_at)
        care.restarts += 1
        again = f"; connections lost: {lost}; starting again in {delay:g} s"
        care.note(f"pid {process.pid} {how}", _time_of_day())
        self._journal.shard(care.shard, "died", f"pid {process.pid} {how}{again}")
        self._log.error(
            "shard ended, starting it again",
            shard=care.shard, pid=process.pid, how=how, connections_lost=lost, in_s=delay,
        )  # fmt: skip
        member.respawn = self._loop.call_later(delay, self._spawn, member)

    def _forget(self, shard: int) -> None:
        """Remove a shard's record and sockets."""
        self._rundir.forget_shard(shard)
        if self._status_dir is not None:
            self._status_dir.forget_shard(shard)

    def _is_wanted(self, member: Member) -> bool:
        """Whether the end of this shard's process was asked for."""
        return self._stopping or member.fate is not Fate.RESPAWN

    def _place_is_empty(self, member: Member) -> None:
        """Do with the place of a shard that was asked to end what was meant to be done with it."""
        fate, member.fate = member.fate, Fate.RESPAWN
        shard = member.care.shard
        if fate is Fate.RENEW:
            self._spawn(member)
        else:
            del self._members[shard]
            self._handoffs.drain(shard, draining=False)
            self._forget(shard)

    def _look_whether_ready(self) -> None:
        if any(member.request is not None for member in self._members.values()):
            return
        if not self.known.is_set():
            self.known.set()
            self._publisher.open()
        if all(member.care.state is not ShardState.STARTING for member in self._members.values()):
            found, self._found = self._found, []
            for shard, number, agent_id in found:
                if self._handoffs.has_link(shard):
                    self._decide_found(shard, number, agent_id)
                else:
                    self._found.append((shard, number, agent_id))
            if not self._found:
                self._adrift.clear()
            self.ready.set()

    async def _gone_within(self, seconds: float) -> bool:
        if all(member.process is None for member in self._members.values()):
            return True
        try:
            async with asyncio.timeout(seconds):
                await self._emptied.wait()
        except TimeoutError:
            return False
        return True

    # Channels.

    def _connect(self, member: Member) -> None:
        shard = member.care.shard
        try:
            sock = handoff.connect(self._rundir.shard_handoff(shard))
        except OSError:
            return  # The tick tries again.

        def on_message(message: Message, descriptors: list[int]) -> None:
            if isinstance(message, Moving):
                self._moves.let_go(shard, message, descriptors)
                return
            handoff.close_all(descriptors)
            if isinstance(message, Hello):
                self._greeted(member, message)
            elif isinstance(message, Staying):
                self._moves.staying(message)
            else:
                self._handoffs.on_message(shard, message)

        def on_lost(reason: str) -> None:
            foreign = member.channel is not None and member.channel.unreadable
            member.channel = None
            if not self._stopping and member.care.state is not ShardState.DRAINING:
                self._log.warning("handoff channel lost", shard=shard, reason=reason)
            self._handoffs.remove_shard(shard)
            if foreign and not self._stopping:
                self._drain_foreign(member)

        member.channel = HandoffChannel(sock, on_message, on_lost)

    def _drain_foreign(self, member: Member) -> None:
        """Have a shard end that nobody can talk to; its agents reconnect, and its place gets a new one."""
        member.foreign = True
        member.request = None
        if member.care.state is not ShardState.DRAINING and member.process is not None:
            member.care.go(ShardState.DRAINING)
            self._note(member, "foreign", "speaks another version, drains")
            self._log.warning("draining a foreign shard", shard=member.care.shard, pid=member.process.pid)
            member.process.send_signal(signal.SIGTERM)
        self._look_whether_ready()

    def _greeted(self, member: Member, hello: Hello) -> None:
        care = member.care
        if hello.epoch != care.epoch or member.channel is None:
            return
        self._handoffs.add_shard(care.shard, member.channel)
        if self._tell_level:
            self._send(care.shard, events.SetLogLevel(self._log_level))
        if care.state is not ShardState.STARTING or member.request == 0:
            # A channel in place of a lost one, or of an earlier supervisor's: the shard has decided by now what becomes
            # of connections that were on their way then.
            self._ask_for_snapshot(member)
        if care.state is ShardState.STARTING:
            care.go(ShardState.RUNNING)
            self._journal.shard(care.shard, "running", f"pid {hello.pid} takes connections")
            self._log.info("shard running", shard=care.shard, pid=hello.pid)
        self._look_whether_ready()

    # The bus.

    def _send(self, shard: int, command: events.Command) -> bool:
        identity = events.identity(shard, self._members[shard].care.epoch)
        return self._bus.send(identity.encode(), events.encode(command))

    def _on_bus(self, parts: list[bytes]) -> None:
        name = events.parse_identity(parts[0])
        member = None if name is None else self._members.get(name[0])
        if name is None or member is None or member.care.epoch != name[1] or member.process is None:
            return  # An earlier life of a shard.
        try:
            event = events.decode_event(parts[-1])
        except msgspec.MsgspecError as error:
            self._log.error("bus event cannot be read", shard=name[0], reason=str(error))
            return
        if member.care.hear(event.sequence, self._loop.time()) or member.request == 0:
            self._ask_for_snapshot(member)
        if member.channel is None and not member.foreign:
            self._connect(member)
        self._take(member, event)

    def _take(self, member: Member, event: events.Event) -> None:
        shard = member.care.shard
        if isinstance(event, events.Closed):
            for gone in event.connections:
                if self._ledger.release_live(gone.agent_id, gone.number, shard):
                    self._journal.closed(shard, gone)
                    self._on_freed(gone.agent_id)
        elif isinstance(event, events.Heartbeat):
            self._heartbeat(member, event)
        elif isinstance(event, events.Probed):
            self._on_probed(event.probe, shard)
        elif isinstance(event, events.Snapshot):
            self._reconcile(member, event)
        elif isinstance(event, events.AgentsPage):
            if self.on_agents is not None:
                self.on_agents(shard, event)
        elif isinstance(event, events.DirectoryRequest):
            member.care.wants_counts()
            directory = self._publisher.full()
            if directory is not None:  # The shard asks again.
                self._send(shard, directory)

    def _heartbeat(self, member: Member, event: events.Heartbeat) -> None:
        care = member.care
        care.report, care.latency = event.report, event.latency
        if care.state is ShardState.UNHEALTHY:
            care.go(ShardState.RUNNING)
            care.aborted_at = None
            self._note(member, "answers", "answers again")
            self._log.info("shard answers again", shard=care.shard)
        self._handoffs.heard_from(care.shard)
        held = event.report.connections + event.report.prepared
        if member.request is not None and self._loop.time() - member.asked_at > ASK_AGAIN:
            self._ask_for_snapshot(member)
        # While a snapshot is waited for, the counts may differ, and the next heartbeat compares them again.
        if member.request is None and care.is_doubtful(self._ledger.load(care.shard) - held):
            self._log.warning("counts differ", shard=care.shard, shard_says=held, ledger=self._ledger.load(care.shard))
            self._ask_for_snapshot(member)

    def _ask_for_snapshot(self, member: Member) -> None:
        if not self._handoffs.has_link(member.care.shard):
            member.request = 0  # Asked for when there is a channel, see `_greeted`.
            return
        believed = self._ledger.live_numbers(member.care.shard)
        if self._send(member.care.shard, events.SnapshotRequest(self._next_request)):
            member.request, member.believed, member.recalled = self._next_request, believed, set()
            member.asked_at = self._loop.time()
            self._next_request += 1

    def _ask_adopted(self) -> None:
        """Ask adopted shards what they hold as soon as they are on the bus: until the answer newcomers wait."""
        waiting = [one for one in self._members.values() if one.request == 0 and one.process is not None]
        for member in waiting:
            self._ask_for_snapshot(member)
        if waiting and not self._stopping:
            self._loop.call_later(ADOPTION_PAUSE, self._ask_adopted)

    def _recalled(self, shard: int, number: int) -> None:
        member = self._members.get(shard)
        if member is not None and member.request:
            member.recalled.add(number)

    def _reconcile(self, member: Member, event: events.Snapshot) -> None:
        if event.request != member.request:
            return  # A newer one has been asked for.
        shard = member.care.shard
        # A commit may be on its way: what the shard holds prepared is not gone.
        believed = member.believed - set(event.prepared) - set(event.moving)
        live, recalled = event.live, member.recalled
        if recalled:
            believed = {(number, agent_id) for number, agent_id in believed if number not in recalled}
            live = [(number, agent_id) for number, agent_id in live if number not in recalled]
        before = self._ledger.live_numbers(shard)
        changed = self._ledger.reconcile(shard, believed, live)
        member.request, member.believed, member.recalled = None, set(), set()
        if changed:
            after = self._ledger.live_numbers(shard)
            self._journal.lost(shard, before - after, CloseCode.LOST_SIGHT)
            self._journal.adopted(shard, after - before)
        self._log.info("ledger reconciled", shard=shard, connections=len(event.live), changed=changed)
        self._found += [(shard, number, agent_id) for number, agent_id in event.prepared if number < self._first_number]
        # What was let go of, and has its slot here still, is in a message on the channel, which the bus has overtaken.
        here = {number for number, _ in self._ledger.live_numbers(shard)} if event.let_go else set()
        coming = here.intersection(event.let_go)
        self._found += [
            (shard, number, agent_id)
            for number, agent_id in event.moving
            if number not in coming and not self._handoffs.is_moving(number)
        ]
        self._adrift.update(number for number, _ in event.moving)
        self._look_whether_ready()

    def _decide_found(self, shard: int, number: int, agent_id: str) -> None:
        """Commit, revoke or refuse a connection that an earlier supervisor left prepared.

        Decided when all shards have told what they hold: a stuck shard may have been passed over, and the same
        connection be served by another one.
        """
        served_by = self._ledger.shard_of(agent_id, number)
        is_member = number in self._adrift
        if self._handoffs.is_moving(number):
            return
        if served_by == shard:
            # Its commit is on the way, or was lost with a channel. One too many does no harm.
            self._handoffs.commit_found(shard, number)
        elif served_by is not None:
            self._handoffs.revoke_found(shard, number)
        elif is_member or self._ledger.count(agent_id) < self._ledger.limit:
            self._ledger.adopt(agent_id, number, shard)
            self._journal.adopted(shard, [(number, agent_id)])
            self._handoffs.commit_found(shard, number)
        else:
            self._handoffs.refuse_found(shard, number)

    # Time.

    def _tick(self) -> None:
        now = self._loop.time()
        self._timer = self._loop.call_later(TICK, self._tick)
        for member in self._members.values():
            care, process = member.care, member.process
            if process is None or self._stopping:
                continue
            if member.end_by is not None and now > member.end_by:
                number = signal.SIGTERM if now < member.end_by + END_MARGIN else signal.SIGKILL
                self._log.warning("shard does not end", shard=care.shard, signal=number.name)
                process.send_signal(number)
            if member.channel is None and care.sequence is not None and not member.foreign:
                self._connect(member)
            if care.is_silent(now):
                care.go(ShardState.UNHEALTHY)
                self._note(member, "silent", "silent")
                self._log.error("shard is silent, it gets no connections", shard=care.shard, pid=process.pid)
                self._handoffs.set_silent(care.shard)
            if care.is_lost(now) or (member.foreign and now - care.started_at > FOREIGN_LIMIT):
                self._replace(member, process, now)
        self.turns += 1

    def _replace(self, member: Member, process: Process, now: float) -> None:
        care = member.care
        if care.aborted_at is None:
            care.aborted_at = now
            silent_s = round(now - care.heard_at, 1)
            self._log.error("replacing a silent shard", shard=care.shard, pid=process.pid, silent_s=silent_s)
            self._journal.shard(care.shard, "aborted", f"pid {process.pid} was silent for {silent_s} s")
            process.send_signal(signal.SIGABRT)
        elif now - care.aborted_at > KILL_AFTER:
            process.send_signal(signal.SIGKILL)


def _time_of_day() -> str:
    return time.strftime("%H:%M:%S")
