"""Take listening sockets back from the shards that an earlier supervisor left running.

The caller holds the lock of the runtime directory, so no other supervisor owns these shards. All running shards are
asked at the same time. They keep copies of the same sockets, so one answer is enough. The shards close the unwanted
sockets before this supervisor opens new ones in their place.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from dialout import awake
from ipc import handoff
from ipc.handoff import HandoffChannel
from ipc.logs import get_logger
from ipc.messages import Hello, Kept, KeptListener, Message, TakeBack, entrusting
from ipc.rundir import RuntimeDir
from supervisor.care import KILL_AFTER, REPLACE_AFTER, WORKING_LONGER, WORKS_SHARE
from supervisor.config.model import Config
from supervisor.listeners import assign, has_its_path, wanted
from supervisor.processes import Process, adopt_shard

ANSWER_TIMEOUT = 1.0
"""Seconds for all shards to answer, when at least one does. Also seconds for a foreign shard to close its sockets."""


_NOTHING: Mapping[KeptListener, int] = {}


class TakenBack(NamedTuple):
    """The listening sockets that were taken back, with their descriptors, and the shards that speak another version."""

    listeners: dict[KeptListener, int]
    foreign: set[int]


class _Keeper:
    """A running shard of an earlier supervisor, and its answer."""

    def __init__(self, rundir: RuntimeDir, shard: int, epoch: str, process: Process) -> None:
        self.shard = shard
        self.epoch = epoch
        self.process = process
        self.kept: list[tuple[KeptListener, int]] = []
        self.has_answered = False
        self.over = asyncio.Event()
        self._handoff = rundir.shard_handoff(shard)
        self._channel: HandoffChannel | None = None

    @property
    def is_foreign(self) -> bool:
        """Whether its messages cannot be read: it speaks another version of the handoff."""
        return self._channel is not None and self._channel.unreadable

    @property
    def is_reachable(self) -> bool:
        """Whether it still listens for supervisors."""
        try:
            handoff.connect(self._handoff).close()
        except OSError:
            return False
        return True

    def ask(self) -> None:
        """Ask the shard for its sockets. *over* is set when it has answered, or when it cannot answer any more."""
        try:
            self._channel = HandoffChannel(handoff.connect(self._handoff), self._on_message, self._on_lost)
        except (ConnectionRefusedError, FileNotFoundError):
            # It drains, and has closed its kept sockets before.
            self.over.set()
        except OSError:
            pass  # A full backlog (EAGAIN): it runs, and does not answer.
        else:
            self._channel.try_send(TakeBack())

    def leave_only(self, listeners: dict[KeptListener, int], orphan_timeout: float) -> None:
        """Have the shard close all sockets but these, and ask again. Its answer confirms that this is done."""
        if self._channel is not None and self.has_answered:
            self.over.clear()
            for message, descriptors in entrusting(listeners, orphan_timeout):
                self._channel.try_send(message, descriptors)
            self._channel.try_send(TakeBack())

    def close(self) -> None:
        """Close the channel, the process's pidfd and the received descriptors."""
        handoff.close_all([fd for _, fd in self.kept])
        self.kept = []
        if self._channel is not None:
            self._channel.close()
        self.process.close()

    def _on_message(self, message: Message, descriptors: list[int]) -> None:
        if isinstance(message, Hello) and message.epoch != self.epoch:
            self.over.set()
        elif isinstance(message, Kept):
            self.kept += zip(message.listeners, descriptors, strict=True)
            if message.more:
                return
            self.has_answered = True
            self.over.set()
        else:
            handoff.close_all(descriptors)

    def _on_lost(self, _reason: str) -> None:
        self.over.set()


async def take_back(
    config: Config, rundir: RuntimeDir, default_path: Path, passed: Mapping[KeptListener, int] = _NOTHING
) -> TakenBack:
    """Get the listening sockets that running shards keep and *config* wants. The shards close the others.

    Sockets that were *passed* to this process take precedence over kept ones. They are returned too, or closed when
    *config* does not want them. The caller owns all returned descriptors.

    A running supervisor ends a silent shard after a time. When no shard answers for that time, all are ended in the
    same way: sockets that cannot be taken back must not stay open. Foreign shards are told to drain, and so close
    theirs.
    """
    keepers = list(_living(rundir))
    try:
        for keeper in keepers:
            keeper.ask()
        await _answers(keepers)
        foreign = [keeper for keeper in keepers if keeper.is_foreign]
        await _drain(foreign)
        found = {listener: fd for keeper in keepers for listener, fd in keeper.kept}
        usable = [*passed, *filter(has_its_path, found)]
        inherited = passed or [listener for listener in usable if listener.inherited]
        chosen = assign(wanted(config, default_path, inherited), usable).values()
        taken = {one: passed[one] if one in passed else os.dup(found[one]) for one in chosen}
        _leave_unwanted(passed, taken)
        unwanted = found.keys() - taken.keys()
        if unwanted:
            get_logger().info(
                "closing listeners that are not wanted", addresses=sorted(one.address for one in unwanted)
            )
            for keeper in keepers:
                keeper.leave_only(taken, config.orphan_timeout)
            await _all_over([keeper for keeper in keepers if keeper.has_answered], ANSWER_TIMEOUT)
        return TakenBack(taken, {keeper.shard for keeper in foreign})
    finally:
        for keeper in keepers:
            keeper.close()


def _leave_unwanted(passed: Mapping[KeptListener, int], taken: Mapping[KeptListener, int]) -> None:
    for listener, fd in passed.items():
        if listener not in taken:
            # The process that passed it has a copy. Agents that connect there wait in its queue.
            get_logger().warning(
                "a passed socket serves no configured address, nobody accepts", address=listener.address
            )
            os.close(fd)


def _living(rundir: RuntimeDir) -> Iterable[_Keeper]:
    for shard in rundir.recorded_shards():
        record = rundir.read_shard(shard)
        process = None if record is None else adopt_shard(record)
        if record is not None and process is not None:
            yield _Keeper(rundir, shard, record.epoch, process)


async def _answers(keepers: Sequence[_Keeper]) -> None:
    await _all_over(keepers, ANSWER_TIMEOUT)
    silent = [keeper for keeper in keepers if not keeper.over.is_set()]
    if not silent or len(silent) < len(keepers):
        return
    log = get_logger()
    log.warning("waiting for shards that do not answer", pids=[keeper.process.pid for keeper in silent])
    before = sum(keeper.process.cpu_seconds() or 0.0 for keeper in silent)
    if await _one_over(silent, REPLACE_AFTER - ANSWER_TIMEOUT):
        return
    busy_s = sum(keeper.process.cpu_seconds() or 0.0 for keeper in silent) - before
    if busy_s > WORKS_SHARE * REPLACE_AFTER:
        log.warning("they work, and get more time", busy_s=round(busy_s, 1))
        if await _one_over(silent, (WORKING_LONGER - 1) * REPLACE_AFTER):
            return
    for number in (signal.SIGABRT, signal.SIGKILL):
        for keeper in silent:
            log.error("ending a silent shard", shard=keeper.shard, pid=keeper.process.pid, signal=number.name)
            keeper.process.send_signal(number)
        await asyncio.sleep(KILL_AFTER)


async def _one_over(keepers: Sequence[_Keeper], seconds: float) -> bool:
    """Wait until one of *keepers* has answered or ended. False after *seconds*."""
    waiting = [asyncio.ensure_future(keeper.over.wait()) for keeper in keepers]
    try:
        with contextlib.suppress(TimeoutError):
            async with awake.clock().timeout(seconds):
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()
    return any(keeper.over.is_set() for keeper in keepers)


async def _drain(foreign: Sequence[_Keeper]) -> None:
    for keeper in foreign:
        get_logger().warning("draining a shard of another version", shard=keeper.shard, pid=keeper.process.pid)
        keeper.process.send_signal(signal.SIGTERM)
    # A draining shard first closes its kept listening sockets, then its socket for supervisors.
    with contextlib.suppress(TimeoutError):
        async with awake.clock().timeout(ANSWER_TIMEOUT):
            while any(keeper.is_reachable for keeper in foreign):  # noqa: ASYNC110 - there is no event for it
                await asyncio.sleep(0.01)


async def _all_over(keepers: Sequence[_Keeper], seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with awake.clock().timeout(seconds):
            for keeper in keepers:
                await keeper.over.wait()
