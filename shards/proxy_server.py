"""The listening side of a shard's proxy socket."""

import asyncio
import os
import socket

from ipc.rundir import RuntimeDir
from shards.pool import AgentPool
from shards.proxies import ProxyConnection
from shards.relay import Relay

FAREWELL_SECONDS = 1.0
"""Time for proxies to hear that the shard is going away; then it takes no new requests."""

SWEEP_SECONDS = 5.0
"""Between looks at requests that nobody went on with."""


class ProxyServer:
    """Takes proxies' connections for one shard."""

    def __init__(self, shard: int, epoch: str, rundir: RuntimeDir, pool: AgentPool, relay: Relay) -> None:
        self.shard = shard
        self.epoch = epoch
        self.pool = pool
        self.relay = relay
        self.going_away = False
        self.stopping = False
        self.connections: set[ProxyConnection] = set()
        self._path = rundir.shard_proxy(shard)
        self._server: asyncio.Server | None = None
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(SWEEP_SECONDS, self._sweep)

    @property
    def is_busy(self) -> bool:
        """Whether a request of a proxy is not over, or one may be on its way."""
        return any(connection.is_busy for connection in self.connections)

    async def start(self) -> None:
        """Listen, in place of a dead predecessor."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._path.unlink(missing_ok=True)
            previous = os.umask(0o177)
            try:
                sock.bind(os.fspath(self._path))
            finally:
                os.umask(previous)
            self._server = await self._loop.create_unix_server(lambda: ProxyConnection(self), sock=sock)
        except BaseException:
            sock.close()
            raise

    def go_away(self) -> None:
        """Have proxies ask other shards, and let no more proxies in; `is_busy` tells when all are through."""
        if self.going_away:
            return
        self.going_away = True
        if self._server is not None:
            self._server.close()
        for connection in self.connections:
            connection.go_away()
        self._timer.cancel()
        self._timer = self._loop.call_later(FAREWELL_SECONDS, self._refuse_new)

    def close(self) -> None:
        """Take no more connections and no more events, and close the connections after what they were told."""
        self.stopping = True
        self._timer.cancel()
        if self._server is not None:
            self._server.close()
        for connection in list(self.connections):
            connection.refuse("the shard stops")

    def _refuse_new(self) -> None:
        self.stopping = True

    def _sweep(self) -> None:
        self._timer = self._loop.call_later(SWEEP_SECONDS, self._sweep)
        now = self._loop.time()
        for connection in self.connections:
            connection.sweep(now)
