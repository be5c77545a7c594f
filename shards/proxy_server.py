"""The listening side of a shard's proxy socket: it accepts proxies, and tells them when the shard goes away."""

import asyncio
import math
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path

from dialout import awake
from ipc.options import PoolOptions
from ipc.process import DescriptorBudget
from ipc.sockets import bind_private
from ipc.timers import Every
from shards.dispatch import Dispatch
from shards.holding import Holding
from shards.proxies import ProxyConnection

PROXIES_SHARE = DescriptorBudget.RESERVE * 3 // 4
"""Descriptors of the process's reserve that proxies may use while agents use all others."""

FAREWELL_SECONDS = 1.0
"""Seconds for proxies to read that the shard is going away. After that it takes no new requests."""

SWEEP_SECONDS = 5.0
"""Seconds between checks for idle requests."""


class ProxyServer:
    """Accepts proxies' connections for one shard, at the socket *path*, while *room* for descriptors is left."""

    def __init__(
        self,
        shard: int,
        epoch: str,
        path: Path,
        options: PoolOptions,
        dispatch: Dispatch,
        room: Callable[[], int],
    ) -> None:
        self.connections: set[ProxyConnection] = set()
        self._path = path
        self._room = room
        self._going_away = self._stopping = False
        self._connection = partial(ProxyConnection, shard, epoch, options, dispatch, self._made, self._lost)
        self._holding: Holding[ProxyConnection] = Holding(options.max_held_bytes)
        self._frame_timeout = options.frame_timeout
        self._servers: list[asyncio.Server] = []
        self._again: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._farewell: asyncio.TimerHandle | None = None
        self._timer = Every(SWEEP_SECONDS, self._sweep)

    @property
    def is_busy(self) -> bool:
        """Whether a request of a proxy is unfinished, or one may be on its way."""
        return any(connection.is_busy for connection in self.connections)

    async def start(self) -> None:
        """Listen on *path*, in place of a dead predecessor. OSError if that is not possible."""
        await self._serve(bind_private(self._path, socket.SOCK_STREAM))

    def listen_again(self) -> None:
        """Listen on a new socket as well, because the file of the old one is gone. OSError if that is not possible."""
        sock = bind_private(self._path, socket.SOCK_STREAM)
        self._again = self._loop.create_task(self._serve(sock))

    async def _serve(self, sock: socket.socket) -> None:
        try:
            server = await self._loop.create_unix_server(self._connection, sock=sock)
        except BaseException:
            sock.close()
            raise
        self._servers.append(server)
        if self._going_away:
            server.close()

    def go_away(self) -> None:
        """Tell proxies to ask other shards, and accept no more proxies. `is_busy` is false when all have finished."""
        if self._going_away:
            return
        self._going_away = True
        self._close_servers()
        for connection in self.connections:
            connection.go_away()
        self._timer.cancel()
        self._farewell = self._loop.call_later(FAREWELL_SECONDS, self.stop)

    def stop(self) -> None:
        """Accept no new requests."""
        self._stopping = True
        for connection in self.connections:
            connection.stopping = True

    def close(self) -> None:
        """Take no more connections and no more events. Close the connections after their pending output."""
        self.stop()
        self._timer.cancel()
        if self._farewell is not None:
            self._farewell.cancel()
        self._close_servers()
        for connection in list(self.connections):
            connection.refuse("the shard stops")

    def _close_servers(self) -> None:
        for server in self._servers:
            server.close()

    def _made(self, connection: ProxyConnection) -> None:
        self.connections.add(connection)
        # The connection may have been accepted before this shard was told to go away.
        connection.stopping = self._stopping
        if self._going_away:
            connection.go_away()
        if self._room() < -PROXIES_SHARE:
            connection.refuse("this shard is out of descriptors: raise the open files limit, or ask another one")

    def _lost(self, connection: ProxyConnection) -> None:
        self.connections.discard(connection)
        self._holding.note(connection, 0, unfinished=False, begun=False)

    def _sweep(self) -> None:
        now = awake.clock().time()
        for connection in self.connections:
            connection.sweep(now)
            held, begun = connection.unfinished()
            self._holding.note(connection, held, unfinished=held > 0, begun=begun)
        if self._holding.total > self._holding.limit:
            for connection in self._holding.take_largest():
                connection.refuse(f"unfinished frames of proxies have more than {self._holding.limit} bytes")
        for connection in self._holding.next_round(math.ceil(self._frame_timeout / SWEEP_SECONDS)):
            connection.refuse(f"a frame was not complete after {self._frame_timeout:g} s")
