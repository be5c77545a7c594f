"""The communication with the shards over handoff channels and the bus: commands to them, and handling of their events.

Commands go to the current process of a shard. Events from its earlier processes are dropped. A shard's first event on
the bus shows that its socket for supervisors exists. The Hello on its channel shows that it takes connections.
"""

import signal
from collections.abc import Callable, Mapping
from functools import partial

import msgspec

from dialout import awake
from ipc import events, handoff
from ipc.bus import Bus
from ipc.handoff import HandoffChannel
from ipc.logs import get_logger
from ipc.messages import Hello, Message, Moving, Staying
from ipc.rundir import RuntimeDir
from ipc.status import ShardState
from supervisor.census import Census
from supervisor.handoffs import Handoffs
from supervisor.journal import Journal
from supervisor.ledger import Ledger
from supervisor.member import Member
from supervisor.moves import Moves
from supervisor.publisher import Publisher


class Lines:
    """The channels and the bus to all of *members*, which the fleet keeps.

    *on_freed* gets an agent's id after a shard has reported a closed connection of it and its slot is free. *on_probed*
    gets the numbers of a probe and of a shard that has answered it. *on_known* is called when a shard takes
    connections, has sent its snapshot, or turns out to be foreign.
    """

    def __init__(
        self,
        rundir: RuntimeDir,
        members: Mapping[int, Member],
        ledger: Ledger,
        handoffs: Handoffs,
        moves: Moves,
        journal: Journal,
        *,
        on_probed: Callable[[int, int], None],
        on_freed: Callable[[str], None],
        on_known: Callable[[], None],
    ) -> None:
        self._rundir, self._members = rundir, members
        self._ledger, self._handoffs, self._moves, self._journal = ledger, handoffs, moves, journal
        self._on_probed, self._on_freed, self._on_known = on_probed, on_freed, on_known
        self.on_agents: Callable[[int, events.AgentsPage], None] | None = None
        """Called with a shard and its answer to `events.ListAgents`."""
        self.log_level: str | None = None
        """The log level for shards that come up; None when they were started with it."""
        self._clock = awake.clock()
        self._log = get_logger()
        self._closing = False
        self.census = Census(ledger, handoffs, moves, journal, self.send)
        self.publisher = Publisher(rundir, ledger)
        self._bus = Bus.router(self._hear)
        self.bind()

    def bind(self) -> None:
        """Listen, also again after the socket's file was removed. Existing connections stay."""
        self._bus.bind(self._rundir.bus)

    def send(self, shard: int, command: events.Command) -> bool:
        """Send a command to a shard. False when it cannot be reached now, or there is no such shard."""
        member = self._members.get(shard)
        if member is None:
            return False
        identity = events.identity(shard, member.care.epoch)
        return self._bus.send(identity.encode(), events.encode(command))

    def connect(self, member: Member) -> None:
        """Open the channel to a shard, if it listens. The caller tries again later."""
        try:
            sock = handoff.connect(self._rundir.shard_handoff(member.shard))
        except OSError:
            return
        member.channel = HandoffChannel(sock, partial(self._take, member), partial(self._lost, member))

    def give_up(self, member: Member) -> None:
        """Drain a shard that speaks another version. Its agents reconnect, and a new process takes its place."""
        care = member.care
        care.foreign = True
        self.census.forget(member.shard)
        if care.state is not ShardState.DRAINING and member.process is not None:
            care.go(ShardState.DRAINING)
            member.note("foreign", "speaks another version, drains")
            self._log.warning("draining a foreign shard", shard=member.shard, pid=member.process.pid)
            member.process.send_signal(signal.SIGTERM)
        self._on_known()

    def closing(self) -> None:
        """Expect the channels to close, and do not warn: the shards end, or another supervisor takes over."""
        self._closing = True

    def close(self) -> None:
        """Close the bus and the publisher, and stop the census."""
        self.census.close()
        self.publisher.close()
        self._bus.close()

    # Over the channel.

    def _take(self, member: Member, message: Message, descriptors: list[int]) -> None:
        if isinstance(message, Moving):
            self._moves.let_go(member.shard, message, descriptors)
            return
        handoff.close_all(descriptors)
        if isinstance(message, Hello):
            self._greeted(member, message)
        elif isinstance(message, Staying):
            self._moves.staying(message)
        else:
            self._handoffs.on_message(member.shard, message)

    def _greeted(self, member: Member, hello: Hello) -> None:
        care, shard = member.care, member.shard
        if hello.epoch != care.epoch or member.channel is None:
            return
        self._handoffs.add_shard(shard, member.channel)
        if self.log_level is not None:
            self.send(shard, events.SetLogLevel(self.log_level))
        if care.state is not ShardState.STARTING or self.census.wants(shard):
            # The channel replaces a lost one, or one of an earlier supervisor. By now the shard has decided about the
            # connections that were on their way then.
            self.census.ask(shard)
        if care.state is ShardState.STARTING:
            care.go(ShardState.RUNNING)
            self._journal.shard(shard, "running", f"pid {hello.pid} takes connections")
            self._log.info("shard running", shard=shard, pid=hello.pid)
        self._on_known()

    def _lost(self, member: Member, reason: str) -> None:
        is_foreign = member.channel is not None and member.channel.unreadable
        member.channel = None
        if not self._closing and member.care.state is not ShardState.DRAINING:
            self._log.warning("handoff channel lost", shard=member.shard, reason=reason)
        self._handoffs.remove_shard(member.shard)
        if is_foreign and not self._closing:
            self.give_up(member)

    # Over the bus.

    def _hear(self, parts: list[bytes]) -> None:
        shard, epoch = events.parse_identity(parts[0]) or (-1, "")
        member = self._members.get(shard)
        if member is None or member.process is None or member.care.epoch != epoch:
            return
        try:
            event = events.decode_event(parts[-1])
        except msgspec.MsgspecError as error:
            self._log.error("bus event cannot be read", shard=shard, reason=str(error))
            return
        missed = member.care.hear(event.sequence, self._clock.time())
        if not member.care.foreign:
            if missed:
                self.census.ask(shard)
            if member.channel is None:
                self.connect(member)
        self._follow(member, event)

    def _follow(self, member: Member, event: events.Event) -> None:
        shard = member.shard
        if isinstance(event, events.Closed):
            for gone in event.connections:
                if self._ledger.release_live(gone.agent_id, gone.number, shard):
                    self._journal.closed(shard, gone)
                    self._on_freed(gone.agent_id)
        elif isinstance(event, events.Heartbeat):
            self._beats(member, event)
        elif isinstance(event, events.Probed):
            self._on_probed(event.probe, shard)
        elif isinstance(event, events.Snapshot):
            self.census.take(shard, event)
            self._on_known()
        elif isinstance(event, events.AgentsPage):
            if self.on_agents is not None:
                self.on_agents(shard, event)
        elif isinstance(event, events.DirectoryRequest):
            member.care.wants_counts()
            directory = self.publisher.full()
            if directory is not None:  # The shard asks again.
                self.send(shard, directory)

    def _beats(self, member: Member, event: events.Heartbeat) -> None:
        care = member.care
        care.hears_of(event.report, event.latency)
        if care.state is ShardState.UNHEALTHY:
            care.answers_again()
            member.note("answers", "answers again")
            self._log.info("shard answers again", shard=care.shard)
        self._handoffs.heard_from(care.shard)
        if not care.foreign:
            self.census.compare(care, event.report.connections + event.report.prepared)
