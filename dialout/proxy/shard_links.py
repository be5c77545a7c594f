"""Keep one connection to each shard of a runtime directory."""

import asyncio
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

from dialout.proxy.errors import NoShard, PoolError, ShuttingDown
from dialout.proxy.shard_channel import ShardChannel

__all__ = ["ShardLinks"]

_SCAN_SECONDS: Final = 0.25
_CONNECT_SECONDS: Final = 2.0
_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 1.0
"""The longest pause between attempts to connect.

The first pauses are short, because a shard that ended is back within a fraction of a second.
"""

_is_socket_name = re.compile(r"shard-(0|[1-9][0-9]{0,3})\.proxy").fullmatch


class ShardLinks:
    """Connects to every ``shard-<i>.proxy`` in ``directory``, and reconnects after a loss while the socket exists.

    ``channels`` are the usable channels. ``connect`` makes a channel that is not connected yet. ``on_lost`` is called
    with the number of a shard when its channel is lost, or when the shard is going away.
    """

    def __init__(
        self,
        directory: Path,
        connect: Callable[[int, Callable[[ShardChannel], None], Callable[[ShardChannel], None]], ShardChannel],
        on_lost: Callable[[int], None],
    ) -> None:
        self.channels: list[ShardChannel] = []
        # Channels that take no new requests and are not closed yet. They are not in channels.
        self._closing: set[ShardChannel] = set()
        self._directory = directory
        self._connect = connect
        self._on_lost = on_lost
        self._keepers: dict[int, asyncio.Task[None]] = {}
        self._watcher: asyncio.Task[None] | None = None
        self._arrival: asyncio.Future[None] | None = None
        # The last reason why each shard could not be reached, for the text of NoShard.
        self._reasons: dict[int, str] = {}

    async def start(self) -> None:
        """Start the watcher, and wait a moment for the welcomes of the present shards."""
        self._watcher = asyncio.create_task(self._watch(), name="dialout: watch for shards")
        deadline = asyncio.get_running_loop().time() + _CONNECT_SECONDS
        expected = len(self._present())
        while len(self.channels) + len(self._reasons) < expected and await self._wait(deadline):
            pass

    async def close(self) -> None:
        """Close every connection. All events in flight fail with ShuttingDown."""
        tasks = [task for task in (self._watcher, *self._keepers.values()) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        open_channels = [*self.channels, *self._closing]
        for channel in open_channels:
            channel.close("the client was closed", ShuttingDown)
        await asyncio.gather(*(channel.closed.wait() for channel in open_channels))

    async def wait_for_channel(self, deadline: float) -> None:
        """Wait until a shard can be asked. Raises NoShard if there is none by ``deadline`` (loop time)."""
        while not self.channels:
            if not await self._wait(deadline):
                why = "; ".join(f"shard {shard}: {reason}" for shard, reason in sorted(self._reasons.items()))
                raise NoShard(
                    f"no shard can be reached in {self._directory} ({why or 'it holds no shard-<i>.proxy'}):"
                    " check that shardgate is running with this runtime directory",
                    retry_safe=True,
                )

    # --- the present shards ---

    def _present(self) -> dict[int, Path]:
        try:
            names = os.listdir(self._directory)  # noqa: PTH208 - the names are all that is needed
        except OSError:
            return {}
        found = {name: match for name in names if (match := _is_socket_name(name))}
        return {int(match[1]): self._directory / name for name, match in found.items()}

    async def _watch(self) -> None:
        while True:
            for shard, path in self._present().items():
                if shard not in self._keepers:
                    keeper = asyncio.create_task(self._keep(shard, path), name=f"dialout: keep shard {shard}")
                    self._keepers[shard] = keeper
            await asyncio.sleep(_SCAN_SECONDS)

    async def _keep(self, shard: int, path: Path) -> None:
        """Keep the shard connected until its socket has been gone for a while."""
        pause = _FIRST_PAUSE
        try:
            while pause < _LONGEST_PAUSE or shard in self._present():
                channel = self._connect(shard, self._lost, self._leaves)
                if await self._open(channel, path):
                    pause = _FIRST_PAUSE
                    await channel.closed.wait()
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
        finally:
            self._reasons.pop(shard, None)
            del self._keepers[shard]

    async def _open(self, channel: ShardChannel, path: Path) -> bool:
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                await asyncio.get_running_loop().create_unix_connection(lambda: channel, str(path))
                await channel.welcomed
        except TimeoutError:
            self._reasons[channel.shard] = "it does not answer"
        except PoolError as error:
            self._reasons[channel.shard] = str(error)
        except OSError as error:
            self._reasons[channel.shard] = error.strerror or str(error)
        else:
            self._reasons.pop(channel.shard, None)
            self.channels.append(channel)
            self._tell()
            return True
        finally:
            if channel not in self.channels and not channel.is_lost:
                self._closing.add(channel)
                channel.close("it gave no welcome in time")
        self._tell()
        return False

    def _leaves(self, channel: ShardChannel) -> None:
        """Send no new requests to a shard that is going away. The shard closes the channel itself."""
        if channel in self.channels:
            self._closing.add(channel)
            self.channels.remove(channel)
            self._on_lost(channel.shard)

    def _lost(self, channel: ShardChannel) -> None:
        self._closing.discard(channel)
        if channel in self.channels:
            self.channels.remove(channel)
            self._on_lost(channel.shard)

    # --- waiting ---

    def _tell(self) -> None:
        if self._arrival is not None:
            self._arrival.set_result(None)
            self._arrival = None

    async def _wait(self, deadline: float) -> bool:
        """Wait for a change. Returns False if there was none by ``deadline``."""
        if self._arrival is None:
            self._arrival = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout_at(deadline):
                await asyncio.shield(self._arrival)
        except TimeoutError:
            return False
        return True
