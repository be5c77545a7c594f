"""Record events in the history, and log accepted registrations.

The shards log how connections end, because they run on without a supervisor. Here an end goes only into the history.
"""

import time
from collections.abc import Iterable, Sequence

from dialout import Rejection
from ipc.events import CloseCode, Gone
from ipc.logs import Line
from supervisor.history import History
from supervisor.history_rows import NO_SHARD
from supervisor.ledger import Ledger
from supervisor.newcomer import Mover, Newcomer


class Journal:
    """Records events of agents, shards and the supervisor, with the time of the call.

    The numbers of events begin at the clock's microseconds, so that the next supervisor's numbers are higher.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.history = History(time.time_ns() // 1000, lambda agent_id: ledger.count(agent_id) > 0)
        # The address of a TCP peer takes 1.3 µs. The uid and pid of a Unix peer, with quotes, would take 3 µs of the 50
        # that such a registration takes in all. 'shardgate connections' shows them.
        self._accepted = {
            transport: Line(
                "registration accepted",
                "more registrations accepted",
                names=("agent_id", "connection_id", "transport", *more),
                numbers=("shard", "duration_s"),
            )
            for transport, more in (("uds", ()), ("tcp", ("peer",)))
        }

    def accepted(self, shard: int, newcomers: Sequence[Newcomer]) -> None:
        """Note connections that were committed to *shard*: their Commit message has left. Moved ones are skipped."""
        now = time.time()
        committed_at = time.monotonic()
        history = self.history
        for newcomer in newcomers:
            if isinstance(newcomer, Mover):
                continue
            assert newcomer.offer is not None
            agent_id, number = newcomer.offer.agent_id, newcomer.number
            seconds = committed_at - newcomer.accepted_at
            history.registered(now, agent_id, number, shard, seconds)
            transport = newcomer.transport
            line = self._accepted[transport]
            if line.allows(agent_id):
                peer = (newcomer.peer(),) if transport == "tcp" else ()
                line.write(now, agent_id, f"{agent_id}-conn-{number}", transport, *peer, shard, seconds)

    def refused(self, newcomer: Newcomer, rejection: Rejection) -> None:
        """Note a refusal. `supervisor.farewell` writes the log line."""
        self.history.refused(
            time.time(), newcomer.agent_id, newcomer.peer(), rejection.error_code.value, rejection.message
        )

    def closed(self, shard: int, gone: Gone) -> None:
        """Note a connection that its shard has reported as closed."""
        self.history.closed(time.time(), gone.agent_id, gone.number, shard, gone.code[:32], gone.seconds, gone.detail)

    def lost(self, shard: int, connections: Iterable[tuple[int, str]], code: CloseCode) -> None:
        """Note connections (number, agent id) that ended without a report from their shard."""
        now = time.time()
        for number, agent_id in sorted(connections):
            self.history.closed(now, agent_id, number, shard, code.value)

    def adopted(self, shard: int, connections: Iterable[tuple[int, str]]) -> None:
        """Note connections (number, agent id) of a shard that the ledger did not have."""
        now = time.time()
        for number, agent_id in sorted(connections):
            self.history.adopted(now, agent_id, number, shard)

    def moved(self, mover: Mover, shard: int | None) -> None:
        """Note the shard that serves a moved connection. None: it was lost with the shard that it came from."""
        assert mover.offer is not None
        agent_id, number, now = mover.offer.agent_id, mover.number, time.time()
        if shard is None:
            text = "lost between two shards"
            self.history.closed(now, agent_id, number, NO_SHARD, CloseCode.LOST_SIGHT.value, 0.0, text)
        elif shard != mover.began_at:
            self.history.moved(now, agent_id, number, mover.began_at, shard)

    def shard(self, shard: int, code: str, text: str) -> None:
        """Note an event of a shard's process."""
        self.history.shard(time.time(), shard, code, text)

    def supervisor(self, code: str, text: str = "") -> None:
        """Note an event of the supervisor."""
        self.history.supervisor(time.time(), code, text)

    def close(self) -> None:
        """Log how many lines were suppressed in the last second."""
        for line in self._accepted.values():
            line.close()
