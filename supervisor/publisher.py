"""Publish to the shards how many live connections each agent has on each shard."""

import time

from ipc import events
from ipc.bus import Bus
from ipc.rundir import RuntimeDir
from ipc.timers import Every
from supervisor.ledger import Ledger

GATHER_SECONDS = 0.02
"""Seconds for which changes are gathered, so that a burst of registrations makes one message."""

SILENT_TURNS = 50
"""Turns without a change after which an empty message is sent. It lets a shard notice a lost message."""


class Publisher:
    """Publishes the ledger's changes, and makes the full directory for a shard that asks."""

    def __init__(self, rundir: RuntimeDir, ledger: Ledger) -> None:
        self._ledger = ledger
        self._rundir = rundir
        self._bus = Bus.publisher()
        self.bind()
        # From the clock, so that no number follows the last one of an earlier supervisor without a gap.
        self._sequence = time.time_ns() // 1_000_000
        self._silent = 0
        self._is_open = False
        self._timer = Every(GATHER_SECONDS, self._turn)

    def bind(self) -> None:
        """Listen, also again after the socket's file was removed. Existing connections stay."""
        self._bus.bind(self._rundir.counts)

    def open(self) -> None:
        """Begin to publish. Call it when the ledger is complete; before that agents would seem to be gone."""
        self._is_open = True

    def full(self) -> events.FullDirectory | None:
        """All counts, under the number of the newest published message; None before `open`."""
        if not self._is_open:
            return None
        # Later changes are published again with the next message. That does no harm: counts are no differences.
        ledger = self._ledger
        counts = {agent_id: ledger.live_counts(agent_id) for agent_id in ledger.agent_ids()}
        return events.FullDirectory(self._sequence, {agent_id: shards for agent_id, shards in counts.items() if shards})

    def close(self) -> None:
        """Publish no more."""
        self._timer.cancel()
        self._bus.close()

    def _turn(self) -> None:
        changed = self._ledger.changed
        self._silent += 1
        if not self._is_open or (not changed and self._silent < SILENT_TURNS):
            return
        self._silent = 0
        self._sequence += 1
        counts = {agent_id: self._ledger.live_counts(agent_id) for agent_id in changed}
        changed.clear()
        self._bus.send(events.encode(events.Counts(self._sequence, counts)))
